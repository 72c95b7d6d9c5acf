// A minifloat's code taken apart: sign, significand with its leading bit, and the places that this is shifted up.
module qc_fields #(parameter B = 4, S = 1, E = 2, M = B - S - E) (
    input [B-1:0] x, output sign, output [M:0] significand, output [E-1:0] shift);
  wire [E-1:0] e = x[M +: E];
  assign sign = S ? x[B-1] : 1'b0;
  generate if (M == 0) begin : power assign significand = |e; end
  else begin : digits assign significand = {|e, x[(M ? M : 1)-1:0]}; end endgenerate
  // max(e - 1, 0) as a look-up: a subtraction would get a carry chain.
  function [(1<<E)-1:0] column(input integer place);
    integer i;
    for (i = 0; i < 1 << E; i = i + 1) column[i] = i > 0 ? ((i - 1) >> place) & 1 : 0;
  endfunction
  genvar b;
  generate for (b = 0; b < E; b = b + 1) begin : place
    wire [(1<<E)-1:0] known = column(b);
    assign shift[b] = known[e];
  end endgenerate
endmodule
