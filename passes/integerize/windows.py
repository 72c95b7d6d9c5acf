"""Pools, means and softmax."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import Int, QuantParams
from qcompiler.graph.model import Graph, attribute
from qcompiler.ops.softmax import exponentials
from qcompiler.passes.integerize.movement import reads_unquantized
from qcompiler.passes.integerize.writer import Writer


def _pads_with_end(graph: Graph, node: ir.Node) -> tuple[list[int], list[int], list[int], list[int]]:
    """kernel, strides, dilations, and pads whose end reaches exactly as far as the last window (ceil_mode)."""
    x, y = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])  # type: ignore[arg-type]
    kernel = attribute(node, "kernel_shape") or list(x[2:])
    count = len(kernel)
    strides = attribute(node, "strides") or [1] * count
    dilations = attribute(node, "dilations") or [1] * count
    pads = attribute(node, "pads") or [0] * (2 * count)
    end = [
        max(0, (y[d + 2] - 1) * strides[d] + (kernel[d] - 1) * dilations[d] + 1 - x[d + 2] - pads[d])
        for d in range(count)
    ]
    return kernel, strides, dilations, [*pads[:count], *end]


def write_max_pool(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    graph = writer.source
    kernel, strides, dilations, pads = _pads_with_end(graph, node)
    attributes = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads}
    same = x.params == params
    pooled = writer.emit(
        "MaxPool", [x.value], attributes, x.params, graph.shape(node.outputs[0]), name if same else f"{name}_pooled"
    )
    return writer.requantize(pooled, x.params, params, name)


def refuses_max_pool(graph: Graph, node: ir.Node) -> str:
    if len(node.outputs) > 1 and node.outputs[1].uses():
        return "returns indices"
    if len(graph.shape(node.inputs[0])) > 4:  # type: ignore[arg-type]
        return "has more than two spatial dimensions"
    return reads_unquantized(graph, node)


def write_average_pool(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    graph = writer.source
    kernel, strides, dilations, pads = _pads_with_end(graph, node)
    counts = _cell_counts(graph, node, kernel, strides, dilations, pads)
    scale = np.float64(x.params.scale) / np.float64(params.scale) / counts
    if (counts == counts.flat[0]).all():
        scale = scale.flat[0]
    attributes = {
        "kernel_shape": kernel,
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "x_zero_point": int(x.params.zero_point),
        **writer.output_attributes(params),
    }
    inputs = [x.value, *writer.scale_inputs(scale, name)]
    return writer.emit("AveragePool", inputs, attributes, params, graph.shape(node.outputs[0]), name)


def _cell_counts(
    graph: Graph, node: ir.Node, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int]
) -> NDArray[np.float64]:
    """Divisor of every output position, [*out]: in-bounds cells, and declared padding if that counts."""
    x, y = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])  # type: ignore[arg-type]
    declared = attribute(node, "pads") or [0] * (2 * len(kernel))
    counted = bool(attribute(node, "count_include_pad", 0))
    total: NDArray[np.float64] = np.ones((), np.float64)
    for d, size in enumerate(kernel):
        low = -declared[d] if counted else 0
        high = x[d + 2] + (declared[d + len(kernel)] if counted else 0)
        cells = np.arange(y[d + 2])[:, None] * strides[d] - pads[d] + np.arange(size) * dilations[d]
        along = ((cells >= low) & (cells < high)).sum(axis=1).astype(np.float64)
        total = np.multiply.outer(total, along)
    return total


def _mean_axes(graph: Graph, node: ir.Node) -> list[int] | None:
    rank = len(graph.shape(node.inputs[0]))  # type: ignore[arg-type]
    if node.op_type == "GlobalAveragePool":
        return list(range(2, rank))
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = graph.const(node.inputs[1])
        if array is None:
            return None
        axes = [int(a) for a in array]
    if not axes:
        axes = [] if attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return sorted(a % rank for a in axes)


def refuses_mean(graph: Graph, node: ir.Node) -> str:
    return "has axes that are not constant" if _mean_axes(graph, node) is None else reads_unquantized(graph, node)


def write_mean(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    graph = writer.source
    shape = graph.shape(node.inputs[0])  # type: ignore[arg-type]
    axes = _mean_axes(graph, node) or []
    count = 1 if node.op_type == "ReduceSum" else prod(shape[a] for a in axes)
    attributes = {
        "axes": axes,
        "keepdims": 1 if node.op_type == "GlobalAveragePool" else attribute(node, "keepdims", 1),
        "x_zero_point": int(x.params.zero_point),
        **writer.output_attributes(params),
    }
    scale = np.float64(x.params.scale) / np.float64(params.scale) / count
    inputs = [x.value, *writer.scale_inputs(scale, name)]
    return writer.emit("ReduceMean", inputs, attributes, params, graph.shape(node.outputs[0]), name)


def write_softmax(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    graph = writer.source
    numerator = round(1 / float(params.scale))
    fitting = np.float32(1 / numerator) == params.scale
    own = params if fitting else QuantParams(Int(8, signed=False), np.float32(1 / 256))
    attributes = {
        "axis": attribute(node, "axis", -1) % len(graph.shape(node.inputs[0])),  # type: ignore[arg-type]
        "x_format": x.params.format.token,
        "numerator": numerator if fitting else 256,
        "zero_point": int(own.zero_point),
        "format": own.format.token,
    }
    table = exponentials(x.params.format, float(x.params.scale))
    codes = writer.emit(
        "Softmax",
        [x.value, writer.const(f"{name}_exp", table)],
        attributes,
        own,
        graph.shape(node.outputs[0]),
        name if fitting else f"{name}_softmax",
    )
    return writer.requantize(codes, own, params, name)
