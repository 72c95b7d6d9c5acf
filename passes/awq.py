"""AWQ: scale up the input channels of weights that meet large activations, so that rounding hurts them less.

For each value x that products with weights read (qcompiler/graph/folding.py says what is allowed), with
a_j = mean |x_j|, the exponent r in {0, 1/steps, .., 1 - 1/steps} is searched for which

    s_j = max(a_j^r, 1e-4), divided by sqrt(max(s) min(s))
    sum over the products of |X (Q(W diag(s)) diag(1/s) - W)|^2 / |X W|^2

is least, with the format and range method of each weight; X are rows that are drawn from the calibration data. x is
divided by s in the normalization, or in the product with weights, that makes it. r = 0 changes nothing, so the sum is
never larger than before. Differences from the authors' code: the error is that of each product's own output, not of the
whole attention or MLP block; Q is the weight's own format, symmetric, per output channel.

`clip` then searches, for each output channel, the largest |w| that is kept: 1, .95, .. .55 of the range, by the same
error; what is found stays in the assignment, where set_ranges keeps it.

Run it between `decide` and `calibrate`. Float output is equal up to float32 rounding. Source: Lin et al. 2024, AWQ,
and its code (auto_scale, auto_clip).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.assignment import Assignment
from qcompiler.calibrate.channels import as_matrices, collect_rows
from qcompiler.context import Context
from qcompiler.errors import RecipeError
from qcompiler.formats import QuantParams, QuantSpec
from qcompiler.graph.channels import as_inputs, scale_inputs
from qcompiler.graph.folding import Site, find_sites, fold, gather_largest, spread
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage
from qcompiler.passes.set_ranges import constant_params
from qcompiler.quantizer import fake_quantize

STAGE = (Stage.FLOAT, Stage.FLOAT)
FITS = True
CLIPS = tuple(1 - 0.05 * i for i in range(10))
SMALLEST = 1e-4


@dataclass(frozen=True, kw_only=True)
class Options:
    below: int = 8
    """Products with a weight of fewer bits than this are treated."""
    steps: int = 20
    """Exponents that are tried."""
    products: bool = True
    """Also where a product with weights makes the value, not only a normalization."""
    clip: bool = False
    """Search the ranges of weights as well."""
    rows: int = 1024
    """Rows of activations that the error is measured on."""
    samples: int = 64
    """Calibration samples that they are drawn from."""


@dataclass(eq=False)
class _Rows:
    """What a product reads now: the rows that were drawn [groups, R, K], divided by what has been folded since."""

    rows: NDArray[np.float32]
    folded: NDArray[np.float64]


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function with weights that round better. Raises RecipeError before `decide` or for bad options,
    CalibrationError without samples."""
    assignment = context.assignment
    if assignment is None:
        raise RecipeError("no formats were chosen yet.", where="awq", hint="Run the pass `decide` before it.")
    if options.steps < 1 or options.rows < 1:
        raise RecipeError("steps and rows are at least 1.", where="awq")
    sites, refused = find_sites(graph, products=options.products)
    for node, reason in refused:
        context.note(node, f"not scaled: {reason}")
    sites = [site for site in sites if _treated(site, assignment, options.below)]
    nodes = list(dict.fromkeys(sink.node for site in sites for sink in site.sinks))
    drawn = collect_rows(graph, nodes, context, options.rows, options.samples) if nodes else {}
    inputs = {node: _Rows(rows, np.ones(_channels(graph, node))) for node, rows in drawn.items()}
    exponents: dict[str, float] = {}
    before = after = 0.0
    for site in sites:
        r, s, errors = search(graph, site, inputs, assignment, options.steps)
        exponents[str(site.value.name)] = round(r, 4)
        before, after = before + errors[0], after + errors[1]
        if r == 0:
            continue
        _rename(graph, assignment, fold(graph, site, s))
        for sink in site.sinks:
            inputs[sink.node].folded *= spread(sink.labels, np.where(site.free, s, 1.0), 1.0)
    graph.sweep()
    for name in [name for name in assignment.constants if name not in graph.ir.initializers]:
        del assignment.constants[name]
    clipped = sum(_clip(graph, node, inputs[node], assignment) for node in nodes) if options.clip else 0
    context.facts["awq"] = {
        "error_before": before, "error_after": after, "exponents": exponents, "clipped": clipped
    }  # fmt: skip
    return graph


def _treated(site: Site, assignment: Assignment, below: int) -> bool:
    """Whether some weight is narrow and each has a format; the rows of a product must be free to scale."""
    specs = [assignment.constants.get(_weight(sink.node)) for sink in site.sinks]
    own = None if site.is_norm else assignment.constants.get(_weight(site.node))
    if any(spec is None for spec in specs) or (own is not None and own.granularity.kind == "tensor"):
        return False
    return any(spec is not None and spec.format.bits < below for spec in specs)


def search(
    graph: Graph, site: Site, inputs: dict[ir.Node, _Rows], assignment: Assignment, steps: int
) -> tuple[float, NDArray[np.float64], tuple[float, float]]:
    """Exponent, factors float64 [C] and the error without and with them."""
    magnitude = gather_largest(site, [_magnitude(sink.node, inputs[sink.node]) for sink in site.sinks])
    live = site.free & (magnitude > 0)
    parts = [(sink, *_prepared(graph, sink.node, inputs[sink.node], assignment)) for sink in site.sinks]
    best = (0.0, np.ones(len(live)))
    first = least = np.inf
    for step in range(steps):
        r = step / steps
        s = np.ones(len(live))
        if live.any():
            s[live] = np.maximum(magnitude[live] ** r, SMALLEST)
            s[live] /= np.sqrt(s[live].max() * s[live].min())
        error = 0.0
        for sink, w, spec, rows, energy in parts:
            t = spread(sink.labels, s, 1.0)
            scaled = scale_inputs(sink.node, w, t).astype(np.float32)
            quantized = fake_quantize(scaled, constant_params(assignment, spec, scaled)).astype(np.float64)
            delta = scale_inputs(sink.node, quantized, 1 / t) - w
            error += float(((rows @ as_matrices(sink.node, delta)) ** 2).sum()) / energy
        if step == 0:
            first = error
        if error < least:
            least, best = error, (r, s)
    return best[0], best[1], (first, least)


def _prepared(
    graph: Graph, node: ir.Node, rows: _Rows, assignment: Assignment
) -> tuple[NDArray[np.float64], QuantSpec, NDArray[np.float64], float]:
    """Weight, its format, rows as they are now, and the energy of the product."""
    w = graph.const(node.inputs[1])
    assert w is not None
    exact, now = w.astype(np.float64), _now(node, rows)
    energy = float(((now @ as_matrices(node, exact)) ** 2).sum())
    return exact, assignment.constants[_weight(node)], now, max(energy, 1e-30)


def _now(node: ir.Node, rows: _Rows) -> NDArray[np.float64]:
    groups, _, width = rows.rows.shape
    each = np.repeat(rows.folded, groups * width // len(rows.folded)).reshape(groups, 1, width)
    return rows.rows / each


def _magnitude(node: ir.Node, rows: _Rows) -> NDArray[np.float64]:
    """mean |x| of each input channel."""
    mean = np.abs(_now(node, rows)).mean(axis=1)  # [groups, K]
    return np.asarray(mean.reshape(len(rows.folded), -1).mean(axis=1))


def _channels(graph: Graph, node: ir.Node) -> int:
    w = graph.const(node.inputs[1])
    assert w is not None
    return len(as_inputs(node, w))


def _weight(node: ir.Node) -> str:
    return str(node.inputs[1].name)  # type: ignore[union-attr]


def _rename(graph: Graph, assignment: Assignment, renamed: list[tuple[str, str]]) -> None:
    for before, after in renamed:
        assignment.constants[after] = assignment.constants[before]


def _clip(graph: Graph, node: ir.Node, rows: _Rows, assignment: Assignment) -> bool:
    """Leave the best range of each output channel in the assignment; whether one is narrower than before."""
    name = _weight(node)
    w, spec, x, _ = _prepared(graph, node, rows, assignment)
    shared = graph.sole_user(node.inputs[1]) is not node
    fine = spec.granularity.kind == "channel" and spec.scale_type == "float32"
    if shared or not fine or name in assignment.params:
        return False
    full = constant_params(assignment, spec, w.astype(np.float32))
    best = np.asarray(full.scale)
    least = _channel_errors(node, w, x, full)
    for ratio in CLIPS[1:]:
        trial = QuantParams(full.format, full.scale * np.float32(ratio), full.zero_point, full.axis)
        error = _channel_errors(node, w, x, trial)
        best = np.where(error < least, trial.scale, best)
        least = np.minimum(error, least)
    assignment.params[name] = QuantParams(full.format, best, full.zero_point, full.axis)
    return bool((best < full.scale).any())


def _channel_errors(node: ir.Node, w: NDArray, x: NDArray, params: QuantParams) -> NDArray[np.float64]:
    """Squared error of each output channel, float64 [M]."""
    delta = fake_quantize(w.astype(np.float32), params).astype(np.float64) - w
    return np.asarray(((x @ as_matrices(node, delta)) ** 2).sum(axis=1).reshape(-1))
