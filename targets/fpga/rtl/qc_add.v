// clip((a * MA + b * MB + OFFSET) >> SHIFT), lane by lane; OFFSET holds zero points and rounding.
module qc_add #(parameter LANES = 1, AB = 8, AS = 0, BB = 8, BS = 0, W = 36, SHIFT = 20, OB = 8, LO = 0, HI = 255,
    parameter signed [63:0] MA = 1, MB = 1, OFFSET = 0) (
    input clk, input rst,
    input [LANES*AB-1:0] a_tdata, input a_tvalid, output a_tready,
    input [LANES*BB-1:0] b_tdata, input b_tvalid, output b_tready,
    output reg [LANES*OB-1:0] m_tdata, output reg m_tvalid, input m_tready);
  wire ce = !m_tvalid || m_tready;
  wire both = a_tvalid && b_tvalid;
  assign a_tready = ce && both;
  assign b_tready = ce && both;
  reg taken, scaled, summed;
  reg [LANES*AB-1:0] xa;  // block RAM of a queue before it answers late: no table in the same cycle
  reg [LANES*BB-1:0] xb;
  always @(posedge clk) begin
    if (ce) begin xa <= a_tdata; xb <= b_tdata; end
    if (rst) begin taken <= 0; scaled <= 0; summed <= 0; m_tvalid <= 0; end
    else if (ce) begin taken <= both; scaled <= taken; summed <= scaled; m_tvalid <= summed; end
  end
  genvar i;
  generate for (i = 0; i < LANES; i = i + 1) begin : lane
    wire signed [W-1:0] pa, pb;
    qc_scale #(.XB(AB), .XS(AS), .W(W), .M(MA), .OFFSET(OFFSET)) scale_a (.x(xa[i*AB +: AB]), .p(pa));
    qc_scale #(.XB(BB), .XS(BS), .W(W), .M(MB), .OFFSET(64'sd0)) scale_b (.x(xb[i*BB +: BB]), .p(pb));
    reg signed [W-1:0] a, b;
    reg signed [W-SHIFT-1:0] code;
    wire signed [W-1:0] sum = a + b;
    always @(posedge clk) if (ce) begin
      a <= pa;
      b <= pb;
      code <= sum[W-1:SHIFT];
      m_tdata[i*OB +: OB] <= code > HI ? HI : code < LO ? LO : code[OB-1:0];
    end
  end endgenerate
endmodule
