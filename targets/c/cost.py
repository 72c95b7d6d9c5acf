"""Costs of the c target: flash, RAM and instructions, without a measurement on this machine.

`whole` plans the graph as `build` does, so bytes of constants and of the arena are those of the bundle, and code,
stack and instructions the bundle's own estimates (footprint.py, instructions.py: fitted to a cross compiler's and an
emulator's figures, see rates.json). `cost` is of a node alone: constants and instructions add up over nodes to about
those of the whole, peaks do not: the arena is placed by lifetimes, so a limit of RAM is to be held against `whole`.
"""

from __future__ import annotations

from typing import Any

from qcompiler.cost import Cost, Widths, Work, bops, value_bytes
from qcompiler.graph.model import Graph
from qcompiler.graph.state import state_pairs
from qcompiler.targets.c import footprint
from qcompiler.targets.c.build import plan
from qcompiler.targets.c.emit import Sources
from qcompiler.targets.c.fit import constants_by_node
from qcompiler.targets.c.instructions import estimate, read_rates
from qcompiler.targets.c.machine import PACKED, SCALAR
from qcompiler.targets.c.state import state_bytes, states_of
from qcompiler.targets.shared.boundary import strip_boundary
from qcompiler.targets.shared.lower import check_operators, lower
from qcompiler.targets.shared.sample import Sample, SampleCost

ARITHMETIC = "fixed"
CODE_ERROR, STACK_ERROR = 0.1, 0.3
"""Code and stack are estimated, so budgets leave these shares of them free: in linked images (docs/results.md) code was
up to 7 % larger and stack up to 28 %."""


class CCost(SampleCost):
    """A cost model (qcompiler/cost.py). packed: as with option `pack`, weights of 2 to 4 bits stay packed. in_bands: as
    with `optimize_for` memory.

    latency is 0: how long an instruction takes is the board's matter. resources: `flash_bytes` (of a node: its
    constants alone), `ram_bytes` (arena, states and stack; whole graphs only), `code_bytes`, `instructions` (of a
    Cortex-M4), `flash_error` and `ram_error` (what a linked image may take more), `bops`, `unpriced`.
    """

    def __init__(self, packed: bool = False, in_bands: bool = False) -> None:
        self.packed, self.in_bands = packed, in_bands
        self.machine = PACKED if packed else SCALAR
        self.rates = read_rates()
        super().__init__()

    @property
    def origin(self) -> str:
        """Where the rates of code and instructions are from."""
        return footprint.Rates.read().origin

    def _priced(self, work: Work, widths: Widths) -> Cost:
        sample = Sample(ARITHMETIC)
        name = sample.add(work, widths)
        # Not stripped: codes between two nodes lie as kernels want them, those of a boundary are copied first.
        program = lower(sample.graph, self.machine)
        size = constants_by_node(program).get(name, 0)
        found = {entry["node"]: entry["instructions"] for entry in estimate(program, self.rates)}
        twice = 2 if work.kind == "move" and work.op_type != "Resize" else 1  # a copy's sample is two
        resources = {"flash_bytes": size, "instructions": found.get(name, 0) / twice, "bops": bops(work, widths)}
        return Cost(0.0, size, value_bytes(work, widths), resources)

    def whole(self, graph: Graph, *, code: bool = True) -> Cost:
        """Of an INTEGER graph. code: generate the sources, for code and stack (seconds); else `flash_bytes` are the
        constants and `ram_bytes` arena and states alone. Raises UnsupportedError for operators without a lowering."""
        check_operators(graph, "c")
        stripped = strip_boundary(graph)
        states = state_pairs(graph)
        program = plan(stripped, self.machine, states, self.in_bands)
        constants = program.constant_bytes()
        spent = sum(entry["instructions"] for entry in estimate(program, self.rates))
        resources: dict[str, Any] = {"instructions": spent}
        if not code:
            kept = state_bytes(states_of(stripped, states))
            resources |= {"flash_bytes": constants, "ram_bytes": program.arena_bytes + kept}
            return Cost(0.0, constants, program.arena_bytes, resources)
        sources = Sources(stripped, program, "model", False, False)
        kept = state_bytes(sources.states)
        arguments = [len(call.arguments) for call in program.calls]
        guess = footprint.estimate(
            sources.kernels(), arguments, program.arena_bytes, constants, footprint.Rates.read(), kept
        )
        resources |= {"flash_bytes": guess.flash, "ram_bytes": guess.ram, "code_bytes": guess.code}
        resources |= {"flash_error": round(CODE_ERROR * guess.code), "ram_error": round(STACK_ERROR * guess.stack)}
        return Cost(0.0, constants, program.arena_bytes, resources)
