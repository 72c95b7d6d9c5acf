"""The fpga target: a streaming circuit, one engine a layer, with the oracle's bits.

What is where: reader.py reads the integer graph into layers.py (what each engine computes, in which
order its codes come), fold.py
chooses how much is done at a time, engines.py gives modules their parameters and memories, resources.py their price,
schedule.py their times and the queues before joins, netlist.py their wires; build.py ties all together. The modules
are Verilog in rtl/. testbench.py, simulators.py and host.py run a bundle here; report.py is the bill, cost.py the cost
model for searches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qcompiler.cost import CostModel
from qcompiler.target import Target
from qcompiler.targets.fpga.build import build, check
from qcompiler.targets.fpga.capabilities import CAPABILITIES
from qcompiler.targets.fpga.parts import PARTS


def _host(path: Path, manifest: Mapping[str, Any]) -> Callable[[Mapping[str, NDArray]], list[NDArray]]:
    from qcompiler.targets.fpga.host import HostSession

    return HostSession(path, manifest).run


def _cost(options: Mapping[str, Any]) -> tuple[CostModel, str]:
    from qcompiler.targets.fpga.cost import RATE, FpgaCost

    model = FpgaCost(options)
    rate = options.get("fps") or f"{RATE} (no --fps was given)"
    return model, f"LUTs at {rate} images a second; prices of modules from {model.origin}"


TARGET = Target(
    "fpga",
    CAPABILITIES,
    build,
    options={
        "part": f"what the circuit has to fit: {', '.join(PARTS)}; default: xc7z020",
        "lut": "LUTs that it may take; default: all of the part's",
        "bram": "18-Kbit block RAMs that it may take; default: all",
        "dsp": "multiplier blocks that it may take; default: all; 0 puts products into LUTs",
        "fps": "images a second at 100 MHz; default: as many as fit",
        "exact_cost": "count what yosys makes of the circuit, too: minutes",
        "vectors": "images in the testbench; default: 2",
    },
    check=check,
    runtime=False,
    host=_host,
    cost=_cost,
)
