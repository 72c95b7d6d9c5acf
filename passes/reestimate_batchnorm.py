"""Give every layer of the quantized network the mean and deviation by channel that its output had: BatchNorm tuning.

Behind each layer y = W x + b (Conv, ConvTranspose, Gemm, MatMul with a bias), before its activation, stands in thought
a BatchNormalization that changes nothing: mean beta, variance gamma^2, scale sqrt(gamma^2 + epsilon), shift beta, where
beta and gamma are the float value's mean and deviation by channel: measured on the calibration data, or those of the
BatchNormalization that was folded (`source`). Its mean m and variance v are then taken anew from the quantized network,
over all calibration samples at once (cumulative, no momentum), and it is folded:

    r = sqrt(gamma^2 + epsilon) / sqrt(v + epsilon)     scale of the weight *= r, codes stay;  b = r (b - m) + beta

Layers are taken by depth, so that later ones see what earlier ones have become. Left alone: channels whose variance is
next to nothing, before or after, and those whose bias would not fit 30 bits. r is kept within 1/limit .. limit. Weights
with one scale for all channels, or shared with another layer, get their bias only (r = 1), with a note. If the error
of the network's outputs on the calibration data does not shrink, everything stays as it was.

It serves weights that were rounded to nearest: behind `solve_weights`, whose refit has the least error already, it is
mostly undone. Measured at W4A4 without solve_weights, SQNR of the outputs, bias_correction alone against both: keyword
spotter 9.5 and 13.0 dB, resnet20 15.4 and 16.8, mobilenetv2 13.7 and 14.8; with source `batchnorm` 12.7, 15.4, 12.7:
what was measured on the same data has no error of sampling against it.

Source: Hubara et al. 2021, Accurate Post Training Quantization With Small Calibration Sets (CalibTIP), BatchNorm
tuning; its code runs BatchNorm in training mode with momentum over batches instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.calibrate.moments import ChannelMoments, channel_moments
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.evaluate import take
from qcompiler.execute.prefix import Prefix
from qcompiler.graph import qdq
from qcompiler.graph.analysis import by_depth
from qcompiler.graph.model import Graph, operand
from qcompiler.graph.normal import normal_of
from qcompiler.graph.stages import Stage
from qcompiler.passes.bias_correction import Layer, find_layers, float_name, output_error, read_layer_bias, set_bias
from qcompiler.passes.insert_qdq import BIAS_LIMIT

STAGE = (Stage.QDQ, Stage.QDQ)
FITS = True
AFTER = {"solve_weights": "new weights have other statistics"}
SOURCES = ("measured", "batchnorm")
EPSILON = 1e-5
TINY = 1e-4
"""Share of the layer's mean variance below which a channel is a constant, whose deviation is rounding."""


@dataclass(frozen=True, kw_only=True)
class Options:
    source: str = "measured"
    """Where mean and deviation come from: measured, or batchnorm (measured where none was folded)."""
    samples: int = 256
    """Calibration samples that are used, at most."""
    limit: float = 2.0
    """Bound of the change of a weight's scale, as a factor."""


@dataclass(frozen=True, eq=False)
class Normal:
    """mean, variance: float64 [C]."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """Change scales of weights, and biases, in place. Raises RecipeError outside a pipeline or for an unknown source,
    CalibrationError without data."""
    if options.source not in SOURCES or not options.limit >= 1:
        hint = f"`source` is one of {', '.join(SOURCES)}, `limit` at least 1."
        raise RecipeError("its options make no sense.", where="reestimate_batchnorm", hint=hint)
    reference = context.float_graph
    if reference is None:
        raise RecipeError("it needs the float graph.", where="reestimate_batchnorm", hint="Run it behind insert_qdq.")
    if any(qdq.is_quantizer(node) for node in reference.ir):
        context.note("reestimate_batchnorm", "left out: the model came with its quantizers")
        return graph
    if context.samples is None:
        raise CalibrationError("it needs calibration data.", where="reestimate_batchnorm")
    known = {value.name for value in reference.values()}
    layers = {layer.name: layer for layer in find_layers(graph) if float_name(layer.output, known) in known}
    if not layers or options.samples < 1:
        return graph
    samples = list(take(context.samples, options.samples))
    targets = _targets(reference, list(layers.values()), samples, options.source)
    nodes = [node for node in graph.nodes() if node.name in layers]
    before, kept = output_error(graph, reference, context, options.samples), graph.clone()
    factors: list[NDArray] = []
    with Prefix(graph, samples) as prefix:
        done = 0
        for level in by_depth(graph, nodes):
            mine = [layers[str(node.name)] for node in level]
            for layer, node, seen in zip(mine, level, _seen(prefix, level, mine), strict=True):
                target = targets[layer.name]
                factors.append(renormalize(graph, layer, node, target, seen, options.limit, context))
            done += len(level)
            context.progress("re-estimate statistics", done, len(nodes))
    after = output_error(graph, reference, context, options.samples)
    every = np.concatenate(factors)
    context.facts["reestimate_batchnorm"] = {
        "layers": len(layers), "error_before": before, "error_after": after, "kept": after < before,
        "scaled_by": [float(np.quantile(every, q)) for q in (0.0, 0.5, 1.0)],
    }  # fmt: skip
    if after < before:
        return graph
    context.note("reestimate_batchnorm", f"undone: output error would go from {before:.4g} to {after:.4g}")
    return kept


def _targets(
    reference: Graph, layers: Sequence[Layer], samples: Sequence[Mapping[str, NDArray]], source: str
) -> dict[str, Normal]:
    """What each layer's output should be like, by the layer's name."""
    values = {value.name: value for value in reference.values()}
    found: dict[str, Normal] = {}
    missing: list[Layer] = []
    for layer in layers:
        said = normal_of(values[float_name(layer.output, values)]) if source == "batchnorm" else None
        if said is None:
            missing.append(layer)
        else:
            found[layer.name] = Normal(said[0], said[1] ** 2)
    places = [(float_name(layer.output, values), layer.axis) for layer in missing]
    for layer, moments in zip(missing, channel_moments(reference, places, samples), strict=True):
        found[layer.name] = Normal(moments.mean, moments.variance)
    return found


def _seen(prefix: Prefix, nodes: Sequence[ir.Node], layers: Sequence[Layer]) -> list[Normal]:
    """Moments of the outputs of layers of one depth; what is kept of the run are their inputs, as they will change."""
    for _ in prefix.walk([str(operand(node).name) for node in nodes]):
        pass
    found = [ChannelMoments(layer.axis) for layer in layers]
    for arrays in prefix.walk([layer.output for layer in layers], advance=False):
        for moments, array in zip(found, arrays, strict=True):
            moments.add(array)
    return [Normal(moments.mean, moments.variance) for moments in found]


def identity(target: Normal, epsilon: float = EPSILON) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Scale, shift, mean and variance of the BatchNormalization that changes nothing, float64 [C] each."""
    return np.sqrt(target.variance + epsilon), target.mean, target.mean, target.variance


def renormalize(
    graph: Graph, layer: Layer, node: ir.Node, target: Normal, seen: Normal, limit: float, context: Context
) -> NDArray[np.float64]:
    """Fold the BatchNormalization that saw `seen` into a layer. Returns r, float64 [M], 1 where nothing changed."""
    scale, shift, _, _ = identity(target)
    r = np.clip(scale / np.sqrt(seen.variance + EPSILON), 1 / limit, limit)
    floor = TINY * float(target.variance.mean())
    live = (target.variance > floor) & (seen.variance > floor)
    weight, bias = qdq.quantizer_of(graph, node.inputs[1]), read_layer_bias(graph, layer)
    maker = operand(node, 1).producer()
    assert weight is not None and maker is not None
    if weight.params.axis is None or len(maker.outputs[0].uses()) > 1:
        why = "has one scale" if weight.params.axis is None else "is shared with another node"
        context.note(node, f"only the mean of its output was restored: its weight {why}")
        r = np.ones_like(r)
    r = np.where(live, r, 1.0)
    moved = np.where(live, r * (bias - seen.mean) + shift, bias)
    scales = np.asarray(weight.params.scale * r, np.float32) if weight.params.axis is not None else weight.params.scale
    read = qdq.quantizer_of(graph, node.inputs[0])
    s_x = read.params.scale if read is not None else np.float32(1)
    # What does not fit keeps its scale and bias: the codes of both.
    fits = np.abs(moved) < BIAS_LIMIT * (s_x * scales).astype(np.float64)
    r, moved = np.where(fits, r, 1.0), np.where(fits, moved, bias)
    if weight.params.axis is not None:
        scales = np.where(fits, scales, weight.params.scale).astype(np.float32)
    set_bias(graph, layer, moved, np.broadcast_to(s_x * scales, moved.shape))
    if (r != 1).any():
        qdq.set_constant(graph, maker, replace(weight.params, scale=scales))
    return r
