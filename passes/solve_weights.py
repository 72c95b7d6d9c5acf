"""Round weights so that layer outputs stay, with the moments of the layer's inputs: solvers without gradients.

Layer by layer in topological order, with inputs from the float model and from the quantized network whose earlier
layers are solved already. For each layer y = W x + b (Conv by its patches, grouped and depthwise; MatMul, Gemm)

1. refit: the float weight that serves the quantized input best (ridge regression), unless `refit` is off; how much
   it is held to the float weight is decided on a fifth of the samples (resnet8 W4A4: 16.0 dB instead of 14.0)
2. scale of each output channel: of `ratios` clip ratios the one whose solved row has the least output error
3. rounding by `method`: gptq, gptaq, gpfq or nearest; then coordinate descent (`sweeps`)
4. the bias takes up what mean error is left

Layers with weights of 8 bits are rounded again at the scale that was set. ConvTranspose, weights on a grid that the
model came with, and weights that several layers share stay as they are. Weights with block scales are rounded by gptq
whatever the method (but nearest), with the exponents that plain rounding has, and without descent.

Sources: Frantar et al. 2023 (GPTQ), Li et al. 2025 (GPTAQ), Lybrand and Saab 2021 (GPFQ), Zhong et al. 2024 (ERQ: the
refit), Behdin et al. 2023 (QuantEase: the descent).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler import assignment as decisions
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.evaluate import take
from qcompiler.execute.prefix import Prefix, workers
from qcompiler.formats import Blocks, Minifloat, QuantParams
from qcompiler.graph import qdq
from qcompiler.graph.analysis import by_depth
from qcompiler.graph.given import given_params
from qcompiler.graph.model import Graph, operand
from qcompiler.graph.stages import Stage
from qcompiler.passes.bias_correction import Layer as BiasLayer
from qcompiler.passes.bias_correction import find_layers as bias_layers
from qcompiler.passes.bias_correction import set_bias
from qcompiler.passes.insert_qdq import fit_bias, float_bias
from qcompiler.quantizer import quantize
from qcompiler.solve import rounding
from qcompiler.solve.grid import Grid
from qcompiler.solve.layers import as_matrices, from_matrices, inputs, positions
from qcompiler.solve.moments import Moments

STAGE = (Stage.QDQ, Stage.QDQ)
FITS = True
AFTER = {"search_ranges": "weights are solved for the ranges of their inputs"}
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
HOLD_OUT = 5
"""One sample of so many decides between ridges."""
LEAST_RATIO = 0.45
"""Smallest clip ratio that is tried."""
CHUNK = 1 << 22
"""Elements of input that are held before their products are summed."""
METHODS = ("gptq", "gptaq", "gpfq", "nearest")


@dataclass(frozen=True, kw_only=True)
class Options:
    method: str = "gptq"
    """gptq, gptaq, gpfq or nearest."""
    refit: bool = True
    """Refit the float weight to the quantized input first."""
    ridge: float = 0.0
    """Strength of the refit's pull towards the float weight, relative to the mean power of the inputs; 0: for each
    layer the one of RIDGES with the least error on samples that the refit did not see."""
    damping: float = rounding.DAMPING
    act_order: bool = True
    ratios: int = 12
    """Clip ratios that are tried for the scale of each channel; 1 keeps the scale that was set."""
    sweeps: int = 4
    """Of coordinate descent behind the method; 0 for none."""
    samples: int = 512
    """Calibration samples that are used, at most."""
    rows: int = 100_000
    """Positions (rows of a layer's input) that are used, about."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A node with a quantized weight, and what it is in the float graph."""

    node: ir.Node
    float_input: str
    weight: NDArray[np.float64]
    """Of the float model, [G, M, K]."""
    shape: tuple[int, ...]
    """Of the weight as ONNX has it."""
    params: QuantParams
    bias_layer: BiasLayer | None
    bias: NDArray[np.float64] | None
    """Of the float model, [G * M]; None where the layer has no constant bias."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """Change codes and scales of weights, and biases, in place. Raises RecipeError for an unknown method or outside a
    pipeline, CalibrationError without data."""
    if options.method not in METHODS:
        raise RecipeError(
            f"`{options.method}` is no solver.", where="solve_weights", hint=f"Known: {', '.join(METHODS)}."
        )
    reference = context.float_graph
    if reference is None:
        raise RecipeError("it needs the float graph.", where="solve_weights", hint="Run it behind insert_qdq.")
    if any(qdq.is_quantizer(node) for node in reference.ir):
        context.note("solve_weights", "left out: the model came with its quantizers")
        return graph
    if context.samples is None:
        raise CalibrationError("it needs calibration data.", where="solve_weights")
    layers = list(find_layers(graph, reference, context))
    samples = list(take(context.samples, options.samples))
    facts = {}
    done = 0
    with (
        Prefix(reference, samples) as exact,
        Prefix(graph, samples) as quantized,
        ThreadPoolExecutor(workers()) as pool,
    ):
        for level in _levels(graph, layers):
            moments = measure(level, exact, quantized, options)
            solved = pool.map(lambda pair: solve(pair[0], pair[1], options, context), zip(level, moments, strict=True))
            for layer, (levels, scale, bias, about) in zip(level, solved, strict=True):
                _write(graph, layer, levels, scale, bias)
                facts[layer.node.name] = about
            done += len(level)
            context.progress("solve weights", done, len(layers))
    context.facts["solve_weights"] = facts
    return graph


def find_layers(graph: Graph, reference: Graph, context: Context) -> Iterator[Layer]:
    """Layers of a QDQ graph that can be solved, in topological order; a note says why another cannot."""
    originals = {node.name: node for node in reference.nodes()}
    biases = {layer.name: layer for layer in bias_layers(graph)}
    for node in graph.nodes(*decisions.WEIGHTED):
        read = qdq.quantizer_of(graph, node.inputs[1])
        original = originals.get(node.name)
        if read is None or read.codes is None or original is None:
            continue
        source = operand(original, 1)
        weight = reference.const(source)
        maker = operand(node, 1).producer()
        assert maker is not None
        why = ""
        if weight is None or given_params(source, weight, read.params.axis) is not None:
            why = "its weight came on a grid"
        elif node.op_type == "ConvTranspose" or weight.ndim > 2 and node.op_type == "MatMul":
            why = f"no solver for the weight of this {node.op_type}"
        elif len(maker.outputs[0].uses()) > 1 or len(source.uses()) > 1:
            why = "its weight is shared with another node"
        elif isinstance(read.params.format, Blocks) and read.params.axis is None:
            why = "its block scales run across output channels"
        elif read.params.zero_point.any():
            why = "its weight has zero points"
        if why:
            context.note(node, f"weights rounded to nearest: {why}")
            continue
        assert weight is not None
        bias = biases.get(str(node.name))
        yield Layer(
            node,
            str(operand(original).name),
            as_matrices(node, weight.astype(np.float64)),
            weight.shape,
            read.params,
            bias,
            None if bias is None else _float_bias(reference, original, weight),
        )


def _float_bias(reference: Graph, node: ir.Node, weight: NDArray) -> NDArray[np.float64]:
    found = float_bias(reference, node, decisions.bias_add(reference, node), weight)
    assert found is not None
    return found.astype(np.float64)


def _levels(graph: Graph, layers: list[Layer]) -> list[list[Layer]]:
    """Layers by depth: those of one level do not read each other."""
    of_node = {layer.node: layer for layer in layers}
    return [[of_node[node] for node in level] for level in by_depth(graph, of_node)]


def measure(
    level: list[Layer], exact: Prefix, quantized: Prefix, options: Options
) -> list[tuple[Moments, Moments]]:
    """Moments of the inputs of all layers of a level, in one run over the samples: of most samples, and of those that
    decide between ridges.

    exact, quantized: of the float network and of the one that the layers' nodes are of.
    """
    sums = [
        (Moments.zeros(layer.weight.shape[0], layer.weight.shape[2]), Moments.zeros(*layer.weight.shape[::2]))
        for layer in level
    ]
    held: dict[tuple[int, bool], list[tuple[NDArray, NDArray]]] = {}
    names = [layer.float_input for layer in level]
    own = [str(operand(layer.node).name) for layer in level]
    every = [1] * len(level)

    def count(key: tuple[int, bool]) -> None:
        i, apart = key
        sums[i][apart].add(*(np.concatenate(side, axis=1) for side in zip(*held.pop(key), strict=True)))

    for index, (floats, codes) in enumerate(zip(exact.walk(names), quantized.walk(own), strict=True)):
        for i, (layer, x, rounded) in enumerate(zip(level, floats, codes, strict=True)):
            if index == 0:
                every[i] = max(1, round(exact.count * positions(layer.node, x, layer.weight) / options.rows))
            pair = [inputs(layer.node, one, layer.shape, every=every[i], index=index) for one in (x, rounded)]
            key = (i, index % HOLD_OUT == HOLD_OUT - 1)
            held.setdefault(key, []).append((pair[0], pair[1]))
            if sum(one.size for one, _ in held[key]) > CHUNK:
                count(key)
    for key in list(held):
        count(key)
    return sums


def solve(
    layer: Layer, moments: tuple[Moments, Moments], options: Options, context: Context
) -> tuple[NDArray, NDArray, NDArray | None, dict[str, float]]:
    """Levels [G, M, K], scales [G, M], bias [G * M], and the mean square error that rounding adds to the outputs."""
    grid = Grid(layer.params.format)
    groups, rows, columns = layer.weight.shape
    total = moments[0].plus(moments[1])
    around = total.centred() if layer.bias is not None else total
    ridge = options.ridge or choose_ridge(layer, moments)
    start = np.broadcast_to(layer.params.scale.astype(np.float64), groups * rows).reshape(groups, rows)
    levels, scales = np.empty_like(layer.weight), np.array(start)
    before = after = 0.0
    for g in range(groups):
        weight, gram, cross = layer.weight[g], around.gram[g], around.cross[g]
        target = rounding.refit(weight, gram, cross, ridge=ridge) if options.refit else weight
        before += float(rounding.error(target, gram, start[g], rounding.nearest(weight, start[g], grid)).sum())
        levels[g], scales[g] = _best(target, gram, cross, start[g], grid, options, layer, context)
        after += float(rounding.error(target, gram, scales[g], levels[g]).sum())
    bias = None
    if layer.bias is not None:
        bias = layer.bias + total.bias_shift(layer.weight, levels * scales[..., None]).reshape(-1)
    count = max(total.count * groups * rows, 1)
    return levels, scales, bias, {"error_before": before / count, "error_after": after / count, "ridge": ridge}


def choose_ridge(layer: Layer, moments: tuple[Moments, Moments]) -> float:
    """The ridge whose refit to the first moments has the least error on the second."""
    if not moments[1].count:
        return RIDGES[1]
    seen, apart = (one.centred() if layer.bias is not None else one for one in moments)
    errors = []
    for ridge in RIDGES:
        total = 0.0
        for weight, gram, cross, other, mixed in zip(
            layer.weight, seen.gram, seen.cross, apart.gram, apart.cross, strict=True
        ):
            fitted = rounding.refit(weight, gram, cross, ridge=ridge)
            total += float(((fitted @ other) * fitted).sum() - 2 * ((weight @ mixed) * fitted).sum())
        errors.append(total)
    return RIDGES[int(np.argmin(errors))]


def _best(
    target: NDArray,
    gram: NDArray,
    cross: NDArray,
    start: NDArray,
    grid: Grid,
    options: Options,
    layer: Layer,
    context: Context,
) -> tuple[NDArray, NDArray]:
    """Levels and scales of one group: the clip ratio with the least error, row by row."""
    few = grid.format.bits < 8 and options.ratios > 1
    reach = np.abs(target).max(1) / grid.largest
    ratios = np.linspace(LEAST_RATIO, 1.0, options.ratios) if few else np.ones(1)
    shared = layer.params.axis is None
    candidates = np.where(reach > 0, reach, start) * ratios[:, None] if few else start[None]
    if shared:
        candidates = np.broadcast_to(candidates.max(1, keepdims=True), candidates.shape)
    candidates = np.maximum(candidates.astype(np.float32), np.finfo(np.float32).tiny).astype(np.float64)
    tiled = np.tile(target, (len(candidates), 1))
    flat = candidates.reshape(-1)
    levels = _round(tiled, gram, cross, flat, grid, options, lambda text: context.note(layer.node, text))
    sweeps = 0 if isinstance(grid.format, Blocks) else options.sweeps
    levels = rounding.descend(tiled, gram, flat, grid, levels, sweeps=1) if sweeps else levels
    errors = rounding.error(tiled, gram, flat, levels).reshape(candidates.shape)
    best = np.full(len(target), errors.sum(1).argmin()) if shared else errors.argmin(0)
    at = best * len(target) + np.arange(len(target))
    levels, scale = levels[at], flat[at]
    return rounding.descend(target, gram, scale, grid, levels, sweeps=sweeps), scale


def _round(
    weight: NDArray, gram: NDArray, cross: NDArray, scale: NDArray, grid: Grid, options: Options, say: rounding.Say
) -> NDArray:
    if options.method == "nearest":
        return rounding.nearest(weight, scale, grid)
    if isinstance(grid.format, Blocks):
        order, damping = options.act_order, options.damping
        return rounding.gptq_blocks(weight, gram, scale, grid.format, damping=damping, act_order=order, say=say)
    if options.method == "gpfq":
        return rounding.gpfq(weight, gram, scale, grid, cross=None if options.refit else cross)
    pull = cross - gram if options.method == "gptaq" and not options.refit else None
    order, damping = options.act_order, options.damping
    return rounding.gptq(weight, gram, scale, grid, damping=damping, act_order=order, cross=pull, say=say)


def _write(graph: Graph, layer: Layer, levels: NDArray, scales: NDArray, bias: NDArray | None) -> None:
    """Codes, scales and bias of a solved layer into the graph."""
    node, maker = layer.node, operand(layer.node, 1).producer()
    assert maker is not None
    scale = scales.reshape(-1).astype(np.float32)
    axis = layer.params.axis
    params = QuantParams(layer.params.format, scale if axis is not None else scale[0], 0, axis)
    values = from_matrices(node, levels * scales[..., None], layer.shape)
    read = qdq.quantizer_of(graph, node.inputs[0])
    if bias is not None and read is not None and layer.bias_layer is not None:
        if all(not isinstance(one.format, Minifloat) or one.format.level_bits <= 16 for one in (params, read.params)):
            params = fit_bias(params, values, bias, read.params.scale)
        set_bias(graph, layer.bias_layer, bias, np.broadcast_to(read.params.scale * params.scale, bias.shape))
    qdq.set_constant(graph, maker, params, quantize(values, params))
