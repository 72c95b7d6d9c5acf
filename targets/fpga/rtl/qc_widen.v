// N beats in a row as one beat; the first is in the low bits.
module qc_widen #(parameter WIDTH = 8, N = 2) (
    input clk, input rst,
    input [WIDTH-1:0] s_tdata, input s_tvalid, output s_tready,
    output reg [N*WIDTH-1:0] m_tdata, output reg m_tvalid, input m_tready);
  `include "qc_math.vh"
  reg [clog2(N)-1:0] count;
  assign s_tready = !m_tvalid || m_tready;
  wire put = s_tvalid && s_tready;
  always @(posedge clk) begin
    if (put) m_tdata <= {s_tdata, m_tdata[N*WIDTH-1:WIDTH]};
    if (rst) begin count <= 0; m_tvalid <= 0; end
    else if (s_tready) begin
      m_tvalid <= put && count == N - 1;
      if (put) count <= count == N - 1 ? 0 : count + 1'b1;
    end
  end
endmodule
