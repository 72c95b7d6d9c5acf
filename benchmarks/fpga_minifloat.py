"""LUTs of the multipliers and encoders of minifloats, by yosys: the table targets/fpga/minifloat_prices.json.

    python -m benchmarks.fpga_minifloat [--only e2m1] [--table FILE] [--encoders]

Modules are synthesized for xc7 one by one within a few runs of yosys, about 10 minutes in all. --encoders: what
qc_encode takes beside the formula of resources.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path

from benchmarks.assets import arguments
from qcompiler.cli.console import table
from qcompiler.targets.fpga.build import RTL
from qcompiler.targets.fpga.resources import Resources, encoder
from qcompiler.targets.fpga.synthesis import modules

SHAPES = [(1, m) for m in range(1, 8)] + [(2, m) for m in range(7)] + [(3, m) for m in range(6)]
"""Exponent and mantissa bits of all formats, signed or not, whose levels have at most 16 bits."""
EXTRA = ((4, 3),)
"""Beyond these: no integer graph has it."""
WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16)
BATCH = 40
PORTS = "input clk, input ce, input [31:0] x, y, output [63:0] o"
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


def synthesized(texts: Mapping[str, str]) -> dict[str, Resources]:
    """Resources by name. texts: name -> Verilog of a module `pK`, K its place."""
    files = {f"rtl/{file.name}": file.read_bytes() for file in RTL.iterdir()}
    names = list(texts)
    found: dict[str, Resources] = {}
    for first in range(0, len(names), BATCH):
        some = {f"p{first + k}": name for k, name in enumerate(names[first : first + BATCH])}
        real = modules(files, {own: texts[name] for own, name in some.items()}, "xc7", dsp=False)
        found |= {name: real[own] for own, name in some.items()}
        print(f"{min(first + BATCH, len(names))} of {len(names)}", file=sys.stderr, flush=True)
    return found


def product_module(name: str, p: Mapping[str, int]) -> str:
    """A wrapper of qc_mul_float."""
    given = ", ".join(f".{key}({value})" for key, value in p.items())
    inside = f"qc_mul_float #({given}) m (.x(x[{p['XB'] - 1}:0]), .y(y[{p['YB'] - 1}:0]), .p(o[62:0]), .n(o[63]));"
    return f"module {name} ({PORTS});\n  {inside}\nendmodule\n"


def encoder_module(name: str, p: Mapping[str, int]) -> str:
    """A wrapper of qc_encode."""
    given = ", ".join(f".{key}({value})" for key, value in p.items())
    inside = f"qc_encode #({given}) m (.clk(clk), .ce(ce), .value(x[{p['F'] - 1}:0]), .rest(y[0]), .code(o));"
    return f"module {name} ({PORTS});\n  {inside}\nendmodule\n"


def main() -> int:
    """Write the table, or print what encoders take."""
    given = arguments(__doc__, table={"type": Path, "default": None}, encoders={"action": "store_true"})
    if given.encoders:
        cases = dict(encoders())
        real = synthesized({name: encoder_module(f"p{k}", p) for k, (name, p) in enumerate(cases.items())})
        rows = []
        for name, p in cases.items():
            formula = encoder(p["B"], p["S"], p["E"], p["F"])
            rows.append([name, formula.lut, real[name].lut, formula.ff, real[name].ff])
        print(table(["format, width", "lut formula", "lut yosys", "ff formula", "ff yosys"], rows))
        return 0
    found = synthesized({name: product_module(f"p{k}", p) for k, (name, p) in enumerate(products(given.only))})
    prices = {name: one.lut for name, one in sorted(found.items())}
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
