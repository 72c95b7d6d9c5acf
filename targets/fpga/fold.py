"""How much of every layer is done at a time: the least circuit that keeps a rate, or the fastest within limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from qcompiler.errors import BudgetError, UnsupportedError
from qcompiler.targets.fpga.engines import BLOCK_BITS, Engine, Fold, codings, divisors, folds
from qcompiler.targets.fpga.layers import Layer, Network, Stream
from qcompiler.targets.fpga.resources import Resources, engine_resources, total

BLOCK = {"xc7": BLOCK_BITS, "ecp5": 2048}
"""Bits above which a memory takes a block RAM: the LUTs that hold as many are then a larger share of a part."""
IO_CODES = 4
"""Codes of a beat of the circuit's inputs and outputs, at most: 64 bits at the top."""


@dataclass(frozen=True)
class Folding:
    """engines by the name of their output; lanes by name of inputs, `out NAME` of outputs."""

    cycles: int
    engines: Mapping[str, Engine]
    lanes: Mapping[str, int]
    family: str = "xc7"

    @property
    def resources(self) -> Resources:
        """Of all engines; forks, converters and queues come with the netlist."""
        return total(engine_resources(engine, self.family) for engine in self.engines.values())


def at_most(network: Network, cycles: int, dsps: int = 0, family: str = "xc7") -> Folding:
    """The cheapest folding with at most so many cycles an image; at most `dsps` multiplier blocks.

    Raises UnsupportedError for a rate out of reach.
    """
    engines = {layer.output.name: _cheapest(layer, cycles, family) for layer in network.layers}
    left = dsps
    if left:  # where a block saves most look-up tables it is spent first
        ways: list[tuple[float, str, int, Engine]] = []
        for name, engine in engines.items():
            if engine.layer.weights is not None and engine.layer.kind in ("dense", "depthwise"):
                blocks = Engine(engine.layer, replace(engine.fold, dsp=True, signs=0))
                saved = engine_resources(engine, family).lut - engine_resources(blocks, family).lut
                count = engine_resources(blocks, family).dsp
                if count:  # a product that is too narrow for a block stays in LUTs
                    ways.append((saved / count, name, count, blocks))
        for gain, name, count, blocks in sorted(ways, key=lambda way: (-way[0], way[1])):
            if gain > 0 and count <= left:
                engines[name], left = blocks, left - count
    lanes = {name: _io_lanes(stream, cycles) for name, stream in network.inputs.items()}
    lanes |= {f"out {name}": _io_lanes(stream, cycles) for name, stream in network.outputs.items()}
    return Folding(cycles, engines, lanes, family)


def smallest(network: Network, limits: Mapping[str, int], family: str = "xc7") -> Folding:
    """One product at a time in every layer, but for layers that the slowest one leaves time for nothing else."""
    return at_most(network, max(Engine(layer, Fold()).cycles for layer in network.layers), limits.get("dsp", 0), family)


def fastest(network: Network, limits: Mapping[str, int], family: str = "xc7") -> Folding:
    """The folding with the fewest cycles an image within limits (lut, bram, dsp). Raises BudgetError."""

    def fits(cycles: int) -> Folding | None:
        try:
            found = at_most(network, cycles, limits.get("dsp", 0), family)
        except UnsupportedError:
            return None
        return found if not excess(found.resources, limits) else None

    best: Folding | None = smallest(network, limits, family)
    assert best is not None
    slowest = best.cycles
    if excess(best.resources, limits):
        over = excess(best.resources, limits)
        wanting = ", ".join(f"{what} {have} of {limit}" for what, have, limit in over)
        raise BudgetError(
            f"the smallest circuit for this network is too large: {wanting}.",
            where="target `fpga`",
            hint="Give it more, a larger --part, fewer bits (--precision w4a4), or a smaller network.",
        )
    low, high = 0, slowest  # fails, fits
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        found = fits(middle)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def excess(found: Resources, limits: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """(what, need, limit) of everything that is more than its limit."""
    needs = {"lut": found.lut, "ff": found.ff, "bram": found.bram, "dsp": found.dsp}
    return [(name, needs[name], limit) for name, limit in limits.items() if needs[name] > limit]


def _cheapest(layer: Layer, cycles: int, family: str) -> Engine:
    engines = [
        Engine(layer, replace(fold, block=BLOCK[family], signs=signs))
        for fold in folds(layer, cycles)
        for signs in codings(layer)
    ]
    if layer.kind == "sum":
        assert layer.window is not None
        pixel = cycles // prod(layer.window.input)  # sums that leave more slowly would stop what comes in
        engines = [Engine(one.layer, replace(one.fold, queue=one.drain > pixel)) for one in engines]
    return min(engines, key=lambda engine: (engine_resources(engine, family).lut, engine.cycles))


def _io_lanes(stream: Stream, cycles: int) -> int:
    fitting = [d for d in divisors(stream.channels) if d <= IO_CODES]
    return next((d for d in fitting if stream.codes // d <= cycles), fitting[-1])
