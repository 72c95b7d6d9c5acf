"""LUTs of the multipliers and encoders of minifloats, by yosys: the table targets/fpga/minifloat_prices.json.

    python -m benchmarks.fpga_minifloat [--only e2m1] [--table FILE] [--encoders]

Modules are synthesized for xc7 one by one within a few runs of yosys, about 10 minutes in all. --encoders: what
qc_encode takes beside the formula of resources.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path

from benchmarks.assets import arguments
from benchmarks.fpga import count
from qcompiler.cli.console import table
from qcompiler.targets.fpga.build import RTL
from qcompiler.targets.fpga.resources import encoder

SHAPES = [(1, m) for m in range(1, 8)] + [(2, m) for m in range(7)] + [(3, m) for m in range(6)]
"""Exponent and mantissa bits of all formats, signed or not, whose levels have at most 16 bits."""
EXTRA = ((4, 3),)
"""Beyond these: no integer graph has it."""
WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16)
BATCH = 40
FLOW = "synth_xilinx -family xc7 -noiopad -noclkbuf -nodsp -flatten -top top"
HOW = (
    "LUTs of qc_mul_float by its operands (a minifloat's sign costs nothing or one LUT; uint: without a sign), each "
    "module synthesized alone: yosys 0.23, synth_xilinx -family xc7 -nodsp; LUT cells of any size."
)


def products(only: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Names of pairs, and the parameters of qc_mul_float."""
    shapes = [*SHAPES, *EXTRA]
    for i, (e, m) in enumerate(shapes):
        x = {"XB": 1 + e + m, "XS": 1, "XE": e}
        pairs = [(f"e{f}m{n}", {"YB": 1 + f + n, "YS": 1, "YE": f}) for f, n in shapes[i:]]
        pairs += [(f"{'' if s else 'u'}int{b}", {"YB": b, "YS": s, "YE": 0}) for b in WIDTHS for s in (0, 1)]
        for name, y in pairs:
            if not only or only in (f"e{e}m{m}", name):
                yield f"e{e}m{m},{name}", {**x, **y}


def encoders() -> Iterator[tuple[str, dict[str, int]]]:
    """Names and parameters of qc_encode."""
    for signed, e, m in ((1, 2, 1), (0, 2, 2), (1, 3, 2), (1, 3, 0), (0, 3, 5), (1, 2, 5), (1, 1, 3)):
        for width in (20, 28):
            name = f"{'' if signed else 'u'}e{e}m{m},{width}"
            yield name, {"F": width, "B": signed + e + m, "S": signed, "E": e}


def synthesized(modules: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Resources by name. modules: name -> (ports of a module, its body)."""
    names = list(modules)
    found: dict[str, dict[str, int]] = {}
    for first in range(0, len(names), BATCH):
        some = names[first : first + BATCH]
        text = [
            f"(* keep_hierarchy *) module p{k} ({modules[name][0]}); {modules[name][1]} endmodule"
            for k, name in enumerate(some)
        ]
        with tempfile.TemporaryDirectory() as work:
            (Path(work) / "some.v").write_text("\n".join(text))
            reads = f"read_verilog -defer {RTL}/qc_mul_float.v {RTL}/qc_mul.v {RTL}/qc_fields.v {RTL}/qc_encode.v"
            top = "module top (input clk, input ce, input [31:0] x, y, output [63:0] o);" + "".join(
                f" (* keep *) p{k} i{k} (.clk(clk), .ce(ce), .x(x), .y(y));" for k in range(len(some))
            )
            (Path(work) / "top.v").write_text(top + " endmodule\n")
            script = f"{reads}\nread_verilog some.v top.v\n{FLOW}\ntee -q -o stat.json stat -json\n"
            (Path(work) / "s.ys").write_text(script)
            subprocess.run(["yosys", "-q", "s.ys"], cwd=work, check=True, capture_output=True)
            stat = json.loads((Path(work) / "stat.json").read_text())["modules"]
        for k, name in enumerate(some):
            found[name] = count(stat[f"\\p{k}"]["num_cells_by_type"])
        print(f"{min(first + BATCH, len(names))} of {len(names)}", file=sys.stderr, flush=True)
    return found


def product_module(p: Mapping[str, int]) -> tuple[str, str]:
    """Ports and body of a wrapper."""
    given = ", ".join(f".{key}({value})" for key, value in p.items())
    ports = "input clk, input ce, input [31:0] x, y, output [63:0] o"
    return ports, f"qc_mul_float #({given}) m (.x(x[{p['XB'] - 1}:0]), .y(y[{p['YB'] - 1}:0]), .p(o[62:0]), .n(o[63]));"


def encoder_module(p: Mapping[str, int]) -> tuple[str, str]:
    """Ports and body of a wrapper."""
    given = ", ".join(f".{key}({value})" for key, value in p.items())
    ports = "input clk, input ce, input [31:0] x, y, output [63:0] o"
    return ports, f"qc_encode #({given}) m (.clk(clk), .ce(ce), .value(x[{p['F'] - 1}:0]), .rest(y[0]), .code(o));"


def main() -> int:
    """Write the table, or print what encoders take."""
    given = arguments(__doc__, table={"type": Path, "default": None}, encoders={"action": "store_true"})
    if given.encoders:
        cases = dict(encoders())
        real = synthesized({name: encoder_module(p) for name, p in cases.items()})
        rows = []
        for name, p in cases.items():
            formula = encoder(p["B"], p["S"], p["E"], p["F"])
            rows.append([name, formula.lut, real[name]["lut"], formula.ff, real[name]["ff"]])
        print(table(["format, width", "lut formula", "lut yosys", "ff formula", "ff yosys"], rows))
        return 0
    found = synthesized({name: product_module(p) for name, p in products(given.only)})
    prices = {name: one["lut"] for name, one in sorted(found.items())}
    head = {"description": HOW, "device": "xc7", "date": date.today().isoformat(),
            "command": "python -m benchmarks.fpga_minifloat --table targets/fpga/minifloat_prices.json"}  # fmt: skip
    text = json.dumps({**head, "multipliers": prices}, indent=1) + "\n"
    if given.table is None:
        print(text)
    else:
        given.table.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
