// Constant functions, included into modules.
function integer clog2(input integer v);  // bits that tell v things apart, at least 1
  integer i;
  begin
    clog2 = 0;
    for (i = v - 1; i > 0; i = i >> 1) clog2 = clog2 + 1;
    if (clog2 == 0) clog2 = 1;
  end
endfunction
function integer ceil_div(input integer a, input integer b); ceil_div = (a + b - 1) / b; endfunction
