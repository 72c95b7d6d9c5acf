"""Write the assignment into the graph as quantizers: from here on the nodes are the truth.

Every assigned activation gets a quantizer behind it, weights and other constants become codes, and biases of
Conv, ConvTranspose, Gemm and of MatMul + Add become int32 with scale s_x * s_w (a missing bias becomes zeros, so that
later passes have one to correct). With activations above 8 bits (of a minifloat: levels above 8 bits), biases stay
float here; integerize quantizes them to int64, for which ONNX has no DequantizeLinear. Quantizers that the model came
with are spelled like the others.

A weight channel whose scale is so small that its bias would leave 30 bits gets a larger scale: its weights do not
matter beside such a bias. Names of nodes and values stay; only a graph output's float value is renamed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler import assignment as decisions
from qcompiler.assignment import Assignment
from qcompiler.context import Context
from qcompiler.errors import RecipeError
from qcompiler.formats import Minifloat, NumberFormat, QuantParams
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.normal import clear_normals
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.QDQ)
BIAS_LIMIT = 2.0**29
"""Largest code of a bias: leaves the accumulator three quarters of int32."""
DEAD_CODE = 2.0**20
"""Code of the bias of a channel whose weights are all 0: the channel is this constant, so it should be precise, but
kernels that shift sums up (packed weights) need room above it."""


@dataclass(frozen=True, kw_only=True)
class Options:
    pass


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """Insert quantizers in place; leaves a float copy in `context.float_graph`. Raises RecipeError without ranges."""
    assignment = context.assignment
    given = [node for node in graph.nodes() if qdq.is_quantizer(node)]
    if assignment is None or not (assignment.params or given or not assignment.activations):
        raise RecipeError(
            "no ranges were set yet.", where="insert_qdq", hint="Run the passes `decide` and `set_ranges` before it."
        )
    _name_nodes(graph)
    context.float_graph = graph.clone()
    clear_normals(graph)
    weighted = [
        (node, weight, decisions.bias_add(graph, node))
        for node in graph.nodes(*decisions.WEIGHTED)
        if (weight := decisions.weight_of(graph, node)) is not None
    ]
    by_name = {value.name: value for value in graph.values()}
    for node in given:
        _respell(graph, node)
    for name in assignment.activations:
        quantize_activation(graph, by_name[name], assignment.params[name], assignment.narrowed_params.get(name))
    for node, weight, add in weighted:
        _quantize_layer(graph, node, weight, add, assignment, context)
    weights = {weight.name for _, weight, _ in weighted}
    for name in assignment.constants:
        if name not in weights:
            _redirect(by_name[name], qdq.write_constant(graph, by_name[name], assignment.params[name]))
    graph.sweep()
    return graph


def _name_nodes(graph: Graph) -> None:
    taken: set[str] = set()
    for node in graph.nodes():
        base = node.name or f"{node.op_type}_{node.outputs[0].name}"
        name, i = base, 0
        while name in taken:
            i += 1
            name = f"{base}_{i}"
        taken.add(name)
        node.name = name


def quantize_activation(graph: Graph, value: ir.Value, params: QuantParams, narrow: QuantParams | None) -> None:
    """Let a quantizer come behind `value` for all its readers; narrow: of a second one, through which products read it.
    """
    users, products = list(value.uses()), decisions.operand_uses(graph, value)
    name = value.name or "value"
    dequantized = qdq.write_quantizer(graph, value, params, name=name)
    for use in users:
        use.node.replace_input_with(use.idx, dequantized)
    if narrow is not None:
        second = qdq.write_quantizer(graph, dequantized, narrow, name=f"{name}_narrow")
        for node, index in products:
            node.replace_input_with(index, second)
    if value.is_graph_output():
        value.name = graph.fresh_name(f"{name}_float")
        dequantized.name = name
        for i, output in enumerate(graph.ir.outputs):
            if output is value:
                graph.ir.outputs[i] = dequantized


def _respell(graph: Graph, node: ir.Node) -> None:
    """A quantizer that the model came with, in the form of the others."""
    read, old = qdq.read_quantizer(graph, node), node.outputs[0]
    new = qdq.write_quantizer(graph, read.source, read.params, name=read.source.name or "value")
    _redirect(old, new)
    if old.is_graph_output():
        name, old.name = old.name, graph.fresh_name(f"{old.name}_float")
        new.name = name
        for i, output in enumerate(graph.ir.outputs):
            if output is old:
                graph.ir.outputs[i] = new


def _fits_bias(read: NumberFormat, weight: NumberFormat) -> bool:
    """Whether 32 bits hold biases at the scale of the accumulator: levels of minifloats may have many bits."""
    x, w = (fmt.level_bits if isinstance(fmt, Minifloat) else fmt.bits for fmt in (read, weight))
    return x <= 8 and w <= 16


def _redirect(old: ir.Value, new: ir.Value) -> None:
    for use in list(old.uses()):
        use.node.replace_input_with(use.idx, new)


def _quantize_layer(
    graph: Graph, node: ir.Node, weight: ir.Value, add: ir.Node | None, assignment: Assignment, context: Context
) -> None:
    array = graph.const(weight)
    assert array is not None
    params = assignment.params[weight.name or ""]
    read = qdq.quantizer_of(graph, node.inputs[0])
    narrow = read is not None and _fits_bias(read.params.format, params.format)
    bias = float_bias(graph, node, add, array)
    if read is not None and narrow and bias is not None:
        params = fit_bias(params, array, bias, read.params.scale)
    dequantized = qdq.write_constant(graph, weight, params, name=weight.name)
    node.replace_input_with(1, dequantized)
    if bias is None:
        return
    name = f"{node.name}_bias" if add is not None or len(node.inputs) < 3 or node.inputs[2] is None else (
        node.inputs[2].name or f"{node.name}_bias"
    )
    value = None
    if read is not None and narrow:
        scale = np.broadcast_to(read.params.scale * params.scale, bias.shape)
        value = qdq.write_bias(graph, bias, scale, before=node, name=name)
        if value is None:
            context.note(node, "bias left float: it does not fit 32 bits at the scale of its accumulator")
    if value is None:
        value = graph.add_const(name, bias)
    if add is not None:
        add.replace_input_with(0 if add.inputs[1] is node.outputs[0] else 1, value)
    elif node.op_type != "MatMul":
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, value)


def float_bias(
    graph: Graph, node: ir.Node, add: ir.Node | None, weight: NDArray
) -> NDArray[np.float32] | None:
    """float32 [M]; zeros where there is none, None when it is not constant or cannot be written at this node."""
    if add is not None:
        array = graph.const(add.inputs[0] if add.inputs[1] is node.outputs[0] else add.inputs[1])
        return None if array is None else array.reshape(-1)
    if node.op_type == "MatMul":
        return None
    channels = {
        "Conv": lambda: weight.shape[0],
        "ConvTranspose": lambda: weight.shape[1] * attribute(node, "group", 1),
        "Gemm": lambda: weight.shape[0 if attribute(node, "transB", 0) else 1],
    }[node.op_type]()
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None:
        return np.zeros(channels, np.float32)
    array = graph.const(given)
    if array is None or array.size not in (1, channels):
        return None
    return np.array(np.broadcast_to(array.reshape(-1), channels), np.float32)


def fit_bias(params: QuantParams, weight: NDArray, bias: NDArray, s_x: NDArray) -> QuantParams:
    """Scales at which biases do not leave 30 bits; where that makes all codes of a channel 0, its bias has 20.

    Some networks are full of such channels (MLPerf Tiny's person detector: two thirds of those of its last layers).
    """
    if params.scale.size not in (1, bias.size):
        return params
    steps = np.abs(bias).astype(np.float64) / float(s_x)
    scale = params.scale.astype(np.float64)
    if params.axis is None:
        scale = np.maximum(scale, steps.max() / BIAS_LIMIT)
    else:
        others = tuple(axis for axis in range(weight.ndim) if axis != params.axis)
        fitting = np.maximum(scale, steps / BIAS_LIMIT)
        largest = np.abs(weight).max(axis=others)
        constant = np.where(bias != 0, steps / DEAD_CODE, fitting.max())
        scale = np.where(largest < fitting / 2, np.maximum(constant, 4 * largest), fitting)
    smallest = float(np.finfo(np.float32).tiny)
    return QuantParams(params.format, np.maximum(scale, smallest), params.zero_point, params.axis)
