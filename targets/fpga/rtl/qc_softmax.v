// Softmax over rows of C codes, one code a beat, by the integer definition: d = max - x, e = table[d],
//     clip((2 e R + S) / (2 S) + zero, LO, HI), S = sum of e.
// A row comes in, is summed, and goes out with one division a code; the next row comes in then.
module qc_softmax #(parameter C = 10, AB = 8, AS = 0, EB = 21, R = 256, OB = 8, ZERO = 0, LO = 0, HI = 255,
    TFILE = "exp.hex") (
    input clk, input rst,
    input [AB-1:0] s_tdata, input s_tvalid, output s_tready,
    output reg [OB-1:0] m_tdata, output reg m_tvalid, input m_tready);
  `include "qc_math.vh"
  localparam SB = EB + clog2(C), QB = clog2(R + 1) + 1, DB = SB + 1 + QB;
  localparam TAKE = 0, SUM = 1, LOOK = 2, START = 3, DIVIDE = 4, GIVE = 5;
  localparam [AB-1:0] FLIP = AS ? 1 << (AB - 1) : 0;  // signed codes in the order of unsigned ones
  (* logic_block = 1 *) reg [EB-1:0] exponentials [0:(1<<AB)-1];
  initial $readmemh(TFILE, exponentials);
  (* ram_style = "distributed" *) reg [AB-1:0] row [0:C-1];
  reg [2:0] state;
  reg [clog2(C)-1:0] i;
  reg [AB-1:0] most, x;
  reg [SB-1:0] total;
  reg [EB-1:0] e;
  reg [DB-1:0] rest, divisor;
  reg [QB-1:0] quotient;
  reg [clog2(QB+1)-1:0] left;
  reg look;  // x is read, e comes next
  wire [AB-1:0] given = s_tdata ^ FLIP;
  wire end_i = i == C - 1;
  wire more = rest >= divisor;
  wire signed [QB+OB+1:0] code = $signed({1'b0, quotient}) + ZERO;
  assign s_tready = state == TAKE;
  always @(posedge clk) begin
    if (s_tvalid && s_tready) row[i] <= given;
    x <= row[i];
    e <= exponentials[most - x];
    if (rst) begin state <= TAKE; i <= 0; m_tvalid <= 0; look <= 0; end
    else case (state)
      TAKE: if (s_tvalid) begin
        if (i == 0 || given > most) most <= given;
        i <= end_i ? 0 : i + 1'b1;
        total <= 0;
        left <= 0;
        if (end_i) state <= SUM;
      end
      SUM: begin  // x, then e, then the sum: three steps a code
        left <= left == 2 ? 0 : left + 1'b1;
        if (left == 2) begin
          total <= total + e;
          i <= end_i ? 0 : i + 1'b1;
          if (end_i) state <= LOOK;
        end
      end
      LOOK: begin
        look <= !look;
        if (look) state <= START;
      end
      START: begin
        rest <= e * (2 * R) + total;
        divisor <= {total, 1'b0} << (QB - 1);
        quotient <= 0;
        left <= QB;
        state <= DIVIDE;
      end
      DIVIDE: begin
        if (more) rest <= rest - divisor;
        quotient <= {quotient[QB-2:0], more};
        divisor <= divisor >> 1;
        left <= left - 1'b1;
        if (left == 1) state <= GIVE;
      end
      default: if (!m_tvalid) begin
        m_tdata <= code > HI ? HI : code < LO ? LO : code[OB-1:0];
        m_tvalid <= 1;
      end else if (m_tready) begin
        m_tvalid <= 0;
        i <= end_i ? 0 : i + 1'b1;
        state <= end_i ? TAKE : LOOK;
      end
    endcase
  end
endmodule
