"""Give every value of the assignment its scale and zero point.

Activations: from calibration statistics, by `method`; values that share parameters are searched as one, over the
statistics of the values that data movement starts from. Softmax outputs have the range 0..1, or a power of two below it
where calibration saw small ones only.
Weights: per channel, by `weight_method`. Other constants: their own range. Constants that lie on the grid that the
model came with keep it.

Method `fisher` is `mse` with every squared error weighed by the squared gradient there, element by element: the least
loss of the network's output instead of the least error of the value (qcompiler.calibrate.fisher; needs torch). What the
output does not depend on falls back to `mse`. So do the outputs themselves: a classifier cares little for large logits,
but whoever reads them does (resnet20 W4A4: 12.5 dB, with clipped logits 6.1 dB, top-1 alike). Measured with recipe
`fast`, top-1 by mse and by fisher: keyword spotter W4A4 .891 and .895, W3A3 .804 and .864 (3 draws), mobilenetv2 W4A4
.770 and .778 (2 draws), resnet20 as before. Source: Li et al. 2021, BRECQ, whose weights of a value's elements in a
learned reconstruction serve the search of its range here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler import assignment as decisions
from qcompiler.assignment import Assignment
from qcompiler.calibrate.fisher import Loss, fisher_histograms, loss_of, weight_importance
from qcompiler.calibrate.observers import Histogram
from qcompiler.calibrate.ranges import (
    METHODS,
    PERCENTILE,
    WEIGHTED_METHODS,
    away_from_ties,
    find_range,
    find_weight_range,
)
from qcompiler.calibrate.statistics import require
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.formats import Int, QuantParams, QuantSpec
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
    """Range of activations: minmax, percentile, percentile_ladder, mse, entropy, fisher; auto is mse."""
    percentile: float = PERCENTILE
    """Of method percentile: share of elements within the range, in percent."""
    weight_method: str = "auto"
    """Range of weights: minmax, percentile_ladder, mse or fisher; auto is mse, of integers of 8 bits or more minmax."""
    power: float = 2.4
    """Exponent of the error that a weight range of method mse minimises."""
    loss: str = "auto"
    """Of method fisher: kl (the outputs are logits), mse, or auto: kl for what looks like a classifier."""
    fisher_samples: int = 256
    """Of method fisher: calibration samples whose gradients are taken, at most."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """Fill `context.assignment.params`. Raises RecipeError when nothing was decided, CalibrationError without data."""
    assignment = context.assignment
    if assignment is None:
        raise RecipeError("no formats were chosen yet.", where="set_ranges", hint="Run the pass `decide` before it.")
    for method in (options.method, options.weight_method):
        if method not in (*METHODS, *WEIGHTED_METHODS, "auto"):
            known = ", ".join((*METHODS, *WEIGHTED_METHODS))
            raise RecipeError(f"`{method}` is no range method.", where="set_ranges", hint=f"Known: auto, {known}.")
    if options.loss not in ("auto", "kl", "mse") or options.fisher_samples < 1:
        hint = "`loss` is auto, kl or mse, `fisher_samples` at least 1."
        raise RecipeError("its options make no sense.", where="set_ranges", hint=hint)
    assignment.weight_method, assignment.weight_power = options.weight_method, options.power
    statistics = require(graph, assignment.activations, context)
    by_name = {value.name: value for value in graph.values()}
    outputs = {str(value.name) for value in graph.outputs}
    weighted, importance = _fisher(graph, assignment, options, context)
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
            histogram = _merged(graph, group, statistics.values)
            if method == "fisher" and not outputs & set(group):
                histogram = _cared_for(_merged(graph, group, weighted), histogram)
            params = find_range(histogram, spec, _plain(method), options.percentile)
        for member in group:
            if member in assignment.activations or member in assignment.constants:
                assignment.params[member] = params
                done.add(member)
    for name, spec in assignment.narrowed.items():
        if name in assignment.narrowed_params:
            continue
        method = assignment.methods.get(name, options.method)
        # Its own values count, not those that it shares codes with before this second rounding.
        histogram = statistics[name]
        if method == "fisher":
            histogram = _cared_for(weighted.get(name), histogram)
        params = find_range(histogram, spec, _plain(method), options.percentile)
        wide = assignment.params.get(name)
        assignment.narrowed_params[name] = params if wide is None else away_from_ties(params, wide)
    for name, spec in assignment.constants.items():
        if name in done:
            continue
        array = graph.const(by_name[name])
        assert array is not None
        assignment.params[name] = constant_params(assignment, spec, array, importance.get(name))
    return graph


def constant_params(
    assignment: Assignment, spec: QuantSpec, array: NDArray, importance: NDArray | None = None
) -> QuantParams:
    """Parameters of a constant float32 [...] by the assignment's method: auto is mse, of integers of 8 bits or more
    minmax.

    importance: of method fisher, float [...]; without it that is mse with squares.
    """
    method = assignment.weight_method
    if method == "auto":
        method = "minmax" if spec.format.bits >= 8 and isinstance(spec.format, Int) else "mse"
    if method == "fisher":  # the Fisher information is the curvature, so it weighs squares
        return find_weight_range(array, spec, "mse", 2.0, importance=importance)
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


def _plain(method: str) -> str:
    """The method of `find_range`."""
    return "mse" if method in ("auto", *WEIGHTED_METHODS) else method


def _fisher(
    graph: Graph, assignment: Assignment, options: Options, context: Context
) -> tuple[dict[str, Histogram], dict[str, NDArray]]:
    """What method fisher needs: weighted statistics of activations, and the importance of every weight's elements."""
    every = dict.fromkeys((*assignment.activations, *assignment.narrowed))
    outputs = {value.name for value in graph.outputs}
    asked = [
        name
        for name in every
        if assignment.methods.get(name, options.method) == "fisher" and not outputs & set(assignment.group_of(name))
    ]
    read = [member for name in asked for member in (name, *decisions.sources(graph, assignment.group_of(name)))]
    constant = {value.name for value in graph.values() if value.is_initializer()}
    names = [name for name in dict.fromkeys(read) if name not in constant]
    of_weights = options.weight_method == "fisher"
    weights = [name for name in assignment.constants if of_weights and name not in assignment.params]
    if not names and not weights:
        return {}, {}
    if context.samples is None:
        raise CalibrationError("method fisher needs calibration data.", where="set_ranges")
    loss: Loss = loss_of(graph) if options.loss == "auto" else options.loss  # type: ignore[assignment]
    context.facts["set_ranges"] = {"fisher_loss": loss}
    found = fisher_histograms(graph, context.samples, names, loss, options.fisher_samples, context) if names else {}
    if not weights:
        return found, {}
    return found, weight_importance(graph, context.samples, weights, loss, options.fisher_samples, context)


def _cared_for(weighted: Histogram | None, plain: Histogram) -> Histogram:
    """The weighted histogram, with the range of all data; the plain one where no element has a weight."""
    if weighted is None or not weighted.counts.any():
        return plain
    return dataclasses.replace(weighted, minimum=plain.minimum, maximum=plain.maximum)


def _probability(spec: QuantSpec, seen: Histogram) -> QuantParams:
    """Range 0..1; where no probability on the calibration data comes near that, a power of two at least twice the
    largest (of a thousand unlikely classes a step of 1/256 would leave nothing)."""
    fmt = spec.format
    halvings = max(0, math.floor(-math.log2(max(seen.maximum, 2.0**-fmt.bits))) - 1)
    return QuantParams(fmt, np.float32(2.0 ** -(fmt.bits + halvings)), np.int64(fmt.min))


def _merged(graph: Graph, group: list[str], statistics: Mapping[str, Histogram]) -> Histogram:
    """Of all members of a group that move no data; weighted if they are (constants, which are not, are left out)."""
    if len(group) == 1 and group[0] in statistics:
        return statistics[group[0]]
    weighted = any(histogram.counts.dtype.kind == "f" for histogram in statistics.values())
    merged = Histogram.weighted() if weighted else Histogram()
    by_name = {value.name: value for value in graph.values()}
    for name in decisions.sources(graph, group):
        if name in statistics:
            merged.merge(statistics[name])
        elif not weighted and (array := graph.const(by_name[name])) is not None:
            merged.add(array)
    return merged
