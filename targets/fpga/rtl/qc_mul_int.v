// A weight times an integer activation (AS: signed), as p + n; rows are those of the factor of fewer bits.
// WM 0: the weight is two's complement, and n is 0. Else a sign n above a magnitude, and p is the complement of the
// product of a negative one; minus zero is 0 (WM 1) or the lowest code of two's complement (WM 2).
module qc_mul_int #(parameter WB = 4, AB = 8, AS = 0, WM = 0, LW = WM ? WB - 1 : WB) (
    input [AB-1:0] a, input [WB-1:0] w, output signed [LW+AB:0] p, output n);
  assign n = WM ? w[WB-1] : 1'b0;
  generate if (LW <= AB) begin : by_weight
    qc_mul #(.XB(AB), .XS(AS), .YB(LW), .YS(!WM), .N(WM > 0), .L(WM == 2)) mul (.x(a), .y(w[LW-1:0]), .n(n), .p(p));
  end else begin : by_activation
    localparam XB = LW + (WM == 2);
    wire [LW:0] factor = {n && w[LW-1:0] == 0, w[LW-1:0]};
    wire signed [XB+AB:0] product;
    qc_mul #(.XB(XB), .XS(!WM), .YB(AB), .YS(AS), .N(WM > 0)) mul (.x(factor[XB-1:0]), .y(a), .n(n), .p(product));
    assign p = product;
  end endgenerate
endmodule
