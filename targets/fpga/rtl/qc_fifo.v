// A queue with valid/ready on both sides: DEPTH words (at least 2) and one in its output register.
// BLOCK asks for block RAM, else look-up tables hold the words. No word is read while it is written (no_rw_check).
module qc_fifo #(parameter WIDTH = 8, DEPTH = 2, BLOCK = 0) (
    input clk, input rst,
    input [WIDTH-1:0] s_tdata, input s_tvalid, output s_tready,
    output reg [WIDTH-1:0] m_tdata, output reg m_tvalid, input m_tready);
  `include "qc_math.vh"
  localparam AW = clog2(DEPTH), NW = clog2(DEPTH + 1);
  reg [AW-1:0] head, tail;
  reg [NW-1:0] count;
  assign s_tready = count != DEPTH;
  wire put = s_tvalid && s_tready;
  wire move = !m_tvalid || m_tready;
  wire get = move && count != 0;
  generate if (BLOCK) begin : block
    (* ram_style = "block", no_rw_check = 1 *) reg [WIDTH-1:0] mem [0:DEPTH-1];
    always @(posedge clk) begin
      if (put) mem[tail] <= s_tdata;
      if (get) m_tdata <= mem[head];
    end
  end else begin : luts
    (* ram_style = "distributed" *) reg [WIDTH-1:0] mem [0:DEPTH-1];
    always @(posedge clk) begin
      if (put) mem[tail] <= s_tdata;
      if (get) m_tdata <= mem[head];
    end
  end endgenerate
  always @(posedge clk)
    if (rst) begin head <= 0; tail <= 0; count <= 0; m_tvalid <= 0; end
    else begin
      if (put) tail <= tail == DEPTH - 1 ? 0 : tail + 1'b1;
      if (get) head <= head == DEPTH - 1 ? 0 : head + 1'b1;
      count <= count + put - get;
      if (move) m_tvalid <= count != 0;
    end
endmodule
