// One beat as N beats in a row, the low bits first.
module qc_narrow #(parameter WIDTH = 8, N = 2) (
    input clk, input rst,
    input [N*WIDTH-1:0] s_tdata, input s_tvalid, output s_tready,
    output [WIDTH-1:0] m_tdata, output m_tvalid, input m_tready);
  `include "qc_math.vh"
  reg [N*WIDTH-1:0] kept;
  reg [clog2(N+1)-1:0] left;
  assign m_tdata = kept[WIDTH-1:0];
  assign m_tvalid = left != 0;
  assign s_tready = left == 0 || (left == 1 && m_tready);
  always @(posedge clk) begin
    if (s_tready) kept <= s_tdata;
    else if (m_tready) kept <= kept >> WIDTH;
    if (rst) left <= 0;
    else if (s_tready) left <= s_tvalid ? N : 0;
    else if (m_tready) left <= left - 1'b1;
  end
endmodule
