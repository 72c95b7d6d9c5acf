// A part of each image: YN rows from Y0 on, SY apart, XN columns of those, and of each pixel's CF beats CN from C0 on.
module qc_slice #(parameter WIDTH = 8, H = 8, W = 8, CF = 1, Y0 = 0, SY = 1, YN = 8, X0 = 0, SX = 1, XN = 8, C0 = 0,
    CN = 1) (
    input clk, input rst,
    input [WIDTH-1:0] s_tdata, input s_tvalid, output s_tready,
    output [WIDTH-1:0] m_tdata, output m_tvalid, input m_tready);
  `include "qc_math.vh"
  localparam YW = clog2(Y0 + YN * SY + H + 1), XW = clog2(X0 + XN * SX + W + 1);
  reg [clog2(CF)-1:0] c;
  reg [YW-1:0] y, wanted_y;  // where this beat is, and the next row and column that are kept
  reg [XW-1:0] x, wanted_x;
  wire in_y = y == wanted_y && y < Y0 + YN * SY, in_x = x == wanted_x && x < X0 + XN * SX;
  wire kept = in_y && in_x && c >= C0 && c < C0 + CN;
  wire end_c = c == CF - 1, end_x = x == W - 1, end_y = y == H - 1;
  assign m_tdata = s_tdata;
  assign m_tvalid = s_tvalid && kept;
  assign s_tready = m_tready || !kept;
  always @(posedge clk)
    if (rst) begin c <= 0; x <= 0; y <= 0; wanted_x <= X0; wanted_y <= Y0; end
    else if (s_tvalid && s_tready) begin
      c <= end_c ? 0 : c + 1'b1;
      if (end_c) begin
        x <= end_x ? 0 : x + 1'b1;
        wanted_x <= end_x ? X0 : in_x ? wanted_x + SX : wanted_x;
        if (end_x) begin
          y <= end_y ? 0 : y + 1'b1;
          wanted_y <= end_y ? Y0 : in_y ? wanted_y + SY : wanted_y;
        end
      end
    end
endmodule
