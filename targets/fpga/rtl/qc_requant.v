// Accumulators -> codes, bit for bit the fixed requantization of the integer graph:
//     clip((((acc + bias) * multiplier + 2^(shift-1)) >> shift) + zero, LO, HI)
//
// A beat of PE accumulators leaves as PE/LANES beats of LANES codes. The multiplier is taken two bits a step, low bits
// first, and the sum moves right by two bits a step: the product is exact, only its high part is kept, and one adder is
// little wider than the accumulator. STAGES units work on consecutive accumulators, STEPS steps each;
// 2 * STAGES * STEPS >= MB. The multipliers of all channels are brought to one shift, 2 * STAGES * STEPS + DROP + 1, so
// shifts are constants; GL moves accumulators left where that needs it.
// OE: exponent bits where codes are minifloats (signed if OS), else 0. Then rounding is half to even (qc_encode), for
// which the stages remember whether digits that moved out were not 0.
// Word n of QFILE belongs to beat n of a pixel: per lane {bias, multiplier}. BLOCK needs STEPS >= 4.
module qc_requant #(parameter PE = 1, LANES = 1, ACC = 24, BB = 24, MB = 34, STAGES = 1, STEPS = 17, GL = 0, DROP = 0,
    WORDS = 1, OB = 8, ZERO = 0, LO = 0, HI = 255, OE = 0, OS = 1, BLOCK = 0, QFILE = "requant.hex") (
    input clk, input rst,
    input [PE*ACC-1:0] s_tdata, input s_tvalid, output s_tready,
    output [LANES*OB-1:0] m_tdata, output reg m_tvalid, input m_tready);
  `include "qc_math.vh"
  localparam BEATS = PE / LANES, X = (ACC > BB ? ACC : BB) + 1 + GL, N = STAGES * STEPS;
  localparam S = X + 3, R = (S > OB + 2 ? S : OB + 2) + 2, QW = LANES * (BB + MB), SLOW = STEPS >= 4;
  wire ce = !m_tvalid || m_tready;
  reg [clog2(STEPS)-1:0] step;
  wire turn = ce && step == STEPS - 1;  // all stages pass on what they have
  always @(posedge clk)
    if (rst) step <= 0;
    else if (ce) step <= step == STEPS - 1 ? 0 : step + 1'b1;

  // ---- accumulators in turn, with their parameters
  reg [PE*ACC-1:0] waiting;
  reg [clog2(BEATS+1)-1:0] left;
  assign s_tready = turn && left <= 1;
  always @(posedge clk) begin
    if (s_tready) waiting <= s_tdata;
    else if (turn) waiting <= waiting >> (LANES * ACC);
    if (rst) left <= 0;
    else if (s_tready) left <= s_tvalid ? BEATS : 0;
    else if (turn) left <= left - 1'b1;
  end
  reg [clog2(WORDS)-1:0] word;
  wire [QW-1:0] q;
  generate if (BLOCK) begin : block
    (* rom_style = "block", ram_style = "block" *) reg [QW-1:0] parameters [0:WORDS-1];
    initial $readmemh(QFILE, parameters);
    reg [QW-1:0] read;
    always @(posedge clk) if (ce) read <= parameters[word];
    assign q = read;
  end else begin : luts
    (* logic_block = 1 *) reg [QW-1:0] parameters [0:WORDS-1];
    initial $readmemh(QFILE, parameters);
    if (SLOW) begin : late  // else yosys takes registers behind it for that, and LUTs for what they did
      reg [QW-1:0] read;
      always @(posedge clk) if (ce) read <= parameters[word];
      assign q = read;
    end else begin : soon
      assign q = parameters[word];
    end
  end endgenerate
  always @(posedge clk)
    if (rst) word <= 0;
    else if (turn && left != 0) word <= word == WORDS - 1 ? 0 : word + 1'b1;

  // ---- x = acc + bias and 3x: settled within a turn of several steps, else in a turn each
  reg [STAGES+2:0] valid;
  reg done, rounding, packing;
  wire enters = SLOW ? left != 0 : valid[1];
  always @(posedge clk)
    if (rst) begin valid <= 0; done <= 0; rounding <= 0; packing <= 0; m_tvalid <= 0; end
    else if (ce) begin
      if (turn) valid <= {valid[STAGES+1:2], enters, valid[0], left != 0};
      done <= turn && valid[STAGES+1];
      rounding <= done;
      packing <= rounding;
      m_tvalid <= OE ? packing : rounding;
    end
  genvar i, u;
  generate for (i = 0; i < LANES; i = i + 1) begin : lane
    wire signed [BB-1:0] bias = q[i*(BB+MB)+MB +: BB];
    wire signed [ACC-1:0] acc = waiting[i*ACC +: ACC];
    wire [2*N-1:0] multiplier = q[i*(BB+MB) +: MB];
    reg signed [X-1:0] x;
    reg signed [X+1:0] triple;
    wire signed [X-1:0] single;
    wire [2*N-1:0] m;
    always @(posedge clk) if (SLOW ? ce : turn) begin
      x <= (acc + bias) <<< GL;
      triple <= x + (x <<< 1);
    end
    if (SLOW) begin : settled
      assign single = x;
      assign m = multiplier;
    end else begin : delayed
      reg signed [X-1:0] x1;
      reg [2*N-1:0] m0, m1;
      always @(posedge clk) if (turn) begin x1 <= x; m0 <= multiplier; m1 <= m0; end
      assign single = x1;
      assign m = m1;
    end

    // ---- the stages
    for (u = 0; u < STAGES; u = u + 1) begin : stage
      localparam REST = 2 * (N - u * STEPS);  // bits of the multiplier that earlier stages leave
      reg signed [X-1:0] one;
      reg signed [X+1:0] three;
      reg [REST-1:0] digits;
      reg signed [S-1:0] sum;
      reg rest;
      wire signed [S-1:0] one_wide = one, three_wide = three;
      wire [S-1:0] term = digits[1] ? (digits[0] ? three_wide : one_wide <<< 1) : digits[0] ? one_wide : {S{1'b0}};
      wire signed [S-1:0] added = sum + $signed(term);
      wire signed [S-1:0] next = added >>> 2;
      wire next_rest = rest || |added[1:0];
      if (u == 0) begin : head
        always @(posedge clk) if (ce) begin
          if (turn) begin one <= single; three <= triple; end
          digits <= turn ? m : digits >> 2;
          sum <= turn ? {S{1'b0}} : next;
          rest <= turn ? 1'b0 : next_rest;
        end
      end else begin : body
        always @(posedge clk) if (ce) begin
          if (turn) begin one <= stage[u-1].one; three <= stage[u-1].three; end
          digits <= turn ? stage[u-1].digits >> 2 : digits >> 2;
          sum <= turn ? stage[u-1].next : next;
          rest <= turn ? stage[u-1].next_rest : next_rest;
        end
      end
    end

    // ---- rounding
    reg signed [S-1:0] total;
    reg total_rest;
    always @(posedge clk) if (ce && turn) begin
      total <= stage[STAGES-1].next;
      total_rest <= stage[STAGES-1].next_rest;
    end
    wire signed [R-1:0] high = total >>> DROP;
    if (OE) begin : minifloat
      wire [S-1:0] low = total & ~({S{1'b1}} << DROP);
      qc_encode #(.F(R), .B(OB), .S(OS), .E(OE)) encode (
        .clk(clk), .ce(ce), .value(high), .rest(total_rest || |low), .code(m_tdata[i*OB +: OB]));
    end else begin : number  // half up, the zero point, clipping
      wire signed [R-1:0] rounded = high + $signed(2 * ZERO + 1);
      reg signed [R-2:0] code;
      reg [OB-1:0] clipped;
      always @(posedge clk) if (ce) begin
        code <= rounded[R-1:1];
        clipped <= code > HI ? HI : code < LO ? LO : code[OB-1:0];
      end
      assign m_tdata[i*OB +: OB] = clipped;
    end
  end endgenerate
endmodule
