// One stream to N readers, each of which takes every beat once, whenever it can.
module qc_fork #(parameter WIDTH = 8, N = 2) (
    input clk, input rst,
    input [WIDTH-1:0] s_tdata, input s_tvalid, output s_tready,
    output [N*WIDTH-1:0] m_tdata, output [N-1:0] m_tvalid, input [N-1:0] m_tready);
  reg [N-1:0] taken;  // readers that already have the present beat
  wire [N-1:0] now = taken | m_tready;
  assign s_tready = &now;
  assign m_tvalid = {N{s_tvalid}} & ~taken;
  assign m_tdata = {N{s_tdata}};
  always @(posedge clk)
    if (rst) taken <= 0;
    else if (s_tvalid) taken <= &now ? {N{1'b0}} : now;
endmodule
