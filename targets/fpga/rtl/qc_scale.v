// x * M + OFFSET for constants, by tables of four bits of x each.
module qc_scale #(parameter XB = 8, XS = 0, W = 32, parameter signed [63:0] M = 1, OFFSET = 0) (
    input [XB-1:0] x, output signed [W-1:0] p);
  localparam DIGITS = (XB + 3) / 4;
  wire [4*DIGITS-1:0] wide = x;
  genvar d;
  generate for (d = 0; d < DIGITS; d = d + 1) begin : digit
    // The top digit of a signed x counts codes from half its range on as negative.
    localparam RANGE = d == DIGITS - 1 && XS ? 1 << (XB - 4 * d) : 32;
    localparam signed [63:0] FIRST = d == 0 ? OFFSET : 0;
    reg signed [63:0] value;
    always @* case (wide[4*d +: 4])
      4'd0: value = FIRST;
      4'd1: value = FIRST + (1 - (1 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd2: value = FIRST + (2 - (2 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd3: value = FIRST + (3 - (3 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd4: value = FIRST + (4 - (4 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd5: value = FIRST + (5 - (5 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd6: value = FIRST + (6 - (6 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd7: value = FIRST + (7 - (7 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd8: value = FIRST + (8 - (8 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd9: value = FIRST + (9 - (9 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd10: value = FIRST + (10 - (10 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd11: value = FIRST + (11 - (11 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd12: value = FIRST + (12 - (12 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd13: value = FIRST + (13 - (13 >= RANGE / 2 ? RANGE : 0)) * M;
      4'd14: value = FIRST + (14 - (14 >= RANGE / 2 ? RANGE : 0)) * M;
      default: value = FIRST + (15 - (15 >= RANGE / 2 ? RANGE : 0)) * M;
    endcase
    wire signed [W-1:0] placed = value <<< (4 * d);
    wire signed [W-1:0] sum;
    if (d == 0) begin : begins
      assign sum = placed;
    end else begin : adds
      assign sum = digit[d-1].sum + placed;
    end
  end endgenerate
  assign p = digit[DIGITS-1].sum;
endmodule
