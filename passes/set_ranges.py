"""Give every value of the assignment its scale and zero point.

Activations: from calibration statistics, by `method`; values that share parameters are searched as one, over the
statistics of the values that data movement starts from. Softmax outputs have the range 0..1, or a power of two below it
where calibration saw small ones only.
Weights: per channel, by `weight_method`. Other constants: their own range. Constants that lie on the grid that the
model came with keep it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler import assignment as decisions
from qcompiler.assignment import Assignment
from qcompiler.calibrate.observers import Histogram
from qcompiler.calibrate.ranges import METHODS, PERCENTILE, away_from_ties, find_range, find_weight_range
from qcompiler.calibrate.statistics import Statistics, require
from qcompiler.context import Context
from qcompiler.errors import RecipeError
from qcompiler.formats import QuantParams, QuantSpec
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)
AFTER = {
    "assign_bits": "widths come before ranges",
    "logarithms": "formats come before ranges",
    "awq": "weights come before their ranges",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    method: str = "auto"
    """Range of activations: minmax, percentile, percentile_ladder, mse, entropy; auto is mse."""
    percentile: float = PERCENTILE
    """Of method percentile: share of elements within the range, in percent."""
    weight_method: str = "auto"
    """Range of weights: minmax, percentile_ladder or mse; auto is minmax at 8 bits or more, mse below."""
    power: float = 2.4
    """Exponent of the error that a weight range of method mse minimises."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """Fill `context.assignment.params`. Raises RecipeError when nothing was decided, CalibrationError without data."""
    assignment = context.assignment
    if assignment is None:
        raise RecipeError("no formats were chosen yet.", where="set_ranges", hint="Run the pass `decide` before it.")
    for method in (options.method, options.weight_method):
        if method not in (*METHODS, "auto"):
            raise RecipeError(
                f"`{method}` is no range method.", where="set_ranges", hint=f"Known: auto, {', '.join(METHODS)}."
            )
    assignment.weight_method, assignment.weight_power = options.weight_method, options.power
    statistics = require(graph, assignment.activations, context)
    by_name = {value.name: value for value in graph.values()}
    probabilities = {node.outputs[0].name for node in graph.nodes("Softmax", "CacheSoftmax")}

    done: set[str] = set(assignment.params)
    for name, spec in assignment.activations.items():
        if name in done:
            continue
        group = assignment.group_of(name)
        if name in probabilities and len(group) == 1 and not spec.symmetric:
            params = _probability(spec, statistics[name])
        else:
            method = assignment.methods.get(name, options.method)
            histogram = _merged(graph, group, statistics)
            params = find_range(histogram, spec, "mse" if method == "auto" else method, options.percentile)
        for member in group:
            if member in assignment.activations or member in assignment.constants:
                assignment.params[member] = params
                done.add(member)
    for name, spec in assignment.narrowed.items():
        if name in assignment.narrowed_params:
            continue
        method = assignment.methods.get(name, options.method)
        # Its own values count, not those that it shares codes with before this second rounding.
        params = find_range(statistics[name], spec, "mse" if method == "auto" else method, options.percentile)
        wide = assignment.params.get(name)
        assignment.narrowed_params[name] = params if wide is None else away_from_ties(params, wide)
    for name, spec in assignment.constants.items():
        if name in done:
            continue
        array = graph.const(by_name[name])
        assert array is not None
        assignment.params[name] = constant_params(assignment, spec, array)
    return graph


def constant_params(assignment: Assignment, spec: QuantSpec, array: NDArray) -> QuantParams:
    """Parameters of a constant float32 [...] by the assignment's method: auto is minmax at 8 bits or more, else mse."""
    method = assignment.weight_method
    if method == "auto":
        method = "minmax" if spec.format.bits >= 8 else "mse"
    return find_weight_range(array, spec, method, assignment.weight_power)


def change_weights(graph: Graph, assignment: Assignment, renamed: Iterable[tuple[str, str]]) -> None:
    """Ranges of weights that a pass has changed; renamed: names before and after, see graph/folding.py.

    A constant that nothing reads any more leaves the assignment.
    """
    renamed = list(renamed)
    for before, after in renamed:
        assignment.constants[after] = assignment.constants[before]
    initializers = graph.ir.initializers
    for _, after in renamed:
        array = graph.const(initializers[after])
        assert array is not None
        assignment.params[after] = constant_params(assignment, assignment.constants[after], array)
    for name in [name for name in assignment.constants if name not in initializers]:
        del assignment.constants[name]
        assignment.params.pop(name, None)


def _probability(spec: QuantSpec, seen: Histogram) -> QuantParams:
    """Range 0..1; where no probability on the calibration data comes near that, a power of two at least twice the
    largest (of a thousand unlikely classes a step of 1/256 would leave nothing)."""
    fmt = spec.format
    halvings = max(0, math.floor(-math.log2(max(seen.maximum, 2.0**-fmt.bits))) - 1)
    return QuantParams(fmt, np.float32(2.0 ** -(fmt.bits + halvings)), np.int64(fmt.min))


def _merged(graph: Graph, group: list[str], statistics: Statistics) -> Histogram:
    if len(group) == 1:
        return statistics[group[0]]
    merged = Histogram()
    by_name = {value.name: value for value in graph.values()}
    for name in decisions.sources(graph, group):
        if name in statistics.values:
            merged.merge(statistics[name])
        elif (array := graph.const(by_name[name])) is not None:
            merged.add(array)
    return merged
