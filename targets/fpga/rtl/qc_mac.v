// Products of activations and weights, summed: PE sums of SIMD products a beat, from a first to a last beat.
//
// Weight word n belongs to the n-th beat of an output pixel: PE x SIMD weights, those of one sum together.
// DEPTHWISE: SIMD is 1 and sum p takes lane p of the beat. DSP: one multiplier block a product.
// WE, AE: exponent bits where weights or activations are minifloats, else 0. WM: integer weights are sign and magnitude
// (qc_mul_int; not with WE, AE or DSP). The products of all these are a sum and a carry; every adder takes one carry
// and hands another one on, so that no adder is added to the tree.
module qc_mac #(parameter PE = 1, SIMD = 1, WB = 4, AB = 8, AS = 0, ACC = 24, WORDS = 1, DEPTHWISE = 0, DSP = 0,
    WE = 0, AE = 0, WM = 0, BLOCK = 0, WFILE = "weights.hex", LANES = DEPTHWISE ? PE : SIMD) (
    input clk, input rst,
    input [LANES*AB-1:0] s_tdata, input s_tvalid, input s_first, input s_last, output s_tready,
    output reg [PE*ACC-1:0] m_tdata, output reg m_tvalid, input m_tready);
  `include "qc_math.vh"
  localparam LW = WE ? WB - 1 - WE + (1 << WE) - 1 : WM ? WB - 1 : WB, LA = AE ? AB - AS - AE + (1 << AE) - 1 : AB;
  localparam L = SIMD == 1 ? 0 : clog2(SIMD), PW = LW + LA + 1, D = L + 2 + BLOCK;
  localparam CARRY = (WE || AE || WM) && !DSP, BARE = WE && AE && !DSP;
  reg due;  // a sum is complete: only then is there anything to wait for
  wire ce = !due || !m_tvalid || m_tready;
  assign s_tready = ce;

  reg [clog2(WORDS)-1:0] word;
  reg [PE*SIMD*WB-1:0] first_read;
  wire [PE*SIMD*WB-1:0] w;
  wire [LANES*AB-1:0] a;
  reg [LANES*AB-1:0] a1;
  always @(posedge clk) begin
    if (ce) a1 <= s_tdata;
    if (rst) word <= 0;
    else if (ce && s_tvalid) word <= word == WORDS - 1 ? 0 : word + 1'b1;
  end
  generate if (BLOCK) begin : block
    (* rom_style = "block", ram_style = "block" *) reg [PE*SIMD*WB-1:0] weights [0:WORDS-1];
    initial $readmemh(WFILE, weights);
    reg [PE*SIMD*WB-1:0] w2;
    reg [LANES*AB-1:0] a2;
    always @(posedge clk) if (ce) begin first_read <= weights[word]; w2 <= first_read; a2 <= a1; end
    assign w = w2;
    assign a = a2;
  end else begin : luts
    (* logic_block = 1 *) reg [PE*SIMD*WB-1:0] weights [0:WORDS-1];
    initial $readmemh(WFILE, weights);
    always @(posedge clk) if (ce) first_read <= weights[word];
    assign w = first_read;
    assign a = a1;
  end endgenerate
  reg [D-1:0] valid, first;
  reg [D-2:0] last;
  always @(posedge clk)
    if (rst) begin valid <= 0; due <= 0; end
    else if (ce) begin
      valid <= {valid[D-2:0], s_tvalid};
      first <= {first[D-2:0], s_first};
      last <= {last, s_last};
      due <= valid[D-2] && last[D-2];
    end

  genvar p, i, l;
  generate for (p = 0; p < PE; p = p + 1) begin : pe
    for (l = 0; l <= L; l = l + 1) begin : level
      for (i = 0; i < ((SIMD - 1) >> l) + 1; i = i + 1) begin : node
        reg signed [PW+l-1:0] sum;
        reg carry;
        // Products of two minifloats are magnitudes, and the carry is their sign.
        wire signed [PW+l-1:0] value = BARE && l == 0 ? sum ^ {(PW+l){carry}} : sum;
      end
    end
    for (i = 0; i < SIMD; i = i + 1) begin : product
      wire [AB-1:0] x = a[(DEPTHWISE ? p : i)*AB +: AB];
      wire [WB-1:0] y = w[(p*SIMD+i)*WB +: WB];
      wire signed [PW-1:0] xy;
      wire carry;
      if (DSP) begin : dsp
        wire signed [LA:0] one;
        wire signed [LW:0] other;
        if (AE) begin : activation qc_level #(.B(AB), .S(AS), .E(AE)) level (.x(x), .level(one)); end
        else begin : code assign one = $signed({AS ? x[AB-1] : 1'b0, x}); end
        if (WE) begin : weight qc_level #(.B(WB), .S(1), .E(WE)) level (.x(y), .level(other)); end
        else begin : number assign other = $signed(y); end
        assign xy = one * other;
        assign carry = 1'b0;
      end else if (WE) begin : weight_float
        qc_mul_float #(.XB(WB), .XS(1), .XE(WE), .YB(AB), .YS(AS), .YE(AE)) mul (.x(y), .y(x), .p(xy), .n(carry));
      end else if (AE) begin : activation_float
        qc_mul_float #(.XB(AB), .XS(AS), .XE(AE), .YB(WB), .YS(1), .YE(0)) mul (.x(x), .y(y), .p(xy), .n(carry));
      end else begin : integers
        qc_mul_int #(.WB(WB), .AB(AB), .AS(AS), .WM(WM)) mul (.a(x), .w(y), .p(xy), .n(carry));
      end
      always @(posedge clk) if (ce) begin level[0].node[i].sum <= xy; level[0].node[i].carry <= carry; end
    end
    for (l = 1; l <= L; l = l + 1) begin : adders
      for (i = 0; i < ((SIMD - 1) >> l) + 1; i = i + 1) begin : node
        wire signed [PW+l-1:0] one = level[l-1].node[2*i].value;
        if (2 * i + 1 < ((SIMD - 1) >> (l - 1)) + 1) begin : two
          wire signed [PW+l-1:0] other = level[l-1].node[2*i+1].value;
          wire [PW+l:0] with_carry = {one, 1'b1} + {other, level[l-1].node[2*i].carry};
          always @(posedge clk) if (ce) begin
            level[l].node[i].sum <= CARRY ? $signed(with_carry[PW+l:1]) : one + other;
            level[l].node[i].carry <= level[l-1].node[2*i+1].carry;
          end
        end else begin : alone
          always @(posedge clk) if (ce) begin
            level[l].node[i].sum <= one;
            level[l].node[i].carry <= level[l-1].node[2*i].carry;
          end
        end
      end
    end
    reg signed [ACC-1:0] acc;
    wire signed [ACC-1:0] kept = first[D-1] ? {ACC{1'b0}} : acc;
    wire signed [ACC-1:0] more = level[L].node[0].value;
    // more + kept + carry: as a difference, for what a minuend is yosys adds no LUT before the carry chain.
    wire [ACC:0] with_carry = {more, level[L].node[0].carry} - {~kept, 1'b1};
    wire signed [ACC-1:0] now = CARRY ? $signed(with_carry[ACC:1]) : kept + more;
    always @(posedge clk) begin
      if (ce && valid[D-1]) acc <= now;
      if (ce && due) m_tdata[p*ACC +: ACC] <= now;
    end
  end endgenerate
  always @(posedge clk)
    if (rst) m_tvalid <= 0;
    else if (ce && due) m_tvalid <= 1;
    else if (m_tready) m_tvalid <= 0;
endmodule
