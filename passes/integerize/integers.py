"""Integers beside the codes: ids that enter the graph, places of the largest (ArgMax, ArgMin, TopK), their shapes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.formats import QuantParams
from qcompiler.graph.model import Graph, attribute, attributes
from qcompiler.passes.integerize.rule import Lacks, Rule, lacks_quantizer, one_input
from qcompiler.passes.integerize.writer import Writer

RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
PLACES = ("ArgMax", "ArgMin", "TopK")
TYPES = (ir.DataType.INT64, ir.DataType.INT32)


def refuses(graph: Graph, value: ir.Value | None, lacks: Lacks = lacks_quantizer) -> str:
    """Why an integer value has no form in the integer graph, or ''. lacks: what is wrong with a float below it."""
    from qcompiler.passes.integerize import truth

    if value is None:
        return "lacks an input"
    node = value.producer()
    if value.dtype not in TYPES:
        return f"reads `{value.name}`, which is {value.dtype}"
    if node is None:
        return ""
    if node.op_type in PLACES and not node.domain:
        x = node.inputs[0]
        if x is None or x.dtype not in (None, ir.DataType.FLOAT):
            return f"reads integers (`{value.name}`) that {node.op_type} finds among integers"
        if node.op_type == "TopK" and graph.const(node.inputs[1]) is None:
            return "has a count that is not constant"
        return lacks(graph, x)
    if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.BOOL:
        return truth.refuses(graph, node.inputs[0], lacks)
    if node.op_type in (*RESHAPES, "Cast") and not node.domain:
        return refuses(graph, node.inputs[0], lacks)
    return f"reads integers (`{value.name}`) that {node.op_type} computes"


def write(writer: Writer, value: ir.Value) -> ir.Value:
    """The integers themselves, int64 or int32."""
    from qcompiler.passes.integerize import truth

    graph, node = writer.source, value.producer()
    constant = graph.const(value)
    if constant is not None:
        return writer.const(f"{value.name}_integers", constant)
    if node is None:
        return writer.input(value)
    if node.op_type == "TopK":
        return _top_k(writer, node)[1]

    def make() -> list[ir.Value]:
        shape, name = graph.shape(value), f"{value.name}_integers"
        if node.op_type in ("ArgMax", "ArgMin"):
            given = {k: v for k, v in attributes(node).items() if k != "axis"}
            axis = attribute(node, "axis", 0) % len(graph.shape(node.inputs[0]))
            inputs = [writer.codes(node.inputs[0]).value]  # type: ignore[arg-type]
            return [writer.emit_plain(node.op_type, inputs, {**given, "axis": axis}, shape, name)]
        x = node.inputs[0]
        assert x is not None
        if x.dtype == ir.DataType.BOOL:
            return [_cast(writer, truth.write(writer, x), value.dtype, shape, name)]
        inner = write(writer, x)
        if node.op_type == "Cast":
            return [inner if inner.dtype == value.dtype else _cast(writer, inner, value.dtype, shape, name)]
        to = writer.const(f"{name}_shape", np.array(shape, np.int64))
        return [writer.emit_plain("Reshape", [inner, to], {"allowzero": 1}, shape, name, inner.dtype)]

    return writer.once(node, make)[0]


def _cast(writer: Writer, x: ir.Value, dtype: ir.DataType | None, shape: tuple[int, ...], name: str) -> ir.Value:
    kind = dtype or ir.DataType.INT64
    return writer.emit_plain("Cast", [x], {"to": int(kind)}, shape, name, kind)


def write_output(writer: Writer, value: ir.Value) -> ir.Value:
    """A graph output of integers or truth values."""
    from qcompiler.passes.integerize import truth

    shape, name = writer.source.shape(value), str(value.name)
    if value.dtype == ir.DataType.BOOL:
        return writer.emit_plain(
            "Cast", [truth.write(writer, value)], {"to": int(value.dtype)}, shape, name, value.dtype
        )
    found = write(writer, value)
    return writer.emit_plain("Identity", [found], {}, shape, name, found.dtype)


def refuses_output(graph: Graph, value: ir.Value, lacks: Lacks = lacks_quantizer) -> str:
    """Why an output that is not float cannot leave the graph, or ''."""
    from qcompiler.passes.integerize import truth

    if value.dtype not in (*TYPES, ir.DataType.BOOL):
        return f"is {value.dtype}; outputs are float32 (quantized), int64, int32 or bool"
    if value.producer() is None:
        return "is an input or a constant"
    return truth.refuses(graph, value, lacks) if value.dtype == ir.DataType.BOOL else refuses(graph, value, lacks)


def _refuses_top_k(graph: Graph, node: ir.Node) -> str:
    return "has a count that is not constant" if graph.const(node.inputs[1]) is None else one_input(graph, node)


def _top_k(writer: Writer, node: ir.Node) -> list[ir.Value]:
    graph = writer.source

    def make() -> list[ir.Value]:
        x, k = writer.codes(node.inputs[0]), graph.const(node.inputs[1])  # type: ignore[arg-type]
        count = writer.const(f"{node.name}_k", np.asarray(k, np.int64))
        axis = attribute(node, "axis", -1) % len(graph.shape(node.inputs[0]))
        given = {"axis": axis, "largest": attribute(node, "largest", 1), "sorted": 1}
        shape = graph.shape(node.outputs[0])
        names = [f"{value.name or node.name}_top" for value in node.outputs]
        outputs: list[tuple[QuantParams | None, tuple[int, ...], str]] = [
            (x.params, shape, names[0]), (None, shape, names[-1] + "_places"),
        ]  # fmt: skip
        return writer.emit_many("TopK", [x.value, count], given, outputs, domain="")

    return writer.once(node, make)


def _write_top_k(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    codes = _top_k(writer, node)[0]
    return writer.requantize(codes, writer.codes(node.inputs[0]).params, params, name)  # type: ignore[arg-type]


RULES = {"TopK": Rule(_write_top_k, _refuses_top_k)}
