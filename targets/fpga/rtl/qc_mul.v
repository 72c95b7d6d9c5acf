// x * y in adder rows of two bits of y each, the structure that carry chains like; a plain * costs twice as much.
// XS and YS: signed. A minifloat multiplier has the same ports and its own module.
module qc_mul #(parameter XB = 8, XS = 0, YB = 4, YS = 1) (
    input [XB-1:0] x, input [YB-1:0] y, output signed [XB+YB:0] p);
  localparam A = XB + (XS ? 0 : 1), ROWS = (YB + 1) / 2, P = XB + YB + 1;
  localparam HALF = ROWS == 4 ? 2 : ROWS;  // rows of a chain: four are two pairs, one adder shorter
  wire signed [A+1:0] a = XS ? {{2{x[XB-1]}}, x} : {{(A+2-XB){1'b0}}, x};
  genvar r;
  generate for (r = 0; r < ROWS; r = r + 1) begin : row
    localparam TWO = 2 * r + 1 < YB, TOP = r == ROWS - 1 && YS, FIRST = r < HALF ? 0 : HALF;
    wire signed [A+1:0] one = y[2*r] ? a : {(A+2){1'b0}};
    wire signed [A+1:0] two = TWO && y[TWO ? 2*r+1 : 0] ? a <<< 1 : {(A+2){1'b0}};
    wire signed [A+1:0] both;
    if (TWO && TOP) begin : minus assign both = one - two; end
    else if (TOP) begin : neg assign both = -one; end
    else begin : plus assign both = one + two; end
    wire signed [P-1:0] sum;
    if (r == FIRST) begin : begins
      assign sum = both;
    end else begin : adds
      // The low bits are done already: only what lies above them is added.
      wire signed [P-1:0] below = row[r-1].sum;
      wire signed [P-2*(r-FIRST)-1:0] above = $signed(below[P-1:2*(r-FIRST)]) + both;
      assign sum = {above, below[2*(r-FIRST)-1:0]};
    end
  end endgenerate
  generate if (HALF == ROWS) begin : chain
    assign p = row[ROWS-1].sum;
  end else begin : halves
    wire signed [P-1:0] low = row[HALF-1].sum, high = row[ROWS-1].sum;
    wire signed [P-2*HALF-1:0] above = $signed(low[P-1:2*HALF]) + high;
    assign p = {above, low[2*HALF-1:0]};
  end endgenerate
endmodule
