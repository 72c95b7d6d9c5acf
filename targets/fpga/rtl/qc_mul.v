// x * y in adder rows of two bits of y each, the structure that carry chains like; a plain * costs twice as much.
// XS and YS: signed. N: where n is set p is the complement of the product, which costs no LUT: those of the rows have
// an input left. 1 is then missing from -x * y, for an adder behind to take as its carry. L: a y of 0 with n set stands
// for 2^YB, for which the last row has a choice instead of one more adder.
module qc_mul #(parameter XB = 8, XS = 0, YB = 4, YS = 1, N = 0, L = 0) (
    input [XB-1:0] x, input [YB-1:0] y, input n, output signed [XB+YB:0] p);
  localparam A = XB + (XS ? 0 : 1), ROWS = (YB + 1) / 2, P = XB + YB + 1;
  localparam HALF = ROWS == 4 ? 2 : ROWS;  // rows of a chain: four are two pairs, one adder shorter
  wire signed [A+1:0] a = XS ? {{2{x[XB-1]}}, x} : {{(A+2-XB){1'b0}}, x};
  // Complements are added, and the complement of a sum is that and 1.
  wire signed [1:0] carry = {1'b0, n};
  wire lowest = L && n && y == 0;
  genvar r;
  generate for (r = 0; r < ROWS; r = r + 1) begin : row
    localparam TWO = 2 * r + 1 < YB, TOP = r == ROWS - 1 && YS, FIRST = r < HALF ? 0 : HALF;
    localparam LAST = L && r == ROWS - 1;
    wire signed [A+1:0] one = y[2*r] ? a : LAST && !TWO && lowest ? a <<< 1 : {(A+2){1'b0}};
    wire signed [A+1:0] two = TWO && y[TWO ? 2*r+1 : 0] ? a <<< 1 : LAST && TWO && lowest ? a <<< 2 : {(A+2){1'b0}};
    wire signed [A+1:0] both;
    if (N) begin : signs
      wire m = TOP ? !n : n;
      wire signed [1:0] in = {1'b0, m};
      wire signed [A+1:0] flipped = one ^ {(A+2){n}}, ones = {(A+2){n}}, negated = one ^ {(A+2){m}};
      if (TWO) begin : pair  // bit 0 is that of one alone
        wire signed [A:0] high = flipped[A+1:1], other = two[A+1:1] ^ {(A+1){m}}, upper = high + other + in;
        assign both = {upper, flipped[0]};
      end else if (TOP) begin : neg assign both = ones + negated + in; end
      else begin : plus assign both = flipped; end
    end else if (TWO && TOP) begin : minus assign both = one - two; end
    else if (TOP) begin : neg assign both = -one; end
    else begin : plus assign both = one + two; end
    wire signed [P-1:0] sum;
    if (r == FIRST) begin : begins
      assign sum = both;
    end else begin : adds
      // The low bits are done already: only what lies above them is added.
      wire signed [P-1:0] below = row[r-1].sum;
      wire signed [P-2*(r-FIRST)-1:0] old = $signed(below[P-1:2*(r-FIRST)]);
      wire signed [P-2*(r-FIRST)-1:0] above;
      if (N) begin : signs  // old + both + n: as a difference, yosys keeps old where it needs no LUT before the carry
        wire signed [P-2*(r-FIRST)-1:0] less = ~both;
        wire [P-2*(r-FIRST):0] difference = {old, n} - {less, 1'b1};
        assign above = difference[P-2*(r-FIRST):1];
      end
      else begin : plain assign above = old + both; end
      assign sum = {above, below[2*(r-FIRST)-1:0]};
    end
  end endgenerate
  generate if (HALF == ROWS) begin : chain
    assign p = row[ROWS-1].sum;
  end else begin : halves
    wire signed [P-1:0] low = row[HALF-1].sum, high = row[ROWS-1].sum;
    wire signed [P-2*HALF-1:0] old = $signed(low[P-1:2*HALF]);
    wire signed [P-2*HALF-1:0] above;
    if (N) begin : signs assign above = old + high + carry; end
    else begin : plain assign above = old + high; end
    assign p = {above, low[2*HALF-1:0]};
  end endgenerate
endmodule
