"""How operators that only move codes are carried over: the same operator of ONNX on codes, arguments as constants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompiler.formats import QuantParams
from qcompiler.graph.model import Graph, attribute, attributes
from qcompiler.graph.qdq import quantizer_of
from qcompiler.passes.integerize import interpolate
from qcompiler.passes.integerize.rule import Rule, lacks_quantizer, one_input
from qcompiler.passes.integerize.writer import Codes, Writer

PAD_MODES = ("constant", "reflect", "edge", "wrap")
RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def refuses(graph: Graph, node: ir.Node) -> str:
    """Reason why a movement operator has no integer form, or ''."""
    if node.op_type == "Concat":
        return next((reason for value in node.inputs if (reason := lacks_quantizer(graph, value))), "")
    if node.op_type not in RESHAPES:
        for value in node.inputs[1:]:
            if value is not None and graph.const(value) is None and _is_argument(graph, node, value):
                return f"has an argument (`{value.name}`) that is not constant"
    if node.op_type == "Resize" and (reason := interpolate.refuses_resize(graph, node)):
        return reason
    if node.op_type == "Pad" and attribute(node, "mode", "constant") not in PAD_MODES:
        return f"has mode {attribute(node, 'mode')}"
    return one_input(graph, node)


def _is_argument(graph: Graph, node: ir.Node, value: ir.Value) -> bool:
    found = quantizer_of(graph, value)
    return found is None or found.codes is None


def write(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    """The operator on codes; a Table behind it where the output has other parameters."""
    graph = writer.source
    if node.op_type == "Split":
        return _split(writer, node, params, name)
    if node.op_type == "Concat":
        return _concat(writer, node, params, name)
    if node.op_type == "Resize" and attribute(node, "mode", "nearest") != "nearest":
        return interpolate.write_resize(writer, node, params, name)
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    if node.op_type == "Pad" and x.params != params:  # what it pads with may lie outside the range of the input
        x = Codes(writer.requantize(x.value, x.params, params, f"{name}_inside"), params)
    shape = graph.shape(node.outputs[0])
    op_type, inputs, values = _arguments(writer, node, x.params, shape, name)
    moved_name = name if x.params == params else f"{name}_moved"
    moved = writer.emit(op_type, [x.value, *inputs], values, x.params, shape, moved_name, domain="")
    codes = writer.requantize(moved, x.params, params, name)
    return interpolate.extrapolate(writer, node, codes, params, name) if op_type == "Resize" else codes


def _arguments(
    writer: Writer, node: ir.Node, x: QuantParams, shape: Sequence[int], name: str
) -> tuple[str, list[ir.Value | None], dict[str, object]]:
    graph = writer.source
    values = attributes(node)
    if node.op_type in RESHAPES:
        return "Reshape", [writer.const(f"{name}_shape", np.array(shape, np.int64))], {"allowzero": 1}
    if node.op_type == "Transpose":
        rank = len(shape)
        return "Transpose", [], {"perm": values.get("perm") or list(reversed(range(rank)))}
    if node.op_type == "Pad":
        pads = graph.const(node.inputs[1])
        assert pads is not None
        constant = _pad_code(graph, node, x)
        inputs: list[ir.Value | None] = [
            writer.const(f"{name}_pads", pads),
            writer.const(f"{name}_pad", np.asarray(constant, x.format.storage)),
        ]
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            inputs.append(writer.const(f"{name}_axes", np.asarray(graph.const(node.inputs[3]))))
        return "Pad", inputs, {"mode": values.get("mode", "constant")}
    arguments: list[ir.Value | None] = []
    for i, value in enumerate(node.inputs[1:], 1):
        array = graph.const(value)
        arguments.append(None if array is None else writer.const(f"{name}_argument{i}", array))
    return node.op_type, arguments, values


def _pad_code(graph: Graph, node: ir.Node, x: QuantParams) -> int:
    """The code of the padded value: the zero point for 0."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = graph.const(value)
    real = 0.0 if array is None else float(array.reshape(-1)[0])
    if array is None and value is not None:
        found = quantizer_of(graph, value)
        if found is not None and found.codes is not None:
            code = float(found.codes.reshape(-1)[0]) - float(found.params.zero_point.reshape(-1)[0])
            real = code * float(found.params.scale.reshape(-1)[0])
    code = np.rint(real / np.float64(x.scale)) + int(x.zero_point)
    return int(np.clip(code, x.format.min, x.format.max))


def _split(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    graph = writer.source
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    axis = attribute(node, "axis", 0) % len(graph.shape(node.inputs[0]))  # type: ignore[arg-type]

    def make() -> list[ir.Value]:
        shapes = [graph.shape(value) for value in node.outputs]
        sizes = writer.const(f"{name}_sizes", np.array([shape[axis] for shape in shapes], np.int64))
        outputs = [(x.params, shape, str(value.name)) for value, shape in zip(node.outputs, shapes, strict=True)]
        return writer.emit_many("Split", [x.value, sizes], {"axis": axis}, outputs, domain="")

    parts = writer.once(node, make)
    names = [str(value.name) for value in node.outputs]
    return writer.requantize(parts[names.index(name)], x.params, params, f"{name}_requantized")


def _concat(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    parts = []
    for i, value in enumerate(node.inputs):
        assert value is not None
        x = writer.codes(value)
        parts.append(writer.requantize(x.value, x.params, params, f"{name}_part{i}"))
    shape = writer.source.shape(node.outputs[0])
    axis = attribute(node, "axis") % len(shape)
    return writer.emit("Concat", parts, {"axis": axis}, params, shape, name, domain="")


MOVED = ("Concat", "DepthToSpace", "Expand", "Identity", "Pad", "Resize", "Slice", "Split", "Tile", "Transpose")
MOVEMENT = (*RESHAPES, *MOVED)
RULES = {name: Rule(write, refuses) for name in MOVEMENT}
