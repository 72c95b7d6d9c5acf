// Sliding windows over an image: beats of CF parts a pixel come in raster order into a ring of DEPTH pixels and go out
// window by window.
//
// For every output pixel OUTER passes; a pass goes over the window, rows then columns. OSTEP 0: at every cell all CF
// beats (dense convolutions; passes are alike, for different output channels). OSTEP 1: the beats are in GROUPS, and
// OUTER / GROUPS passes read the first group, as many the second one and so on (depthwise, pools: OUTER = GROUPS = CF).
// m_first and m_last mark a pass. Cells outside the image are PAD.
//
// Positions (ring address, pixel index, row, column) move by a constant that depends only on which loops end, so each
// is one adder. Loops are a beat ahead of what is read: whether the beat's pixel has come is known from a register
// (here), and going on is decided by that and by the room behind. Pixels are counted from the first image on, modulo
// 2^NW, of which every difference is less than a half: wcount have come in, and room is for those below limit, which is
// DEPTH behind the oldest that is still needed.
module qc_window #(parameter WIDTH = 8, H = 8, W = 8, CF = 1, OH = 8, OW = 8, KH = 3, KW = 3, SH = 1, SW = 1,
    DH = 1, DW = 1, PT = 1, PL = 1, PADDED = 1, OUTER = 1, OSTEP = 0, DEPTH = 24, BLOCK = 0,
    GROUPS = OSTEP ? CF : 1,
    parameter [WIDTH-1:0] PAD = 0) (
    input clk, input rst,
    input [WIDTH-1:0] s_tdata, input s_tvalid, output s_tready,
    output reg [WIDTH-1:0] m_tdata, output reg m_tvalid, output reg m_first, output reg m_last, input m_tready);
  `include "qc_math.vh"
  localparam INNER = CF / GROUPS, REPEAT = OUTER / GROUPS, WORDS = DEPTH * CF, AW = clog2(WORDS);
  localparam NW = clog2(H * W + DEPTH + (KH * DH + PT) * W + KW * DW) + 2;
  localparam IW = clog2((H > W ? H : W) + KH * DH + KW * DW + PT + PL + SH + SW) + 1;
  // How far it is from the first to the last cell of a window, in pixels, and back to the first beat of a window.
  localparam SPAN = (KH - 1) * DH * W + (KW - 1) * DW, BACK = CF - 1;
  localparam ORIGIN = -PT * W - PL, NEXT_ROW = SH * W - (OW - 1) * SW;
  localparam NEXT_IMAGE = H * W - (OH - 1) * SH * W - (OW - 1) * SW;
  // Icarus Verilog 11 takes a negative dividend in a constant function for an unsigned one of 64 bits.
  function integer wrapped(input integer v);
    wrapped = v < 0 ? (WORDS - (-v) % WORDS) % WORDS : v % WORDS;
  endfunction

  // ---- loops: c, kx, ky, o, ox, oy from the innermost out; a register says of each whether it is at its end, since a
  // comparison before the adders below would be the longest path of the circuit
  reg [clog2(INNER)-1:0] c;
  reg [clog2(KW)-1:0] kx;
  reg [clog2(KH)-1:0] ky;
  reg [clog2(OUTER)-1:0] o;
  reg [clog2(OW)-1:0] ox;
  reg [clog2(OH)-1:0] oy;
  reg at_c, at_x, at_y, at_o, at_ox, at_oy;
  wire end_c = at_c, end_x = end_c && at_x, end_y = end_x && at_y;
  wire end_g;  // of a group's passes
  wire end_o = end_y && at_o, end_ox = end_o && at_ox, end_oy = end_ox && at_oy;
  wire go;
  always @(posedge clk)
    if (rst) begin
      c <= 0; kx <= 0; ky <= 0; o <= 0; ox <= 0; oy <= 0;
      at_c <= INNER == 1; at_x <= KW == 1; at_y <= KH == 1; at_o <= OUTER == 1; at_ox <= OW == 1; at_oy <= OH == 1;
    end else if (go) begin
      c <= end_c ? 0 : c + 1'b1;
      at_c <= INNER == 1 || (!at_c && c == INNER - 2);
      if (end_c) begin kx <= end_x ? 0 : kx + 1'b1; at_x <= KW == 1 || (!at_x && kx == KW - 2); end
      if (end_x) begin ky <= end_y ? 0 : ky + 1'b1; at_y <= KH == 1 || (!at_y && ky == KH - 2); end
      if (end_y) begin o <= end_o ? 0 : o + 1'b1; at_o <= OUTER == 1 || (!at_o && o == OUTER - 2); end
      if (end_o) begin ox <= end_ox ? 0 : ox + 1'b1; at_ox <= OW == 1 || (!at_ox && ox == OW - 2); end
      if (end_ox) begin oy <= end_oy ? 0 : oy + 1'b1; at_oy <= OH == 1 || (!at_oy && oy == OH - 2); end
    end
  generate if (GROUPS > 1 && REPEAT > 1) begin : repeats
    reg [clog2(REPEAT)-1:0] again;
    assign end_g = end_y && again == REPEAT - 1;
    always @(posedge clk)
      if (rst) again <= 0;
      else if (go && end_y) again <= end_g ? 0 : again + 1'b1;
  end else begin : once
    assign end_g = end_y && GROUPS > 1;
  end endgenerate

  // ---- where that is
  localparam A0 = wrapped(1), A1 = wrapped(DW * CF - (INNER - 1)),
      A2 = wrapped((DH * W - (KW - 1) * DW) * CF - (INNER - 1)),
      A3 = wrapped(-SPAN * CF - (INNER - 1)), AG = wrapped(-SPAN * CF + 1),
      A4 = wrapped((SW - SPAN) * CF - BACK), A5 = wrapped((NEXT_ROW - SPAN) * CF - BACK),
      A6 = wrapped((NEXT_IMAGE - SPAN) * CF - BACK);
  wire [AW-1:0] step = !end_c ? A0 : !end_x ? A1 : !end_y ? A2 : !end_o ? (end_g ? AG : A3) : !end_ox ? A4
      : !end_oy ? A5 : A6;
  reg signed [NW-1:0] pixel, origin, image;  // origin: of the window in its image, which has room from `image` on
  wire signed [NW-1:0] by = !end_x ? DW : !end_y ? DH * W - (KW - 1) * DW : !end_o ? -SPAN : !end_ox ? SW - SPAN
      : !end_oy ? NEXT_ROW - SPAN : NEXT_IMAGE - SPAN;
  wire signed [NW-1:0] next_origin = origin + (!end_ox ? SW : NEXT_ROW);
  always @(posedge clk)
    if (rst) begin pixel <= ORIGIN; origin <= ORIGIN; image <= DEPTH; end
    else if (go) begin
      if (end_c) pixel <= pixel + by;
      if (end_oy) begin origin <= ORIGIN; image <= image + H * W; end
      else if (end_o) origin <= next_origin;
    end
  wire in_image;
  generate if (PADDED) begin : padded
    reg signed [IW-1:0] y, x;
    wire signed [IW-1:0] dx = !end_x ? DW : !end_o ? -(KW - 1) * DW : !end_ox ? SW - (KW - 1) * DW
        : -(OW - 1) * SW - (KW - 1) * DW;
    wire signed [IW-1:0] dy = !end_y ? DH : !end_ox ? -(KH - 1) * DH : !end_oy ? SH - (KH - 1) * DH
        : -(OH - 1) * SH - (KH - 1) * DH;
    always @(posedge clk)
      if (rst) begin y <= -PT; x <= -PL; end
      else if (go && end_c) begin x <= x + dx; if (end_x) y <= y + dy; end
    assign in_image = !y[IW-1] && y < H && !x[IW-1] && x < W;  // yosys makes y >= 0 a carry chain
  end else begin : whole
    assign in_image = 1'b1;
  end endgenerate

  // ---- the ring
  reg [AW-1:0] tail;
  reg [clog2(CF)-1:0] part;
  reg at_part;
  reg signed [NW-1:0] wcount, wnext, limit;  // wnext: one more
  wire signed [NW-1:0] above = wcount - limit, next_above = wnext - limit;
  // A beat that finds no room waits here: what the reader waits for does not reach the writer in the same cycle.
  reg [WIDTH-1:0] late;
  reg waits;
  wire [WIDTH-1:0] in_data = waits ? late : s_tdata;
  wire in_valid = waits || s_tvalid;
  assign s_tready = !waits;
  reg room;  // for a pixel that begins; late by a cycle where the reader gives up one
  wire put = in_valid && room, whole_pixel = put && at_part;
  always @(posedge clk)
    if (rst) room <= 1;
    else room <= whole_pixel ? next_above[NW-1] : above[NW-1];
  always @(posedge clk) begin
    if (s_tready) late <= s_tdata;
    if (rst) waits <= 0;
    else waits <= in_valid && !put;
  end
  wire ce = !m_tvalid || m_tready;
  wire ready;
  // The beat that is read when it goes: `idle` is the one before all others, which reads nothing.
  reg here, idle, covered, starts, ends;
  reg fresh;  // the next beat begins a pass
  reg [AW-1:0] address, far;  // and from it to where the loops are
  wire [AW:0] moved = address + far;
  reg signed [NW-1:0] wanted;
  wire signed [NW-1:0] lacks = wanted - wcount, next_lacks = pixel - wcount;  // negative: has come
  assign go = ready && here;
  always @(posedge clk)
    if (rst) begin
      here <= 1; idle <= 1; fresh <= 1; limit <= DEPTH; address <= wrapped(ORIGIN * CF); far <= 0;
    end else begin
      here <= go ? !in_image || next_lacks[NW-1] : here || lacks[NW-1];
      if (go) begin
        idle <= 0; fresh <= end_y; limit <= image + (origin[NW-1] ? {NW{1'b0}} : origin);
        address <= moved >= WORDS ? moved - WORDS : moved; far <= step;
        wanted <= pixel; covered <= in_image; starts <= fresh; ends <= end_y;
      end
    end
  // No word that counts is read while it is written (no_rw_check): its pixel is complete by then.
  reg [WIDTH-1:0] read;
  generate if (BLOCK) begin : block
    (* ram_style = "block", no_rw_check = 1 *) reg [WIDTH-1:0] ring [0:WORDS-1];
    always @(posedge clk) begin
      if (put) ring[tail] <= in_data;
      if (go) read <= ring[address];
    end
  end else begin : luts
    (* ram_style = "distributed" *) reg [WIDTH-1:0] ring [0:WORDS-1];
    always @(posedge clk) begin
      if (put) ring[tail] <= in_data;
      if (go) read <= ring[address];
    end
  end endgenerate
  always @(posedge clk)
    if (rst) begin tail <= 0; part <= 0; at_part <= CF == 1; wcount <= 0; wnext <= 1; end
    else begin
      if (put) begin
        tail <= tail == WORDS - 1 ? 0 : tail + 1'b1;
        part <= at_part ? 0 : part + 1'b1;
        at_part <= CF == 1 || (!at_part && part == CF - 2);
      end
      if (whole_pixel) begin wcount <= wnext; wnext <= wnext + 1'b1; end
    end

  // ---- what was read, then padding
  reg valid1, covered1, first1, last1;
  assign ready = !valid1 || ce;
  always @(posedge clk) begin
    if (go) begin covered1 <= covered; first1 <= starts; last1 <= ends; end
    if (ce) begin m_tdata <= covered1 ? read : PAD; m_first <= first1; m_last <= last1; end
    if (rst) begin valid1 <= 0; m_tvalid <= 0; end
    else begin
      if (ready) valid1 <= here && !idle;
      if (ce) m_tvalid <= valid1;
    end
  end
endmodule
