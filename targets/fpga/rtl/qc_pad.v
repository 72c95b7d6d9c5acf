// Images with PAD around them: PT rows above, PL columns to the left, CB beats before the CF beats of a pixel; OH, OW and
// OC are rows, columns and beats that go out. Nothing of an image leaves before its first beat is there.
module qc_pad #(parameter WIDTH = 8, H = 8, W = 8, CF = 1, PT = 0, PL = 0, CB = 0, OH = 8, OW = 8, OC = 2,
    parameter [WIDTH-1:0] PAD = 0) (
    input clk, input rst,
    input [WIDTH-1:0] s_tdata, input s_tvalid, output s_tready,
    output [WIDTH-1:0] m_tdata, output m_tvalid, input m_tready);
  `include "qc_math.vh"
  reg [clog2(OC)-1:0] c;
  reg [clog2(OW)-1:0] x;
  reg [clog2(OH)-1:0] y;
  reg begun;
  wire inside_c = c >= CB && c < CB + CF, inside_x = x >= PL && x < PL + W, inside_y = y >= PT && y < PT + H;
  wire data = inside_c && inside_x && inside_y;
  wire end_c = c == OC - 1, end_x = end_c && x == OW - 1, end_y = end_x && y == OH - 1;
  assign m_tdata = data ? s_tdata : PAD;
  assign m_tvalid = data || !begun ? s_tvalid : 1'b1;
  assign s_tready = data && m_tready;
  always @(posedge clk)
    if (rst) begin c <= 0; x <= 0; y <= 0; begun <= 0; end
    else if (m_tvalid && m_tready) begin
      c <= end_c ? 0 : c + 1'b1;
      if (end_c) x <= end_x ? 0 : x + 1'b1;
      if (end_x) y <= end_y ? 0 : y + 1'b1;
      begun <= !end_y;
    end
endmodule
