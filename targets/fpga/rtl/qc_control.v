// Registers on AXI4-Lite: start, busy, done, and gates that let in so many images for each start.
//   0x00  write: 1 start (when not busy), 2 clear done, 4 interrupts on, 8 interrupts off
//         read:  bit 0 busy, bit 1 done, bit 2 whether done interrupts
//   0x04  images of a start, up to 65535; 1 after reset
//   0x08  images that are through since the last start, of the first output
//   0x0c  cycles from the last start to done
//   0x10  51430001 hexadecimal
// in_last and out_last tell that the last beat of an image passes; open lets beats into the circuit.
module qc_control #(parameter INPUTS = 1, OUTPUTS = 1) (
    input clk, input rst,
    input [4:0] s_axil_awaddr, input s_axil_awvalid, output s_axil_awready,
    input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb, input s_axil_wvalid, output s_axil_wready,
    output [1:0] s_axil_bresp, output reg s_axil_bvalid, input s_axil_bready,
    input [4:0] s_axil_araddr, input s_axil_arvalid, output s_axil_arready,
    output reg [31:0] s_axil_rdata, output [1:0] s_axil_rresp, output reg s_axil_rvalid, input s_axil_rready,
    input [INPUTS-1:0] in_last, input [OUTPUTS-1:0] out_last, output [INPUTS-1:0] open, output interrupt);
  reg busy, done, enabled;
  reg [15:0] images, count;
  reg [31:0] cycles;
  wire write = s_axil_awvalid && s_axil_wvalid && !s_axil_bvalid;
  wire read = s_axil_arvalid && !s_axil_rvalid;
  wire command = write && s_axil_awaddr[4:2] == 0 && s_axil_wstrb[0];
  wire start = command && s_axil_wdata[0] && !busy && images != 0;
  assign s_axil_awready = write;
  assign s_axil_wready = write;
  assign s_axil_arready = read;
  assign s_axil_bresp = 2'b00;
  assign s_axil_rresp = 2'b00;
  assign interrupt = done && enabled;

  wire [OUTPUTS-1:0] through;  // outputs that have all their images
  wire finished = busy && &through;
  genvar i;
  generate for (i = 0; i < INPUTS; i = i + 1) begin : source
    reg [15:0] left;
    assign open[i] = busy && left != 0;
    always @(posedge clk)
      if (rst) left <= 0;
      else if (start) left <= images;
      else if (in_last[i] && open[i]) left <= left - 1'b1;
  end
  for (i = 0; i < OUTPUTS; i = i + 1) begin : sink
    reg [15:0] left;
    assign through[i] = left == 0;
    always @(posedge clk)
      if (rst) left <= 0;
      else if (start) left <= images;
      else if (out_last[i] && left != 0) left <= left - 1'b1;
  end endgenerate

  always @(posedge clk)
    if (rst) begin
      busy <= 0; done <= 0; enabled <= 0; images <= 1; count <= 0; cycles <= 0; s_axil_bvalid <= 0; s_axil_rvalid <= 0;
    end else begin
      if (start) busy <= 1;
      else if (finished) busy <= 0;
      if (finished) done <= 1;
      else if (start || (command && s_axil_wdata[1])) done <= 0;
      if (command && (s_axil_wdata[2] || s_axil_wdata[3])) enabled <= s_axil_wdata[2];
      if (write && s_axil_awaddr[4:2] == 1 && !busy) begin
        if (s_axil_wstrb[0]) images[7:0] <= s_axil_wdata[7:0];
        if (s_axil_wstrb[1]) images[15:8] <= s_axil_wdata[15:8];
      end
      if (start) count <= 0;
      else if (out_last[0] && !through[0]) count <= count + 1'b1;
      if (start) cycles <= 0;
      else if (busy && !finished) cycles <= cycles + 1'b1;
      if (write) s_axil_bvalid <= 1;
      else if (s_axil_bready) s_axil_bvalid <= 0;
      if (read) s_axil_rvalid <= 1;
      else if (s_axil_rready) s_axil_rvalid <= 0;
    end
  always @(posedge clk) if (read)
    case (s_axil_araddr[4:2])
      0: s_axil_rdata <= {29'b0, enabled, done, busy};
      1: s_axil_rdata <= {16'b0, images};
      2: s_axil_rdata <= {16'b0, count};
      3: s_axil_rdata <= cycles;
      default: s_axil_rdata <= 32'h51430001;
    endcase
endmodule
