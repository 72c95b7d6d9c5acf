// Rounding to a minifloat, half to even, saturated: `value` is the floor of twice the level that is meant, `rest` tells
// that this floor is not exact. Three steps: the absolute value; what lies above the last place kept; the code, in which
// a carry out of the significand moves on to the exponent by itself. Without a sign (S 0) negative values are 0.
module qc_encode #(parameter F = 24, B = 4, S = 1, E = 2) (
    input clk, input ce, input signed [F-1:0] value, input rest, output reg [B-1:0] code);
  localparam M = B - S - E, L = M + (1 << E) - 1;  // L: bits of the largest level
  localparam W = F > L + 2 ? F : L + 2;
  wire minus = value[F-1];
  wire signed [W-1:0] wide = value;
  wire [W-1:0] absolute = (wide ^ {W{minus}}) + (minus && !rest);
  reg [L:0] twice;
  reg beyond1, minus1, rest1;
  always @(posedge clk) if (ce) begin
    twice <= absolute[L:0];
    beyond1 <= |absolute[W-1:L+1];
    minus1 <= minus;
    rest1 <= rest;
  end

  // k: places between levels, from the highest bit of twice / 2; the code's exponent is k + 1 above 2^M.
  reg [E-1:0] k;
  reg [L:0] below;  // bits that go
  integer i;
  always @* begin
    k = 0;
    below = 0;
    for (i = M + 1; i < L; i = i + 1) if (twice[i+1]) k = i - M;
    for (i = 0; i < L; i = i + 1) if (i < k) below[i] = twice[i];
  end
  wire [L:0] kept = twice >> k;
  reg [M:0] significand;
  reg [E-1:0] k2;
  reg half, beyond2, minus2, rest2;
  always @(posedge clk) if (ce) begin
    significand <= kept[M+1:1];
    half <= kept[0];
    rest2 <= rest1 || |below;
    k2 <= k;
    beyond2 <= beyond1;
    minus2 <= minus1;
  end

  wire up = half && (rest2 || significand[0]);
  wire [E+M:0] base = k2 << M;
  wire [E+M:0] rounded = base + significand + up;
  wire [E+M-1:0] magnitude = beyond2 || rounded[E+M] ? {(E+M){1'b1}} : rounded[E+M-1:0];
  generate if (S) begin : signed_codes
    always @(posedge clk) if (ce) code <= {minus2 && |magnitude, magnitude};
  end else begin : unsigned_codes
    always @(posedge clk) if (ce) code <= minus2 ? {(E+M){1'b0}} : magnitude;
  end endgenerate
endmodule
