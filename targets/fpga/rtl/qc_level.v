// The level of a minifloat's code, two's complement.
module qc_level #(parameter B = 4, S = 1, E = 2, L = B - S - E + (1 << E) - 1) (
    input [B-1:0] x, output signed [L:0] level);
  wire sign;
  wire [B-S-E:0] significand;
  wire [E-1:0] shift;
  qc_fields #(.B(B), .S(S), .E(E)) fields (.x(x), .sign(sign), .significand(significand), .shift(shift));
  wire [L:0] wide = significand, magnitude = wide << shift;
  assign level = sign ? -magnitude : magnitude;
endmodule
