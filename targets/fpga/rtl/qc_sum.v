// Sums over whole images: beat n of a pixel adds to sum n of LANES lanes; the last pixel's beats carry the sums out.
module qc_sum #(parameter LANES = 1, AB = 8, AS = 0, ACC = 16, CF = 1, PIXELS = 4) (
    input clk, input rst,
    input [LANES*AB-1:0] s_tdata, input s_tvalid, output s_tready,
    output reg [LANES*ACC-1:0] m_tdata, output reg m_tvalid, input m_tready);
  `include "qc_math.vh"
  reg [clog2(CF)-1:0] part;
  reg [clog2(PIXELS)-1:0] pixel;
  (* ram_style = "distributed" *) reg [LANES*ACC-1:0] sums [0:CF-1];
  assign s_tready = !m_tvalid || m_tready;
  wire go = s_tvalid && s_tready;
  wire [LANES*ACC-1:0] kept = sums[part];
  wire [LANES*ACC-1:0] now;
  genvar i;
  generate for (i = 0; i < LANES; i = i + 1) begin : lane
    wire signed [AB:0] x = {AS ? s_tdata[i*AB+AB-1] : 1'b0, s_tdata[i*AB +: AB]};
    wire signed [ACC-1:0] old = pixel == 0 ? {ACC{1'b0}} : kept[i*ACC +: ACC];
    wire signed [ACC-1:0] sum = old + x;
    assign now[i*ACC +: ACC] = sum;
  end endgenerate
  always @(posedge clk) begin
    if (go) sums[part] <= now;
    if (s_tready) m_tdata <= now;
    if (rst) begin part <= 0; pixel <= 0; m_tvalid <= 0; end
    else begin
      if (s_tready) m_tvalid <= go && pixel == PIXELS - 1;
      if (go) begin
        part <= part == CF - 1 ? 0 : part + 1'b1;
        if (part == CF - 1) pixel <= pixel == PIXELS - 1 ? 0 : pixel + 1'b1;
      end
    end
  end
endmodule
