"""A self-checking Verilog testbench for any module with streams: vectors in, answers compared, stalls at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Port:
    """One stream of the module under test: the stem of its signals, bits of a beat, beats of the whole test."""

    stem: str
    width: int
    beats: int
    marks: tuple[str, ...] = ()
    """Names of side signals of a bit each, in the bits above the data in the vector file."""

    @property
    def full(self) -> int:
        """Bits of a word in the vector file."""
        return self.width + len(self.marks)


def hex_words(words: Sequence[int]) -> str:
    """A $readmemh file. Verilator 5.006 drops a last line without newline, so there is always one."""
    return "".join(f"{word:x}\n" for word in words)


def testbench(
    module: str,
    instance: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    *,
    active_low: bool = False,
    master: Sequence[str] = (),
    master_ports: Sequence[str] = (),
) -> str:
    """Text of module `tb`, which reads in<i>.hex and out<i>.hex and prints PASS or FAIL with the cycles it took.

    instance: name and parameters, as `qc_add #(.LANES(1))`; module: a comment's title. Plusargs: +stall makes sources
    and sinks pause at random. active_low: clock and reset have AXI's names. master: more lines, which drive other ports
    (master_ports), count what they find wrong in `faults` and set `settled` when they are through.
    """
    clock, reset = ("aclk", "aresetn") if active_low else ("clk", "rst")
    lines = [
        f"// Self-checking test of {module}: prints PASS or FAIL. +stall: sources and sinks pause at random.",
        "`timescale 1ns/1ps",
        "module tb;",
        "  reg clk = 0, rst = 1, stall = 0;",
        "  reg [31:0] random = 32'h1234567, cycles = 0, bad = 0, first_out = 0;",
        "  always #5 clk = ~clk;",
    ]
    ports = [f".{clock}(clk)", f".{reset}({'!' if active_low else ''}rst)", *master_ports]
    begin, moves, drive, done, counts = [], [], [], [], []
    for i, port in enumerate(inputs):
        lines += [
            f"  reg [{port.full - 1}:0] in{i} [0:{port.beats - 1}]; reg [31:0] ni{i} = 0; reg vi{i} = 0, hi{i} = 0;",
            f"  wire ri{i}; wire [{port.full - 1}:0] di{i} = in{i}[ni{i} < {port.beats} ? ni{i} : 0];",
        ]
        ports += [f".{port.stem}_tdata(di{i}[{port.width - 1}:0])", f".{port.stem}_tvalid(vi{i})"]
        ports += [f".{port.stem}_tready(ri{i})", *_marks(port, f"di{i}")]
        begin.append(f'$readmemh("in{i}.hex", in{i});')
        moves.append(f"    if (vi{i} && ri{i}) ni{i} <= ni{i} + 1;")
        moves.append(f"    hi{i} <= vi{i} && !ri{i};")
        # A source that offers a beat keeps on offering it.
        drive.append(f"    vi{i} = ni{i} < {port.beats} && (!stall || hi{i} || random[{3 * i % 32}]);")
    for i, port in enumerate(outputs):
        lines += [
            f"  reg [{port.full - 1}:0] out{i} [0:{port.beats - 1}]; reg [31:0] no{i} = 0; reg ro{i} = 0; wire vo{i};",
            f"  wire [{port.full - 1}:0] do{i};",
        ]
        ports += [f".{port.stem}_tdata(do{i}[{port.width - 1}:0])", f".{port.stem}_tvalid(vo{i})"]
        ports += [f".{port.stem}_tready(ro{i})", *_marks(port, f"do{i}")]
        begin.append(f'$readmemh("out{i}.hex", out{i});')
        moves += [
            f"    if (vo{i} && ro{i}) begin",
            f"      if (do{i} !== out{i}[no{i}]) begin",
            "        bad <= bad + 1;",
            f'        if (bad < 5) $display("stream {i} beat %0d: %h, not %h", no{i}, do{i}, out{i}[no{i}]);',
            "      end",
            f"      no{i} <= no{i} + 1;",
            "    end",
        ]
        drive.append(f"    ro{i} = !stall || random[{(3 * i + 7) % 32}];")
        done.append(f"no{i} == {port.beats}")
        counts.append(f"no{i}")
    good = "bad == 0"
    if master:
        done.append("settled")
        good += " && faults == 0"
        lines += ["  reg settled = 0; reg [31:0] faults = 0;", *(f"  {line}" for line in master)]
    waiting = " + ".join([*counts, *(f"ni{i}" for i in range(len(inputs)))])
    lines += [
        f"  {instance} dut ({', '.join(ports)});",
        "  reg [31:0] seen = 0, idle = 0;",
        "  initial begin",
        *(f"    {line}" for line in begin),
        '    stall = $test$plusargs("stall");',
        "    repeat (4) @(posedge clk);",
        "    @(negedge clk) rst = 0;",
        "  end",
        "  always @(posedge clk) if (!rst) begin",
        "    cycles <= cycles + 1;",
        *moves,
        f"    seen <= {waiting};",
        f"    idle <= {waiting} == seen ? idle + 1 : 0;",
        f"    if (({' && '.join(done)}) || idle > IDLE) begin",
        f'      $display("%s cycles %0d bad %0d", ({" && ".join(done)}) && {good} ? "PASS" : "FAIL", cycles, bad);',
        "      $finish;",
        "    end",
        "  end",
        "  always @(negedge clk) begin",
        "    random = {random[30:0], random[31] ^ random[21] ^ random[1] ^ random[0]};",
        *drive,
        "  end",
        "endmodule",
        "",
    ]
    lines.insert(3, "  parameter IDLE = 1000000;  // cycles without a beat that are taken for a deadlock")
    return "\n".join(lines)


def _marks(port: Port, wire: str) -> list[str]:
    return [f".{name}({wire}[{port.width + k}])" for k, name in enumerate(port.marks)]


def recorder(facts: Mapping[str, Any], frames: int, stuck: int) -> str:
    """Module `tb` around a bundle's top that writes what comes out to rec<i>.hex. facts: the manifest's `fpga`."""
    inputs = [Port(p["stem"], p["lanes"] * p["container"], p["beats"] * frames) for p in facts["inputs"]]
    outputs = [Port(p["stem"], p["lanes"] * p["container"], p["beats"] * frames) for p in facts["outputs"]]
    text = testbench(facts["top"], facts["top"], inputs, outputs, active_low=True)
    opened = []
    for i, _ in enumerate(outputs):
        text = text.replace(f'    $readmemh("out{i}.hex", out{i});\n', f'    file{i} = $fopen("rec{i}.hex", "w");\n')
        first = text.index(f"      if (do{i} !== out{i}")
        last = text.index("      end\n", first) + len("      end\n")
        text = text[:first] + f'      $fdisplay(file{i}, "%h", do{i});\n' + text[last:]
        opened.append(f"  integer file{i};\n")
    text = text.replace('"PASS" : "FAIL"', '"DONE" : "STUCK"').replace("IDLE = 1000000", f"IDLE = {stuck}")
    return text.replace("module tb;\n", "module tb;\n" + "".join(opened), 1)
