// Channels of a, then those of b, pixel by pixel: A beats of the one, B beats of the other.
module qc_concat #(parameter WIDTH = 8, A = 1, B = 1) (
    input clk, input rst,
    input [WIDTH-1:0] a_tdata, input a_tvalid, output a_tready,
    input [WIDTH-1:0] b_tdata, input b_tvalid, output b_tready,
    output [WIDTH-1:0] m_tdata, output m_tvalid, input m_tready);
  `include "qc_math.vh"
  reg [clog2(A+B)-1:0] count;
  wire second = count >= A;
  assign m_tdata = second ? b_tdata : a_tdata;
  assign m_tvalid = second ? b_tvalid : a_tvalid;
  assign a_tready = m_tready && !second;
  assign b_tready = m_tready && second;
  always @(posedge clk)
    if (rst) count <= 0;
    else if (m_tvalid && m_tready) count <= count == A + B - 1 ? 0 : count + 1'b1;
endmodule
