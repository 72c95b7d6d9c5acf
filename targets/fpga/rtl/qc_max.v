// The largest code of every lane from a first to a last beat. SIGNED 1: two's complement; 2: a sign and a magnitude.
module qc_max #(parameter LANES = 1, B = 8, SIGNED = 0) (
    input clk, input rst,
    input [LANES*B-1:0] s_tdata, input s_tvalid, input s_first, input s_last, output s_tready,
    output reg [LANES*B-1:0] m_tdata, output reg m_tvalid, input m_tready);
  assign s_tready = !m_tvalid || m_tready;
  localparam [B-1:0] TOP = SIGNED ? 1 << (B - 1) : 0;
  function [B-1:0] place(input [B-1:0] x);  // signed codes in the order of unsigned ones
    place = SIGNED == 2 && x[B-1] ? ~x : x ^ TOP;
  endfunction
  genvar i;
  generate for (i = 0; i < LANES; i = i + 1) begin : lane
    wire [B-1:0] x = s_tdata[i*B +: B];
    wire more = place(x) > place(m_tdata[i*B +: B]);
    always @(posedge clk) if (s_tready && s_tvalid && (s_first || more)) m_tdata[i*B +: B] <= x;
  end endgenerate
  always @(posedge clk)
    if (rst) m_tvalid <= 0;
    else if (s_tready) m_tvalid <= s_tvalid && s_last;
endmodule
