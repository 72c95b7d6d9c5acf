// x * y for a minifloat x and a minifloat or integer y (YE 0): significands are multiplied, exponents shift.
// Signs stay apart: with an integer y the product is p + n, p being complemented where the minifloat's sign n is minus;
// with a minifloat y it is (p ^ n...n) + n, which leaves the complement to the adder behind a register. n enters adders
// as a carry, so nothing is negated. S: signed; E: exponent bits.
// What six bits decide is a look-up, wider significands are adder rows (qc_mul).
module qc_mul_float #(parameter XB = 4, XS = 1, XE = 2, YB = 8, YS = 0, YE = 0,
    LX = XB - XS - XE + (1 << XE) - 1, LY = YE ? YB - YS - YE + (1 << YE) - 1 : YB, P = LX + LY + 1) (
    input [XB-1:0] x, input [YB-1:0] y, output signed [P-1:0] p, output n);
  localparam MX = XB - XS - XE, MY = YB - YS - YE, HE = YE ? (XE > YE ? XE : YE) + 1 : XE;
  function integer level(input integer code, input integer mantissa);  // of a code without its sign
    integer e;
    begin
      e = code >> mantissa;
      level = e == 0 ? code : (code - ((e - 1) << mantissa)) << (e - 1);
    end
  endfunction
  wire sx, sy;
  wire [MX:0] mx;
  wire [XE-1:0] hx;
  qc_fields #(.B(XB), .S(XS), .E(XE)) fields (.x(x), .sign(sx), .significand(mx), .shift(hx));
  wire signed [P-1:0] magnitude;  // of an integer y: with its sign
  genvar b;
  generate if (!YE) begin : integers
    wire signed [YB+MX+1:0] product;
    if (MX + 1 <= YB) begin : by_x
      qc_mul #(.XB(YB), .XS(YS), .YB(MX + 1), .YS(0)) mul (.x(y), .y(mx), .n(1'b0), .p(product));
    end else begin : by_y
      qc_mul #(.XB(MX + 1), .XS(0), .YB(YB), .YS(YS)) mul (.x(mx), .y(y), .n(1'b0), .p(product));
    end
    wire signed [P-1:0] wide = product;
    assign magnitude = wide <<< hx;
    assign sy = 1'b0;
  end else if (XB - XS + YB - YS <= 6) begin : look_up
    function [63:0] whole(input integer place);
      integer i, j;
      for (i = 0; i < 1 << (XB - XS); i = i + 1)
        for (j = 0; j < 1 << (YB - YS); j = j + 1)
          whole[(i << (YB - YS)) + j] = (level(i, MX) * level(j, MY)) >> place;
    endfunction
    wire [XB-XS+YB-YS-1:0] both = {x[XB-XS-1:0], y[YB-YS-1:0]};
    for (b = 0; b < P; b = b + 1) begin : place
      wire [63:0] known = whole(b);
      assign magnitude[b] = known[both];
    end
    assign sy = YS ? y[YB-1] : 1'b0;
  end else begin : floats
    wire [MY:0] my;
    wire [(YE?YE:1)-1:0] hy;
    wire [MX+MY+1:0] product;
    qc_fields #(.B(YB), .S(YS), .E(YE ? YE : 1)) others (.x(y), .sign(sy), .significand(my), .shift(hy));
    if (MX + MY + 2 <= 6) begin : few
      function [63:0] column(input integer place);
        integer i, j;
        for (i = 0; i < 2 << MX; i = i + 1)
          for (j = 0; j < 2 << MY; j = j + 1) column[(i << (MY + 1)) + j] = (i * j) >> place;
      endfunction
      wire [MX+MY+1:0] both = {mx, my};
      for (b = 0; b < MX + MY + 2; b = b + 1) begin : place
        wire [63:0] known = column(b);
        assign product[b] = known[both];
      end
    end else begin : wide_ones
      wire signed [MX+MY+2:0] sum;
      if (MX > MY) begin : by_y
        qc_mul #(.XB(MX + 1), .XS(0), .YB(MY + 1), .YS(0)) mul (.x(mx), .y(my), .n(1'b0), .p(sum));
      end else begin : by_x
        qc_mul #(.XB(MY + 1), .XS(0), .YB(MX + 1), .YS(0)) mul (.x(my), .y(mx), .n(1'b0), .p(sum));
      end
      assign product = sum[MX+MY+1:0];
    end
    wire [HE-1:0] shift;
    if (XE + YE <= 6) begin : looked_up
      function [63:0] added(input integer place);
        integer i, j;
        for (i = 0; i < 1 << XE; i = i + 1)
          for (j = 0; j < 1 << YE; j = j + 1) added[(i << YE) + j] = (i + j) >> place;
      endfunction
      wire [XE+YE-1:0] shifts = {hx, hy};
      for (b = 0; b < HE; b = b + 1) begin : place
        wire [63:0] known = added(b);
        assign shift[b] = known[shifts];
      end
    end else begin : summed
      assign shift = hx + hy;
    end
    wire [P-1:0] wide = product;
    assign magnitude = wide << shift;
  end endgenerate
  assign n = sx ^ sy;
  assign p = YE ? magnitude : magnitude ^ {P{n}};
endmodule
