"""What a circuit will be, before its files are written: folding, times and wires. Builds and cost models share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qcompiler.errors import BudgetError, UnsupportedError
from qcompiler.targets.fpga.fold import Folding, at_most, fastest, smallest
from qcompiler.targets.fpga.layers import Network
from qcompiler.targets.fpga.netlist import Netlist, netlist_of
from qcompiler.targets.fpga.parts import Part, cycles_of, limits_of, part_of
from qcompiler.targets.fpga.resources import Resources, module_resources, total
from qcompiler.targets.fpga.schedule import Schedule, schedule

TOP = "qc_top"
ROUNDS = 4


@dataclass(frozen=True)
class Plan:
    """A circuit for one part."""

    part: Part
    limits: Mapping[str, int]
    folding: Folding
    times: Schedule
    net: Netlist

    @property
    def resources(self) -> Resources:
        """Of everything, estimated."""
        return total(module_resources(instance.module, self.part.family) for instance in self.net.instances)


def plan_of(network: Network, options: Mapping[str, Any]) -> Plan:
    """Raises UnsupportedError for a rate out of reach, RecipeError for values of options."""
    part, limits = part_of(options), limits_of(options)
    if cycles := cycles_of(options):
        return _kept(network, cycles, part, limits)
    room = dict(limits)
    for _ in range(ROUNDS):  # forks, converters and queues are known only behind the folding: room is left for them
        try:
            folding = fastest(network, room, part.family)
        except BudgetError:  # the verdict says so, with what would fit
            return _planned(network, smallest(network, limits, part.family), part, limits)
        plan = _planned(network, folding, part, limits)
        over = {name: getattr(plan.resources, name) - limit for name, limit in limits.items()}
        if all(more <= 0 for more in over.values()):
            return plan
        room = {name: limit - max(0, over[name]) for name, limit in room.items()}
    return plan


def _kept(network: Network, cycles: int, part: Part, limits: Mapping[str, int]) -> Plan:
    """At most so many cycles from image to image: where engines wait for each other they are made faster than that. The
    fastest one where it is out of reach."""
    plan = _planned(network, at_most(network, cycles, limits["dsp"], part.family), part, limits)
    target = cycles
    while (late := plan.times.interval - cycles) > 0:
        target = min(target - late, max(engine.cycles for engine in plan.folding.engines.values()) - 1)
        try:
            plan = _planned(network, at_most(network, target, limits["dsp"], part.family), part, limits)
        except UnsupportedError:
            break
    return plan


def _planned(network: Network, folding: Folding, part: Part, limits: Mapping[str, int]) -> Plan:
    times = schedule(network, folding.engines, folding.lanes)
    net = netlist_of(TOP, network, folding.engines, folding.lanes, times)
    return Plan(part, limits, folding, times, net)
