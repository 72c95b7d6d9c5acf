"""How much each option of each item would lose: one function a score, all lower is better, [K] of every item.

All but `local_sqnr` and `adapt_pushdown` estimate the same number, the loss against the float network's own predictions
(qcompiler.passes.mixed_precision.losses), so that they can be mixed, compared and added to pairwise terms:

    swap_loss        measured, with only that item quantized
    gauss_newton     1/2 d^T M d, d = the measured difference of the outputs, M = the loss's curvature in the outputs
    hessian_trace    1/2 (Tr H / n) |dW|^2, Tr H by Hutchinson's estimator               (needs torch)
    fisher           1/2 sum_j F_jj dW_j^2                                                (needs torch)
    activation_trace 1/2 sum_e F_ee mean(dx^2), for activations; what the two above use for them (needs torch)
    local_sqnr       noise over signal of the layer's output (weights) or of the value (activations)
    adapt_pushdown   divergence of the histograms of the weight and of its quantized form; no data

`pairwise` measures what two items lose together beyond the sum of both; `gauss_newton_pairs` has it from the
differences at hand. `combine` is the working definition of our card of one score with both.

Sources: Dong et al. 2020 (HAWQ-V2: the average trace); Hubara et al. 2020 (CalibTIP: the swap loss); Deng et al. 2023
(CLADO: pairs); Schaefer et al. 2023 (pairs with Hessians); Kummer et al. 2021 (AdaPT: push-down). Deviations: HAWQ's
score has no 1/2, and its Hessian is that of the task loss; here it is that of the divergence from the float
predictions, which needs no labels and is not negative. gauss_newton with measured differences instead of Jacobians is
ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from qcompiler.assignment import Assignment
from qcompiler.calibrate.statistics import require
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.graph.blocks import blocks
from qcompiler.graph.model import Graph
from qcompiler.passes import solve_weights
from qcompiler.passes.mixed_precision import curvature, pushdown, weights
from qcompiler.passes.mixed_precision.candidates import Item, products, width
from qcompiler.passes.mixed_precision.losses import features, find_loss
from qcompiler.passes.mixed_precision.probe import Change, Probes
from qcompiler.quantizer import fake_quantize

Scores = list[NDArray]
Pairs = dict[tuple[int, int], NDArray]


@dataclass(eq=False)
class Study:
    """What scores are computed from. changes: [item][option]; found: width -> assignment with ranges."""

    graph: Graph
    assignment: Assignment
    items: list[Item]
    context: Context
    probes: Probes
    changes: list[list[Change]]
    found: Mapping[str, Assignment]
    samples: int = 64
    draws: int = 32
    options: solve_weights.Options = field(default_factory=solve_weights.Options)

    def error(self, item: int, option: int) -> NDArray[np.float64]:
        """W_quantized - W of a weight."""
        name = self.items[item].values[0]
        array = self.graph.const(self.graph.ir.initializers[name])
        assert array is not None
        return np.asarray(self.changes[item][option].constants[name].astype(np.float64) - array)


def study(
    graph: Graph,
    assignment: Assignment,
    items: list[Item],
    context: Context,
    *,
    samples: int = 64,
    loss: str = "auto",
    base: str = "float",
    final_solver: bool = False,
    executor: str = "serial",
    draws: int = 32,
) -> Study:
    """Ranges, changes and probes of the items of a FLOAT graph behind `decide`.

    base: what the rest of the network is in a probe: `float`, or `decided` (the widths that were decided, all values
    quantized). final_solver: weights by solve_weights instead of rounding, on other samples than the probes'
    (where there are enough). draws: of random vectors, for traces. Raises
    RecipeError, CalibrationError.
    """
    if base not in ("float", "decided"):
        raise RecipeError(f"`{base}` is no base of probes.", where="assign_bits", hint="Choose float or decided.")
    found = weights.ranges(graph, assignment, items, context)
    changes = weights.rounded(graph, items, found)
    options = solve_weights.Options(rows=50_000)
    if final_solver:
        if context.samples is None:
            raise CalibrationError("weights are solved on calibration data.", where="assign_bits")
        pool = list(islice(context.samples, samples + weights.SOLVED_ON))
        if len(pool) < samples + samples // 2:
            context.note("assign_bits", "few samples: weights are solved on those that measure them, too")
        changes = weights.solved(graph, items, found, changes, pool[min(samples, len(pool) // 2) :], context, options)
    choice, extra = None, None
    if base == "decided":
        decided = [width(assignment, item) for item in items]
        choice = [
            item.bits.index(bits) if bits in item.bits else len(item.bits) - 1
            for item, bits in zip(items, decided, strict=True)
        ]
        extra = weights.fixed(next(reversed(found.values())), items)
    probes = Probes(graph, changes, context, loss=find_loss(graph, loss), count=samples, base=choice, extra=extra,
                    executor=executor)  # fmt: skip
    return Study(graph, assignment, items, context, probes, changes, found, samples, draws, options)


def swap_loss(one: Study) -> Scores:
    """The loss with only that item quantized, less that of the base; at least 0."""
    base = float(one.probes.losses([()])[0]) if not one.probes.float_base else 0.0
    tasks = [((i, k),) for i, item in enumerate(one.items) for k in range(len(item.bits))]
    return _split(one, np.maximum(one.probes.losses(tasks) - base, 0.0))


def gauss_newton(one: Study) -> Scores:
    """1/2 |f|^2 with f the differences of the outputs in the metric of the loss."""
    return [0.5 * (rows**2).sum(1) for rows in _features(one)]


def gauss_newton_pairs(one: Study, signed: bool = False) -> Pairs:
    """max(f_i . f_j, 0): what two items lose together beyond the sum of both, where differences of the outputs add up.

    Of all pairs, without further probes. signed: pairs whose differences cancel count as well; with `gauss_newton` the
    sum over a choice is then 1/2 |sum f|^2. That is how the measured errors go together; those of weights that are
    solved anew for the choice do not cancel any more (ours: see docs/results.md, scores of pairs).
    """
    rows = _features(one)
    found = {(i, j): rows[i] @ rows[j].T for i, j in combinations(range(len(rows)), 2)}
    return found if signed else {key: np.maximum(matrix, 0) for key, matrix in found.items()}


def _features(one: Study) -> list[NDArray[np.float64]]:
    """[K, outputs] of every item."""
    probes = one.probes
    tasks = [((i, k),) for i, item in enumerate(one.items) for k in range(len(item.bits))]
    base = probes.exact() if probes.float_base else probes.outputs([()])[0]
    rows = [features(probes.loss, base, found) for found in probes.outputs(tasks)]
    sizes = np.cumsum([len(item.bits) for item in one.items])[:-1]
    return np.split(np.array(rows, dtype=np.float64), sizes)


def pairwise(one: Study, pairs: str = "block", options: str = "all") -> Pairs:
    """C = L(i, j) - L(i) - L(j) + L(base), measured.

    pairs: `all`, or `block`: items of one block, and a weight with what its own node reads. options: `all` pairs of
    options, or `lowest`: measured at the lowest options, and elsewhere scaled by sqrt(L(i, k) / L(i, lowest)) of both,
    as errors of one direction would be. Raises RecipeError.
    """
    if pairs not in ("all", "block") or options not in ("all", "lowest"):
        raise RecipeError("pairs are `all` or `block`, their options `all` or `lowest`.", where="assign_bits")
    sides = list(combinations(range(len(one.items)), 2)) if pairs == "all" else neighbours(one.graph, one.items)
    sides = [(i, j) for i, j in sides if len(one.items[i].bits) > 1 or len(one.items[j].bits) > 1]
    alone = _split(one, one.probes.losses([((i, k),) for i, o in enumerate(one.items) for k in range(len(o.bits))]))
    base = float(one.probes.losses([()])[0]) if not one.probes.float_base else 0.0
    tasks = []
    for i, j in sides:
        ends = [len(one.items[i].bits), len(one.items[j].bits)] if options == "all" else [1, 1]
        tasks += [((i, k), (j, other)) for k in range(ends[0]) for other in range(ends[1])]
    losses = one.probes.losses(tasks, "sensitivity of pairs")
    found: Pairs = {}
    at = 0
    for i, j in sides:
        if options == "all":
            shape = (len(one.items[i].bits), len(one.items[j].bits))
            both = losses[at : at + shape[0] * shape[1]].reshape(shape)
            at += both.size
            found[i, j] = both - alone[i][:, None] - alone[j] + base
        else:
            cross = float(losses[at]) - alone[i][0] - alone[j][0] + base
            at += 1
            scale = [np.sqrt(np.maximum(alone[x] - base, 0) / max(alone[x][0] - base, 1e-30)) for x in (i, j)]
            found[i, j] = cross * scale[0][:, None] * scale[1]
    return found


def neighbours(graph: Graph, items: Sequence[Item]) -> list[tuple[int, int]]:
    """Pairs of items in one block (qcompiler.graph.blocks), and operands of one product."""
    of_name = {name: i for i, item in enumerate(items) for name in item.values}
    found: set[tuple[int, int]] = set()
    for block in blocks(graph):
        read = {str(value.name) for node in block.nodes for value in node.inputs if value is not None}
        inside = sorted({of_name[name] for name in read if name in of_name})
        found.update(combinations(inside, 2))
    for _, first, second in products(graph, items):
        if isinstance(first, int) and isinstance(second, int) and first != second:
            found.add((min(first, second), max(first, second)))
    return sorted(found)


def combine(scores: Scores, measured: Scores, pairs: Pairs) -> Scores:
    """Omega * median(E / Omega) + 1/2 sum over others of max(C, 0) at their lowest option.

    The working definition of our card of Schaefer et al. 2023's one score, whose exact form is not published. scores:
    Omega (hessian_trace); measured: E, on the same items (swap_loss); pairs: C.
    """
    low = np.array([one[0] for one in scores])
    want = np.array([one[0] for one in measured])
    good = low > 0
    factor = float(np.median(want[good] / low[good])) if good.any() else 1.0
    found = [one * factor for one in scores]
    for (i, j), matrix in pairs.items():
        found[i] = found[i] + 0.5 * np.maximum(matrix[:, 0], 0)
        found[j] = found[j] + 0.5 * np.maximum(matrix[0], 0)
    return found


def hessian_trace(one: Study) -> Scores:
    """1/2 (Tr H / n) |dW|^2 of weights; activation_trace of activations."""
    names = _weights(one)
    traces = curvature.traces(one.graph, one.probes.samples, names, one.probes.loss, draws=one.draws,
                              seed=one.context.seed) if names else {}  # fmt: skip
    found = activation_trace(one)
    for i, item in enumerate(one.items):
        if item.kind == "weight":
            trace, _ = traces[item.values[0]]
            size = one.error(i, 0).size
            squares = [float((one.error(i, k) ** 2).sum()) for k in range(len(item.bits))]
            found[i] = 0.5 * max(trace, 0.0) / size * np.array(squares)
    return found


def fisher(one: Study) -> Scores:
    """1/2 sum F_jj dW_j^2 of weights, F the Fisher information; activation_trace of activations."""
    names = _weights(one)
    diagonals = curvature.fisher_diagonal(one.graph, one.probes.samples, names, one.probes.loss,
                                          seed=one.context.seed) if names else {}  # fmt: skip
    found = activation_trace(one)
    for i, item in enumerate(one.items):
        if item.kind == "weight":
            own = diagonals[item.values[0]]
            found[i] = np.array([0.5 * float((own * one.error(i, k) ** 2).sum()) for k in range(len(item.bits))])
    return found


def activation_trace(one: Study) -> Scores:
    """1/2 sum_e F_ee mean(dx^2) of activations, from the Jacobian of the outputs alone; 0 for weights.

    Source: the activation variant of Sony's MCT (Hutchinson on the Jacobian of the outputs).
    """
    values = [name for item in one.items if item.kind == "activation" for name in item.values[:1]]
    traces = curvature.activation_traces(one.graph, one.probes.samples, values, one.probes.loss,
                                         seed=one.context.seed) if values else {}  # fmt: skip
    noise = _noise(one, relative=False)
    return [
        0.5 * traces[item.values[0]] * noise[i] if item.kind == "activation" else np.zeros(len(item.bits))
        for i, item in enumerate(one.items)
    ]


def local_sqnr(one: Study) -> Scores:
    """Noise over signal: of the layer's output |dW x|^2 / |W x|^2 over float inputs, or of the value itself.

    Where a layer's input moments are not to be had (ConvTranspose, shared weights), of the weight itself.
    """
    found = _noise(one, relative=True)
    for i, item in enumerate(one.items):
        if item.kind == "weight":
            weight = one.graph.const(one.graph.ir.initializers[item.values[0]])
            power = max(float((np.asarray(weight, np.float64) ** 2).sum()), 1e-300)
            found[i] = np.array([(one.error(i, k) ** 2).sum() / power for k in range(len(item.bits))])
    of_items = weights.layers(one.graph, one.items)
    for i, layer, parts in weights.moments(one.graph, of_items, one.probes.samples, one.context, one.options):
        own = parts[0].plus(parts[1])
        around = own.centred() if layer.bias is not None else own
        def power_of(matrix: NDArray, gram: NDArray = around.gram) -> float:
            return float(np.einsum("gmk,gkl,gml->", matrix, gram, matrix, optimize=True))

        signal = max(power_of(layer.weight, own.gram), 1e-300)
        errors = [weights.as_matrices(layer.node, one.error(i, k)) for k in range(len(one.items[i].bits))]
        found[i] = np.array([max(power_of(error), 0.0) / signal for error in errors])
    return found


def adapt_pushdown(one: Study) -> Scores:
    """Divergence of the histograms of a weight and of its quantized form; of activations, of their statistics."""
    found = []
    for i, item in enumerate(one.items):
        if item.kind == "weight":
            array = one.graph.const(one.graph.ir.initializers[item.values[0]])
            assert array is not None
            found.append(np.array([
                pushdown.divergence(array, array + one.error(i, k)) for k in range(len(item.bits))
            ]))  # fmt: skip
        else:
            found.append(np.array([_activation(one, i, k, pushdown.divergence) for k in range(len(item.bits))]))
    return found


def _noise(one: Study, *, relative: bool) -> Scores:
    """Mean square error of each option of activations, from the statistics; 0 for weights."""

    def error(x: NDArray, rounded: NDArray, counts: NDArray) -> float:
        noise = float((counts * (rounded - x) ** 2).sum())
        return noise / max(float((counts * x**2).sum()) if relative else float(counts.sum()), 1e-300)

    return [
        np.array([_activation(one, i, k, error) for k in range(len(item.bits))])
        if item.kind == "activation" else np.zeros(len(item.bits))
        for i, item in enumerate(one.items)
    ]  # fmt: skip


def _activation(one: Study, item: int, option: int, measure: Callable[..., float]) -> float:
    """measure(values, quantized values, counts) over the histogram of an item's first value; 0 without a quantizer."""
    change, name = one.changes[item][option], one.items[item].values[0]
    params = change.narrow.get(name) or change.wide.get(name)
    if params is None:
        return 0.0
    histogram = require(one.graph, [name], one.context)[name]
    x, counts = histogram.centres()
    x, counts = np.append(x, 0.0), np.append(counts, float(histogram.zeros))
    return float(measure(x, fake_quantize(x.astype(np.float32), params).astype(np.float64), counts))


def _weights(one: Study) -> list[str]:
    return [item.values[0] for item in one.items if item.kind == "weight"]


def _split(one: Study, values: NDArray) -> Scores:
    return np.split(values, np.cumsum([len(item.bits) for item in one.items])[:-1])
