// A function of single codes: LANES look-ups a beat, codes of IB bits to codes of OB bits.
module qc_table #(parameter LANES = 1, IB = 8, OB = 8, TFILE = "table.hex") (
    input clk, input rst,
    input [LANES*IB-1:0] s_tdata, input s_tvalid, output s_tready,
    output reg [LANES*OB-1:0] m_tdata, output reg m_tvalid, input m_tready);
  assign s_tready = !m_tvalid || m_tready;
  (* logic_block = 1 *) reg [OB-1:0] entries [0:(1<<IB)-1];
  initial $readmemh(TFILE, entries);
  genvar i;
  generate for (i = 0; i < LANES; i = i + 1) begin : lane
    always @(posedge clk) if (s_tready) m_tdata[i*OB +: OB] <= entries[s_tdata[i*IB +: IB]];
  end endgenerate
  always @(posedge clk)
    if (rst) m_tvalid <= 0;
    else if (s_tready) m_tvalid <= s_tvalid;
endmodule
