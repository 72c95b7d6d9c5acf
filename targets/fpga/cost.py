"""Costs of the fpga target for searches: look-up tables at a rate of images.

`cost` is of a node alone, as the smallest engine that keeps the rate, so costs add up over nodes; forks, converters and
queues between engines are in `whole`, which plans the circuit as `build` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qcompiler.cost import Cost, Widths, Work, bops
from qcompiler.errors import UnsupportedError
from qcompiler.graph.model import Graph
from qcompiler.targets.fpga.fold import at_most
from qcompiler.targets.fpga.parts import CLOCK, cycles_of, part_of
from qcompiler.targets.fpga.plan import plan_of
from qcompiler.targets.fpga.reader import network_of
from qcompiler.targets.fpga.resources import Resources, origin
from qcompiler.targets.shared.boundary import strip_boundary
from qcompiler.targets.shared.sample import Sample, SampleCost

RATE = 1000
"""Images a second where the options give none: a search needs one, so that widths do not change how often it folds."""
PRICED = ("conv", "dense", "add", "activation", "softmax", "pool", "mean")


class FpgaCost(SampleCost):
    """A cost model (qcompiler/cost.py) at one rate of images.

    latency: milliseconds of an image at 100 MHz, of whole graphs only. resources: `lut`, `ff`, `bram` (18 Kbit), `dsp`,
    `bops`, `unpriced`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.cycles = cycles_of(options) or CLOCK // RATE
        self.family = part_of(options).family
        self.options = {"fps": RATE, "dsp": 0, **{k: v for k, v in options.items() if v is not None}}
        super().__init__()

    @property
    def origin(self) -> str:
        """Where the prices of modules are from."""
        return origin(self.family)

    def _priced(self, work: Work, widths: Widths) -> Cost:
        if work.kind not in PRICED:
            return Cost(resources={"unpriced": 1})
        sample = Sample("fixed")
        sample.add(work, widths)
        try:
            network = network_of(strip_boundary(sample.graph))
            found = at_most(network, self.cycles, 0, self.family).resources
        except UnsupportedError:  # the rate, or the node, is out of reach: `build` says so by name
            return Cost(resources={"unpriced": 1})
        return _cost(found, 0.0, {"bops": bops(work, widths)})

    def whole(self, graph: Graph) -> Cost:
        """Of an INTEGER graph. Raises UnsupportedError for what has no engine, or for a rate out of reach."""
        plan = plan_of(network_of(strip_boundary(graph)), self.options)
        return _cost(plan.resources, plan.times.latency / CLOCK * 1e3, {})


def _cost(found: Resources, latency: float, more: Mapping[str, float]) -> Cost:
    resources = {"lut": found.lut, "ff": found.ff, "bram": found.bram, "dsp": found.dsp, **more}
    return Cost(latency, 0, 0, resources)
