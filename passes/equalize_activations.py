"""Give the channels of linear values one range: x[c] / t_c in the layers that write x, W[:, c] * t_c in its readers.

A value is linear if layers (Conv, ConvTranspose, Gemm) write it without an activation behind and layers read it:
the bottlenecks of inverted residuals. Residual Adds tie values, which then share t. Since weights are quantized per
output channel, scaling the rows of the writing layer costs nothing there; the columns of the reading layer get
what the activation had, so t is a compromise: t_c = (R_c / W_c) ** strength, R_c the largest |x[c]| over the
calibration data and W_c the largest |W[:, c]|, each against its geometric mean.

A per-tensor quantizer then serves all channels of x. Groups that something else reads or writes are left alone.
Float output is equal up to float32 rounding. Source: the idea of SmoothQuant (Xiao et al. 2023, equation 4) on the
linear values of convolutional networks; strength 0.5 is its alpha.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.calibrate.statistics import with_outputs
from qcompiler.context import Context
from qcompiler.errors import CalibrationError
from qcompiler.execute.ort import Session
from qcompiler.graph.analysis import shared_groups
from qcompiler.graph.channels import as_inputs, is_layer, scale_inputs, scale_outputs
from qcompiler.graph.model import Graph
from qcompiler.graph.normal import scale_normal
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)
WRITERS = ("Conv", "ConvTranspose", "Gemm")
READERS = ("Conv", "Gemm")


@dataclass(frozen=True, kw_only=True)
class Options:
    strength: float = 0.5
    """Exponent of R_c / W_c: 0 changes nothing, 1 gives all channels of x the same range."""
    samples: int = 64
    """Calibration samples that ranges are taken from."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function with equalized linear values. Raises CalibrationError without samples."""
    groups = linear_groups(graph)
    if groups and context.samples is None:
        raise CalibrationError("the pass `equalize_activations` needs calibration data.")
    names = [str(value.name) for group in groups for value in group]
    ranges = _ranges(graph, names, options.samples, context)
    for group in groups:
        reach = np.max([ranges[str(value.name)] for value in group], axis=0)
        readers = {reader: None for value in group for reader in _readers(value)}
        weight = np.max([_columns(graph, reader) for reader in readers], axis=0)
        live = (reach > 0) & (weight > 0)
        t = np.ones_like(reach)
        t[live] = (_relative(reach[live]) / _relative(weight[live])) ** options.strength
        for value in group:
            writer = value.producer()
            if writer is not None and writer.op_type in WRITERS:
                _scale_writer(graph, writer, 1 / t)
                scale_normal(value, 1 / t)
        for reader in readers:
            w = graph.const(reader.inputs[1])
            assert w is not None
            graph.set_input_const(reader, 1, scale_inputs(reader, w.astype(np.float64), t).astype(np.float32))
    context.facts["equalize_activations"] = {"groups": len(groups), "values": len(names)}
    graph.sweep()
    return graph


def linear_groups(graph: Graph) -> list[list[ir.Value]]:
    """Sets of values that can be scaled together, in graph order."""
    ties: list[tuple[str, str]] = []
    written: list[str] = []
    by_name: dict[str, ir.Value] = {}
    for node in graph.nodes():
        value = node.outputs[0]
        name = str(value.name)
        by_name[name] = value
        if node.op_type in WRITERS and not node.domain and is_layer(graph, node):
            written.append(name)
        elif _is_residual(graph, node):
            ties += [(str(x.name), name) for x in node.inputs if x is not None]
    order = {name: i for i, name in enumerate(by_name)}
    tied = shared_groups(graph, ties)
    alone = [{name} for name in written if not any(name in group for group in tied)]
    groups = [sorted(group, key=lambda n: order.get(n, -1)) for group in [*tied, *alone]]
    found = [[by_name[n] for n in group] for group in groups if all(n in by_name for n in group)]
    found = [group for group in found if all(_fits(graph, value) for value in group)]
    found = [group for group in found if any(_readers(value) for value in group)]
    return sorted(found, key=lambda group: order[str(group[0].name)])


def _is_residual(graph: Graph, node: ir.Node) -> bool:
    """An Add of two values of one shape."""
    if node.op_type != "Add" or node.domain or len(node.inputs) != 2:
        return False
    if any(value is None or graph.const(value) is not None for value in node.inputs):
        return False
    return graph.shape(node.inputs[0]) == graph.shape(node.inputs[1])


def _fits(graph: Graph, value: ir.Value) -> bool:
    """Written by a layer or a residual Add, read by layers and residual Adds only."""
    writer = value.producer()
    if writer is None or value.is_graph_output() or len(graph.shape(value)) < 2:
        return False
    if not (_is_residual(graph, writer) or writer.op_type in WRITERS and is_layer(graph, writer)):
        return False
    for use in value.uses():
        node = use.node
        layer = node.op_type in READERS and not node.domain and use.idx == 0 and is_layer(graph, node)
        if not layer and not _is_residual(graph, node):
            return False
    return True


def _readers(value: ir.Value) -> list[ir.Node]:
    return list(dict.fromkeys(use.node for use in value.uses() if use.node.op_type in READERS))


def _columns(graph: Graph, reader: ir.Node) -> NDArray:
    w = graph.const(reader.inputs[1])
    assert w is not None
    return np.asarray(as_inputs(reader, np.abs(w.astype(np.float64))).max(axis=1))


def _relative(values: NDArray) -> NDArray:
    return np.asarray(values / np.exp(np.log(values).mean()))


def _scale_writer(graph: Graph, writer: ir.Node, factor: NDArray) -> None:
    w = graph.const(writer.inputs[1])
    assert w is not None
    graph.set_input_const(writer, 1, scale_outputs(writer, w.astype(np.float64), factor).astype(np.float32))
    bias = graph.const(writer.inputs[2]) if len(writer.inputs) > 2 else None
    if bias is not None:
        graph.set_input_const(writer, 2, (bias.astype(np.float64) * factor).astype(np.float32))


def _ranges(graph: Graph, names: list[str], limit: int, context: Context) -> dict[str, NDArray[np.float64]]:
    """Largest |x| of every channel (axis 1)."""
    found: dict[str, NDArray[np.float64]] = {}
    if not names or context.samples is None:
        return found
    session = Session(with_outputs(graph, names))
    total = min(limit, len(context.samples))
    for done, sample in enumerate(_first(context.samples, total), 1):
        context.progress("equalize activations", done, total)
        for name, array in zip(names, session.run(sample, names), strict=True):
            axes = tuple(a for a in range(array.ndim) if a != 1)
            reach = np.abs(array).max(axis=axes).astype(np.float64)
            found[name] = np.maximum(found[name], reach) if name in found else reach
    return found


def _first(samples: Iterable[dict[str, NDArray]], count: int) -> Iterable[dict[str, NDArray]]:
    for i, sample in enumerate(samples):
        if i == count:
            return
        yield sample
