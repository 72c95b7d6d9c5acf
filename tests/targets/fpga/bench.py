"""One module of the library in every simulator found: vectors in, the oracle's answers out, with and without stalls."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qcompiler.targets.fpga.simulators import INSTALL, NAMES, found, run_testbench
from qcompiler.targets.fpga.testbench import Port, hex_words, testbench

RTL = Path(__file__).resolve().parents[3] / "targets" / "fpga" / "rtl"
BOTH = "QCOMPILER_FPGA"
"""Environment variable that asks for every module in every simulator: Verilator compiles each for seconds."""


def _missing(name: str) -> str:
    if name not in found():
        return f"no {name}. {INSTALL}"
    return "" if name == "iverilog" or os.environ.get(BOTH) else f"module by module in {name}: make test-fpga"


SIMULATORS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(_missing(name)), reason=_missing(name))) for name in NAMES
]


def literal(name: str, value: int | str) -> str:
    """A parameter as Verilog has it."""
    if isinstance(value, str):
        return f'"{value}"'
    if name == "PAD":
        return f"{max(1, value.bit_length())}'h{value:x}"
    return f"{'-' if value < 0 else ''}{'64' if abs(value) >= 1 << 31 else '32'}'sd{abs(value)}"


def simulate(
    simulator: str,
    folder: Path,
    module: str,
    parameters: Mapping[str, int | str],
    inputs: Sequence[tuple[Port, Sequence[int]]],
    outputs: Sequence[tuple[Port, Sequence[int]]],
    memories: Mapping[str, Sequence[int]] | None = None,
) -> list[int]:
    """Cycles of the test without and with stalls; fails where a beat differs or the module is stuck."""
    for stem, ports in (("in", inputs), ("out", outputs)):
        for i, (_, words) in enumerate(ports):
            (folder / f"{stem}{i}.hex").write_text(hex_words(words))
    for name, words in (memories or {}).items():
        (folder / name).write_text(hex_words(words))
    given = ", ".join(f".{key}({literal(key, value)})" for key, value in parameters.items())
    text = testbench(module, f"{module} #({given})", [port for port, _ in inputs], [port for port, _ in outputs])
    (folder / "tb.v").write_text(text)
    sources = ["tb.v", *sorted(str(path) for path in RTL.glob("*.v"))]
    said = run_testbench(simulator, sources, folder, str(RTL), ((), ("+stall",)))
    assert all("PASS" in text for text in said), said
    return [int(text.split("cycles")[1].split()[0]) for text in said]


def combinational(simulator: str, folder: Path, module: str, given: dict[str, int], body: str, want: list[int],
                  inputs: str, width: int) -> None:  # fmt: skip
    """All inputs {x, y} in turn; `body` connects them and sets `got`; fails where one differs from `want`."""
    (folder / "want.hex").write_text(hex_words([value & ((1 << width) - 1) for value in want]))
    parameters = ", ".join(f".{key}({value})" for key, value in given.items())
    text = f"""`timescale 1ns/1ps
module tb;
  reg [31:0] at; reg [31:0] bad = 0; {inputs}
  wire signed [{width - 1}:0] got; reg [{width - 1}:0] want [0:{len(want) - 1}];
  {module} #({parameters}) dut ({body});
  initial begin
    $readmemh("want.hex", want);
    for (at = 0; at < {len(want)}; at = at + 1) begin
      #1 if (got !== want[at]) begin
        bad = bad + 1;
        if (bad < 5) $display("%0d: %h, not %h", at, got, want[at]);
      end
    end
    $display("%s bad %0d", bad == 0 ? "PASS" : "FAIL", bad);
    $finish;
  end
endmodule
"""
    (folder / "tb.v").write_text(text)
    sources = ["tb.v", *sorted(str(path) for path in RTL.glob("*.v"))]
    said = run_testbench(simulator, sources, folder, str(RTL))
    assert "PASS" in said[0], said


def simulate_mac(
    simulator: str,
    folder: Path,
    given: Mapping[str, int],
    a: NDArray[np.int64],
    w: NDArray[np.int64],
    want: NDArray[np.int64],
) -> tuple[int, int]:
    """Cycles of qc_mac without stalls, and beats of its input. given: its parameters, but for WORDS and WFILE. a: codes
    [pixels, groups, passes, lanes]; w: [groups, passes, PE, SIMD]; want: sums in the order in which they come."""
    marks = np.zeros(a.shape[:3], int)
    marks[..., 0], marks[..., -1] = 1, 2
    lanes, pe = a.shape[-1], w.shape[2]
    width, acc = lanes * given["AB"], pe * given["ACC"]
    data = [
        beat | int(mark) << width
        for beat, mark in zip(words(a.reshape(-1), given["AB"], lanes), marks.reshape(-1), strict=True)
    ]
    answers = words(want.reshape(-1), given["ACC"], pe)
    free, _ = simulate(
        simulator, folder, "qc_mac", {**given, "WORDS": w.shape[0] * w.shape[1], "WFILE": "w.hex"},
        [(Port("s", width, len(data), ("s_first", "s_last")), data)], [(Port("m", acc, len(answers)), answers)],
        {"w.hex": words(w.reshape(-1), given["WB"], pe * w.shape[3])},
    )  # fmt: skip
    return free, len(data)


def words(codes: Sequence[int], bits: int, lanes: int = 1) -> list[int]:
    """Codes as beats, the first in the low bits."""
    mask = (1 << bits) - 1
    return [
        sum((int(code) & mask) << (bits * i) for i, code in enumerate(codes[first : first + lanes]))
        for first in range(0, len(codes), lanes)
    ]


def requantizers(
    bias: NDArray[np.int64], multiplier: NDArray[np.int64], shift: NDArray[np.int64], lanes: int
) -> tuple[list[int], int, int]:
    """(words of qc_requant's memory, the shift that all channels are brought to, bits of a multiplier); biases of 14
    bits. Arrays: [channels]."""
    common = int(shift.max())
    moved = [int(m) << (common - int(s)) if m else 0 for m, s in zip(multiplier, shift, strict=True)]
    bits = max(m.bit_length() for m in moved)
    entries = [(int(b) & 0x3FFF) << bits | m for b, m in zip(bias, moved, strict=True)]
    table = [
        sum(entry << ((14 + bits) * k) for k, entry in enumerate(entries[first : first + lanes]))
        for first in range(0, len(entries), lanes)
    ]
    return table, common, bits
