"""Correct biases so that every layer's output has, on average, the mean of the float model's.

Quantized weights and inputs shift the mean of a layer's output, channel by channel, and the shifts add up along the
network. Method `empirical`: for each layer y = f(W x + b), in topological order,

    b += (E[y_float] - E[y_quantized]) / P(active)

over the calibration data and all positions, where y_quantized comes from the quantized network whose earlier layers
are corrected already, f is the Relu or Clip that the layer performs, and P(active) >= 1/5 is the share of positions
that f does not clip, in which alone a change of b shows.

The layers are taken in `groups` runs over the data; within a group corrections are simultaneous.

Method `analytic`: b = b_float - (W_quantized - W) E[x], where E[x] by input channel is that of clipped normals, from
the BatchNormalizations that were folded (qcompiler.calibrate.expected): no data are needed. Where they say nothing, and
there are calibration data, E[x] is the float model's mean on them; else the layer is left alone, with a note. It sees
the rounding of weights, not that of inputs.

If the error of the network's outputs on the calibration data, if there are any, does not shrink, the biases stay as
they were. Those of a model that came with quantizers stay: they were chosen for these scales.

Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.2; the
empirical form of appendix D, but behind f and not before it: the mean before f counts values that f cuts off. Measured
at w8a8, error of the outputs on the calibration data: mobilenet_v2_100_224 .0122 instead of .0145 (uncorrected .0212),
mobilenet_v1_025_224 .0044 instead of .0052 (uncorrected .0529); `python -m benchmarks.accuracy --json` shows it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler import assignment as decisions
from qcompiler.calibrate.expected import expected, product_mean
from qcompiler.calibrate.statistics import with_outputs
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.execute.ort import Session
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph, operand
from qcompiler.graph.stages import Stage
from qcompiler.ops.macs import float_macs
from qcompiler.passes.insert_qdq import float_bias
from qcompiler.quantizer import dequantize

STAGE = (Stage.QDQ, Stage.QDQ)
AFTER = {
    "solve_weights": "new weights have other mean errors, and set biases of their own",
    "reestimate_batchnorm": "it sets means before the activations, this pass those behind them",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    method: str = "empirical"
    """empirical (from data) or analytic (from what BatchNormalizations say of the inputs)."""
    groups: int = 64
    """Runs over the data; more is more exact and slower."""
    samples: int = 64
    """Calibration samples that are used, at most."""
    work: float = 1.2e12
    """Multiply-accumulates of all runs, about: large networks use fewer samples, but at least 16."""


METHODS = ("empirical", "analytic")
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
    """Change bias constants in place. Raises RecipeError outside a pipeline or for an unknown method, CalibrationError
    for the empirical method without data."""
    if options.method not in METHODS:
        hint = f"Known: {', '.join(METHODS)}."
        raise RecipeError(f"`{options.method}` is no method of correction.", where="bias_correction", hint=hint)
    reference = context.float_graph
    if reference is None:
        raise RecipeError("it needs the float graph.", where="bias_correction", hint="Run it right after insert_qdq.")
    if any(qdq.is_quantizer(node) for node in reference.ir):
        context.note("bias_correction", "left out: the model came with its quantizers")
        return graph
    if context.samples is None and options.method == "empirical":
        hint = "Give data, or correct by `method = \"analytic\"`."
        raise CalibrationError("it needs calibration data.", where="bias_correction", hint=hint)
    known = {value.name for value in reference.values()}
    layers = [layer for layer in find_layers(graph) if float_name(layer.seen, known) in known]
    if not layers:
        return graph
    groups = min(max(options.groups, 1), len(layers)) if options.method == "empirical" else 1
    each = sum(float_macs(reference, node) for node in reference.nodes()) * groups
    limit = min(options.samples, max(16, int(options.work // max(each, 1))))
    original = {layer.name: graph.const(_bias_constant(layer)) for layer in layers}
    before = output_error(graph, reference, context, limit) if context.samples is not None else None
    if options.method == "empirical":
        _from_data(graph, layers, reference, groups, limit, context)
    else:
        _from_normals(graph, layers, reference, limit, context)
    if before is None:
        return graph
    after = output_error(graph, reference, context, limit)
    context.facts["bias_correction"] = {"error_before": before, "error_after": after, "kept": after < before}
    if not after < before:
        for layer in layers:
            array = original[layer.name]
            assert array is not None
            graph.set_const(_bias_constant(layer), array)
        context.note("bias_correction", f"undone: output error would go from {before:.4g} to {after:.4g}")
    return graph


def _from_data(
    graph: Graph, layers: list[Layer], reference: Graph, groups: int, limit: int, context: Context
) -> None:
    """The empirical form: layer by layer, means of the corrected network so far against those of the float one."""
    known = {value.name for value in reference.values()}
    names = [(float_name(layer.seen, known), None, layer.axis) for layer in layers]
    measured = means(reference, names, context, limit)
    targets = {layer.name: mean for layer, (mean, _) in zip(layers, measured, strict=True)}
    runs = np.array_split(np.arange(len(layers)), groups)
    for i, members in enumerate(runs):
        group = [layers[j] for j in members]
        unclipped = [layer.output if layer.seen != layer.output else None for layer in group]
        wanted = [(layer.seen, value, layer.axis) for layer, value in zip(group, unclipped, strict=True)]
        for layer, (mean, active) in zip(group, means(graph, wanted, context, limit), strict=True):
            shift_bias(graph, layer, (targets[layer.name] - mean) / np.maximum(active, LEAST_ACTIVE))
        context.progress("bias correction", i + 1, len(runs))


def _from_normals(graph: Graph, layers: list[Layer], reference: Graph, limit: int, context: Context) -> None:
    """The analytic form. It starts from the float bias, so that running it again changes nothing."""
    floats, nodes = ({node.name: node for node in one.nodes()} for one in (reference, graph))
    said = expected(reference)
    inputs: dict[str, NDArray] = {}
    missing: dict[str, tuple[str, int]] = {}
    for layer in layers:
        value = operand(floats[layer.name])
        name, axis = str(value.name), 1 if "Conv" in floats[layer.name].op_type else -1
        if name in said and (axis == 1 or len(graph.shape(value)) == 2):
            inputs[layer.name] = said[name].mean
        else:
            missing[layer.name] = name, axis
    if missing and context.samples is not None:
        places = list(dict.fromkeys(missing.values()))
        measured = means(reference, [(name, None, axis) for name, axis in places], context, limit)
        of_place = dict(zip(places, (mean for mean, _ in measured), strict=True))
        inputs.update({layer: of_place[place] for layer, place in missing.items()})
    for layer in layers:
        original, node = floats[layer.name], nodes[layer.name]
        read, weight = qdq.quantizer_of(graph, node.inputs[1]), reference.const(original.inputs[1])
        if layer.name not in inputs:
            context.note(layer.name, "bias not corrected: no BatchNormalization and no data tell the mean of its input")
            continue
        if read is None or read.codes is None or weight is None:
            continue
        bias = float_bias(reference, original, decisions.bias_add(reference, original), weight)
        if bias is None:
            continue
        error = dequantize(read.codes, read.params).astype(np.float64) - weight
        wanted = bias - product_mean(original, error, inputs[layer.name])
        set_bias(graph, layer, wanted, _bias_scale(graph, layer))


def read_layer_bias(graph: Graph, layer: Layer) -> NDArray[np.float64]:
    """What a layer's bias means, float64 [M]."""
    array = graph.const(_bias_constant(layer))
    assert array is not None
    return array.reshape(-1).astype(np.float64) * _bias_scale(graph, layer)


def _bias_scale(graph: Graph, layer: Layer) -> NDArray[np.float32]:
    """Scale of a bias's codes; ones for a float bias, which has none."""
    value = operand(layer.bias_node, layer.bias_index)
    made = value.producer()
    read = None if made is None else qdq.read_bias(graph, made)
    return np.ones(1, np.float32) if read is None else read[1]


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


def float_name(name: str, known: Container[str | None]) -> str:
    """Name of a value in the float graph: insert_qdq renames the float value of a graph output."""
    return name if name in known else name.removesuffix("_float")


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
