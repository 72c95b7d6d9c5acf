"""Correct biases so that every layer's output has, on average, the mean of the float model's.

Quantized weights and inputs shift the mean of a layer's output, channel by channel, and the shifts add up along the
network. For each layer y = f(W x + b), in topological order,

    b += (E[y_float] - E[y_quantized]) / P(active)

over the calibration data and all positions, where y_quantized comes from the quantized network whose earlier layers
are corrected already, f is the Relu or Clip that the layer performs, and P(active) >= 1/5 is the share of positions
that f does not clip, in which alone a change of b shows.

The layers are taken in `groups` runs over the data; within a group corrections are simultaneous. If the error of the
network's outputs on the calibration data does not shrink, the biases stay as they were. Those of a model that came
with quantizers stay: they were chosen for these scales.

Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.2, the
empirical form of appendix D, but behind f and not before it: the mean before f counts values that f cuts off. Measured
at w8a8, error of the outputs on the calibration data: mobilenet_v2_100_224 .0122 instead of .0145 (uncorrected .0212),
mobilenet_v1_025_224 .0044 instead of .0052 (uncorrected .0529); `python -m benchmarks.accuracy --json` shows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler import assignment as decisions
from qcompiler.calibrate.statistics import with_outputs
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.execute.ort import Session
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage
from qcompiler.ops.macs import float_macs

STAGE = (Stage.QDQ, Stage.QDQ)
AFTER = {"solve_weights": "new weights have other mean errors, and set biases of their own"}


@dataclass(frozen=True, kw_only=True)
class Options:
    groups: int = 64
    """Runs over the data; more is more exact and slower."""
    samples: int = 64
    """Calibration samples that are used, at most."""
    work: float = 1.2e12
    """Multiply-accumulates of all runs, about: large networks use fewer samples, but at least 16."""


LEAST_ACTIVE = 0.2
"""Bound of P(active): a channel that is nearly always clipped is not moved by a large step."""


@dataclass(frozen=True)
class Layer:
    """A node with weights: `output` holds W x + b, `seen` is the value behind its Relu or Clip, if any; channels are
    `axis`."""

    name: str
    output: str
    seen: str
    axis: int
    bias_node: ir.Node
    bias_index: int


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """Change bias constants in place. Raises RecipeError outside a pipeline, CalibrationError without data."""
    reference = context.float_graph
    if reference is None:
        raise RecipeError("it needs the float graph.", where="bias_correction", hint="Run it right after insert_qdq.")
    if any(qdq.is_quantizer(node) for node in reference.ir):
        context.note("bias_correction", "left out: the model came with its quantizers")
        return graph
    if context.samples is None:
        raise CalibrationError("it needs calibration data.", where="bias_correction")
    known = {value.name for value in reference.values()}
    layers = [layer for layer in find_layers(graph) if _float_name(layer, known) in known]
    if not layers:
        return graph
    names = [(_float_name(layer, known), None, layer.axis) for layer in layers]
    groups = min(max(options.groups, 1), len(layers))
    each = sum(float_macs(reference, node) for node in reference.nodes()) * groups
    limit = min(options.samples, max(16, int(options.work // max(each, 1))))
    measured = means(reference, names, context, limit)
    targets = {layer.name: mean for layer, (mean, _) in zip(layers, measured, strict=True)}
    original = {layer.name: graph.const(_bias_constant(layer)) for layer in layers}
    before = output_error(graph, reference, context, limit)
    runs = np.array_split(np.arange(len(layers)), groups)
    for i, members in enumerate(runs):
        group = [layers[j] for j in members]
        unclipped = [layer.output if layer.seen != layer.output else None for layer in group]
        wanted = [(layer.seen, value, layer.axis) for layer, value in zip(group, unclipped, strict=True)]
        for layer, (mean, active) in zip(group, means(graph, wanted, context, limit), strict=True):
            shift_bias(graph, layer, (targets[layer.name] - mean) / np.maximum(active, LEAST_ACTIVE))
        context.progress("bias correction", i + 1, len(runs))
    after = output_error(graph, reference, context, limit)
    context.facts["bias_correction"] = {"error_before": before, "error_after": after, "kept": after < before}
    if not after < before:
        for layer in layers:
            array = original[layer.name]
            assert array is not None
            graph.set_const(_bias_constant(layer), array)
        context.note("bias_correction", f"undone: output error would go from {before:.4g} to {after:.4g}")
    return graph


def find_layers(graph: Graph) -> list[Layer]:
    """Layers of a QDQ graph whose bias is a constant that nothing else reads, in topological order."""
    layers = []
    for node in graph.nodes(*decisions.WEIGHTED):
        if qdq.quantizer_of(graph, node.inputs[1]) is None:
            continue
        at, index = node, 2
        if node.op_type == "MatMul":
            user = graph.sole_user(node.outputs[0])
            if user is None or user.op_type != "Add":
                continue
            at, index = user, 0 if user.inputs[1] is node.outputs[0] else 1
        clip = graph.sole_user(at.outputs[0])
        seen = clip if clip is not None and decisions.clip_bounds(graph, clip) is not None else at
        axis = 1 if "Conv" in node.op_type else -1
        layer = Layer(node.name or "", at.outputs[0].name or "", seen.outputs[0].name or "", axis, at, index)
        bias = at.inputs[index] if len(at.inputs) > index else None
        if bias is None:
            continue
        made = bias.producer()
        if made is None and graph.const(bias) is not None or made is not None and qdq.read_bias(graph, made):
            layers.append(layer)
    return layers


def _bias_constant(layer: Layer) -> ir.Value:
    """The initializer that holds a layer's bias: int32 codes or float32 values."""
    value = layer.bias_node.inputs[layer.bias_index]
    assert value is not None
    made = value.producer()
    source = value if made is None else made.inputs[0]
    assert source is not None
    return source


def shift_bias(graph: Graph, layer: Layer, shift: NDArray) -> None:
    """Add `shift` float [M] to a layer's bias, rounded to its codes if it has them."""
    constant = _bias_constant(layer)
    array = graph.const(constant)
    assert array is not None
    made = layer.bias_node.inputs[layer.bias_index].producer()  # type: ignore[union-attr]
    if made is None:
        graph.set_const(constant, (array + shift.reshape(array.shape)).astype(np.float32))
        return
    found = qdq.read_bias(graph, made)
    assert found is not None
    codes, scale = found
    moved = codes + np.rint(shift / scale.astype(np.float64))
    # A layer so far off that its bias would leave 30 bits keeps what fits.
    graph.set_const(constant, np.clip(moved, -(2**30), 2**30).astype(np.int32))


def set_bias(graph: Graph, layer: Layer, bias: NDArray, scale: NDArray[np.float32]) -> None:
    """Replace a layer's bias, float [M]. scale: of its codes if it has them, float32 [M]: the product s_x * s_w."""
    constant = _bias_constant(layer)
    made = layer.bias_node.inputs[layer.bias_index].producer()  # type: ignore[union-attr]
    if made is None:
        old = graph.const(constant)
        assert old is not None
        graph.set_const(constant, bias.reshape(old.shape).astype(np.float32))
        return
    codes = np.clip(np.rint(bias / scale.astype(np.float64)), -(2**30), 2**30)
    graph.set_const(constant, codes.astype(np.int32))
    graph.set_input_const(made, 1, np.asarray(scale, np.float32))


def _float_name(layer: Layer, known: set[str | None]) -> str:
    """Name of `layer.seen` in the float graph: insert_qdq renames the float value of a graph output."""
    return layer.seen if layer.seen in known else layer.seen.removesuffix("_float")


def means(
    graph: Graph, wanted: Iterable[tuple[str, str | None, int]], context: Context, limit: int
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Means of values over samples, batch and positions, and the share of elements that equal another value's.

    wanted: name of a value, name of the value before its clip or None (share 1), axis of channels. Returns float64
    [C] and [C] each.
    """
    wanted = list(wanted)
    copy = with_outputs(graph, [name for one in wanted for name in one[:2] if name is not None])
    values = {value.name: value for value in copy.ir.outputs}
    copy.ir.outputs.clear()
    for name, unclipped, kept in wanted:
        value = values[name]
        rank = len(graph.shape(value))
        axes = copy.add_const(f"{name}_axes", np.delete(np.arange(rank, dtype=np.int64), kept))
        measured = [value]
        if unclipped is not None:
            same = copy.add_node("Equal", [value, values[unclipped]], name=f"{name}/same", like=value).outputs[0]
            same.type = ir.TensorType(ir.DataType.BOOL)
            cast = copy.add_node("Cast", [same], {"to": ir.DataType.FLOAT}, name=f"{name}/active", like=value)
            measured.append(cast.outputs[0])
        for one in measured:
            node = copy.add_node("ReduceMean", [one, axes], {"keepdims": 0}, name=f"{one.name}/mean")
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            copy.ir.outputs.append(node.outputs[0])
    session = Session(copy)
    sums: list[NDArray[np.float64]] = []
    count = 0
    assert context.samples is not None
    for sample in context.samples:
        if count == limit:
            break
        found = [array.astype(np.float64) for array in session.run(sample)]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
        count += 1
    results = iter([total / count for total in sums])
    return [
        (mean, np.ones_like(mean) if unclipped is None else next(results))
        for (_, unclipped, _), mean in ((one, next(results)) for one in wanted)
    ]


def output_error(graph: Graph, reference: Graph, context: Context, limit: int) -> float:
    """Squared error of the outputs over the calibration data, relative to the float outputs' energy."""
    sessions = Session(graph), Session(reference)
    error = energy = 0.0
    assert context.samples is not None
    for index, sample in enumerate(context.samples):
        if index == limit:
            break
        for got, want in zip(*(session.run(sample) for session in sessions), strict=True):
            error += float(np.sum((got - want) ** 2, dtype=np.float64))
            energy += float(np.sum(want**2, dtype=np.float64))
    return error / max(energy, 1e-30)
