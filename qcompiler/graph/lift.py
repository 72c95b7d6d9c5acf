"""Read a model that is quantized already: every spelling of a quantizer becomes `qcompiler::FakeQuantize`.

Codes are lifted to the real values they stand for, in topological order:

QDQ        QuantizeLinear -> FakeQuantize; DequantizeLinear of its codes is the same value; a Clip on the codes between
           them (QCDQ) narrows the format; operators that move codes move values
QOperator  QLinearConv, QLinearMatMul and the like -> the float operator and a FakeQuantize (`graph/qoperators.py`)
integer    ConvInteger, MatMulInteger -> Conv, MatMul of the centred codes
QONNX      Quant of the domains of Brevitas and QONNX -> FakeQuantize
dynamic    DynamicQuantizeLinear goes, its readers compute in float; the model is told to have been dequantized

Quantized constants become float32 values on their grid, which `graph/given.py` remembers. Every FakeQuantize keeps its
scale through the pipeline. Raises UnsupportedError for what has no such reading, and says which node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.formats import Int, Minifloat, QuantParams, parse_format
from qcompiler.graph.functions import FAKE_QUANTIZE, MINIFLOAT_QUANTIZE
from qcompiler.graph.given import mark_given
from qcompiler.graph.model import DOMAIN, Graph, attribute, operand
from qcompiler.graph.qdq import BIAS_TOKEN, FLOATS, FORMAT_KEY, read_quantizer, write_fake_quantize
from qcompiler.quantizer import dequantize, quantize

QONNX = ("onnx.brevitas", "qonnx.custom_op.general", "finn.custom_op.general")
MICROSOFT = "com.microsoft"
STORAGE = {
    getattr(ir.DataType, f"{sign}INT{bits}"): Int(bits, not sign)
    for bits in (2, 4, 8, 16)
    for sign in ("", "U")
    if hasattr(ir.DataType, f"{sign}INT{bits}")
}
MOVES = frozenset({
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "MaxPool", "Concat",
    "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Gather", "Resize", "Relu",
})  # fmt: skip
"""Operators that mean on codes what they mean on values, if their inputs share parameters (Relu: zero point 0)."""


@dataclass(frozen=True)
class Lifted:
    """The real value of an integer value. params: what its codes mean, None for accumulators and dynamic ranges."""

    value: ir.Value
    params: QuantParams | None


class Lifter:
    """The walk over one graph, changed in place."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.lifted: dict[ir.Value, Lifted] = {}
        self.formats: dict[ir.Value, Int] = {}
        """Of constant codes that have fewer bits than their storage."""

    def run(self) -> None:
        """Lift every node, and give integer outputs of the model their real values."""
        rules = handlers()
        for node in self.graph.nodes():
            rule = rules.get((node.domain, node.op_type))
            if rule is not None:
                rule(self, node)
            elif any(value in self.lifted for value in node.inputs if value is not None):
                self._on_codes(node)
        for value in self.graph.outputs:
            if value in self.lifted:
                name = value.name
                self.graph.note(str(name), "the output holds codes; it is given in real values")
                self.graph.replace_uses(value, self.lifted[value].value)
        self.graph.sweep()
        for value in self.lifted:
            if value.producer().graph is not None and value.uses():  # type: ignore[union-attr]
                raise self.unsupported(next(iter(value.uses())).node, "computes with codes")
        used = {node.domain for node in self.graph.ir} | {""}
        for domain in {*QONNX, MICROSOFT} - used:
            self.graph.model.opset_imports.pop(domain, None)

    def unsupported(self, node: ir.Node, why: str) -> UnsupportedError:
        """The error for a node that cannot be lifted."""
        return UnsupportedError(
            f"{node.op_type} (node `{node.name or node.outputs[0].name}`) {why}.",
            where=self.graph.path,
            hint="Start from the float model, or export its quantizers per tensor as QuantizeLinear, DequantizeLinear.",
        )

    # -- values ------------------------------------------------------------------------------------------------

    def constant(self, node: ir.Node, value: ir.Value | None) -> NDArray:
        """A parameter that must be constant."""
        array = self.graph.const(value)
        if array is None:
            raise self.unsupported(node, f"has a parameter (`{value.name if value else ''}`) that is not constant")
        return array

    def params(
        self,
        node: ir.Node,
        scale: ir.Value | None,
        zero_point: ir.Value | None,
        axis: int | None,
        like: ir.Value | None,
    ) -> QuantParams:
        """Scale and zero point of a node's inputs; the format is the type of the zero point, else of `like`, uint8."""
        s = self.constant(node, scale).astype(np.float32)
        kind = next((FLOATS[v.dtype] for v in (zero_point, like) if v is not None and v.dtype in FLOATS), None)
        if kind is not None and s.ndim <= 1:
            s = s.reshape(() if s.size == 1 else -1) * np.float32(kind.unit)
            return QuantParams(kind, s, axis=axis if s.ndim else None)
        z = np.zeros((), np.int64) if zero_point is None else self.constant(node, zero_point).astype(np.int64)
        stored = zero_point if zero_point is not None else like
        fmt = STORAGE.get(stored.dtype) if stored is not None and stored.dtype is not None else Int(8, signed=False)  # type: ignore[arg-type]
        if fmt is None:
            raise self.unsupported(node, f"quantizes to {stored.dtype if stored else None}")
        if s.ndim > 1:
            raise self.unsupported(node, "has one scale for each block")
        if s.size == 1:
            return QuantParams(fmt, s.reshape(()), z.reshape(-1)[0])
        return QuantParams(fmt, s, np.broadcast_to(z.reshape(-1), s.shape), axis)

    def real_constant(self, value: ir.Value, params: QuantParams, node: ir.Node) -> ir.Value:
        """The real values of constant codes, on their grid."""
        codes = self.constant(node, value)
        axis = None if params.axis is None else params.axis % max(codes.ndim, 1)
        params = QuantParams(params.format, params.scale, params.zero_point, axis)
        new = self.graph.add_const(f"{value.name}_real", dequantize(codes.astype(np.int64), params))
        mark_given(new, params)
        return new

    def real(self, node: ir.Node, index: int, params: QuantParams) -> ir.Value:
        """The real value of the codes in input `index`, which must mean `params`."""
        value = operand(node, index)
        if self.graph.const(value) is not None:
            return self.real_constant(value, params, node)
        found = self.lifted.get(value)
        if found is None:
            raise self.unsupported(node, f"reads the codes `{value.name}`, which nothing in the model quantizes")
        if found.params is not None and found.params != params:
            told = found.params
            if (told.scale, told.zero_point, told.axis) != (params.scale, params.zero_point, params.axis):
                raise self.unsupported(
                    node, f"reads the codes `{value.name}` with another scale than they were made with"
                )
        return found.value

    def quantized(self, node: ir.Node, value: ir.Value, params: QuantParams, output: int = 0) -> None:
        """Output `output` of `node` is the codes of the float value."""
        if params.axis is not None:
            raise self.unsupported(node, "has a scale for every channel of an activation")
        name = str(value.name)
        fake = write_fake_quantize(self.graph, value, params, name=name, before=node)
        self.lifted[node.outputs[output]] = Lifted(fake, params)

    def float_node(self, node: ir.Node, op_type: str, inputs: list[ir.Value | None], **values: object) -> ir.Value:
        """A float operator in the place of `node`."""
        new = self.graph.add_node(op_type, inputs, {k: v for k, v in values.items() if v is not None}, before=node,
                                  name=node.name, outputs=[f"{node.outputs[0].name}_real"])  # fmt: skip
        new.outputs[0].shape, new.outputs[0].type = node.outputs[0].shape, ir.TensorType(ir.DataType.FLOAT)
        return new.outputs[0]

    def replace(self, node: ir.Node, value: ir.Value) -> None:
        """Readers of the node's float output read `value`."""
        self.graph.replace_uses(node.outputs[0], value)

    # -- operators of the default domain on codes --------------------------------------------------------------

    def _on_codes(self, node: ir.Node) -> None:
        if node.op_type == "Cast":
            self._cast(node)
        elif node.op_type == "Shape":
            node.replace_input_with(0, self.lifted[operand(node)].value)
        elif node.op_type == "Mul" and all(value in self.lifted for value in node.inputs):
            raise self.unsupported(node, "multiplies codes")
        elif node.op_type in MOVES and not node.domain:
            self._move(node)
        else:
            raise self.unsupported(node, "computes with codes")

    def _cast(self, node: ir.Node) -> None:
        found = self.lifted[operand(node)]
        if attribute(node, "to") != ir.DataType.FLOAT.value or found.params is not None:
            raise self.unsupported(node, "casts codes")
        self.replace(node, found.value)

    def clip(self, node: ir.Node) -> None:
        """QCDQ: fewer codes than the storage has."""
        codes = self.graph.const(operand(node))
        found = self.lifted.get(operand(node))
        fake = found.value.producer() if found is not None else None
        if found is not None and (found.params is None or fake is None):
            raise self.unsupported(node, "clips accumulators")
        whole = STORAGE.get(operand(node).dtype) if found is None or found.params is None else found.params.format  # type: ignore[arg-type]
        if whole is None or (found is None and codes is None):
            return  # a Clip of values
        bounds = [whole.min, whole.max]
        for i in (1, 2):
            if len(node.inputs) > i and node.inputs[i] is not None:
                bounds[i - 1] = int(self.constant(node, node.inputs[i]).reshape(-1)[0])
        fmt = _format_of(*bounds)
        if fmt is None:
            raise self.unsupported(node, f"leaves the codes {bounds[0]} to {bounds[1]}, which are no integer format")
        if codes is not None:
            clipped = self.graph.add_const(f"{operand(node).name}_clipped", np.clip(codes, bounds[0], bounds[1]))
            self.formats[clipped] = fmt
            self.graph.replace_uses(node.outputs[0], clipped)
        elif found is not None and found.params is not None and fake is not None:
            self.quantized(node, operand(fake), QuantParams(fmt, found.params.scale, found.params.zero_point))

    def _move(self, node: ir.Node) -> None:
        data = list(node.inputs) if node.op_type == "Concat" else [node.inputs[0]]
        known = [self.lifted.get(value) if value is not None else None for value in data]
        first = known[0]
        if first is None or any(k is None or k.params != first.params for k in known):
            raise self.unsupported(node, "moves codes of different scales")
        if node.op_type == "Relu" and (first.params is None or int(first.params.zero_point) != 0):
            raise self.unsupported(node, "cuts codes whose zero point is not 0")
        inputs = [self.lifted[v].value if v in self.lifted else v for v in node.inputs]
        new = self.graph.add_node(node.op_type, inputs, before=node, name=node.name, outputs=len(node.outputs))
        new.attributes.update(node.attributes)
        for old, value in zip(node.outputs, new.outputs, strict=True):
            value.shape, value.type = old.shape, ir.TensorType(ir.DataType.FLOAT)
            self.lifted[old] = Lifted(value, first.params)


def _format_of(low: int, high: int) -> Int | None:
    for bits in range(2, 17):
        for fmt in (Int(bits), Int(bits, signed=False), Int(bits, narrow=True)):
            if (fmt.min, fmt.max) == (low, high):
                return fmt
    return None


# -- quantizers ------------------------------------------------------------------------------------------------


def _quantize_linear(lifter: Lifter, node: ir.Node) -> None:
    scale, zero_point = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    params = lifter.params(node, scale, zero_point, attribute(node, "axis", 1), node.outputs[0])
    value = operand(node)
    array = lifter.graph.const(value)
    if array is None:
        lifter.quantized(node, value, params)
        return
    codes = lifter.graph.add_const(f"{value.name}_codes", quantize(array, params))
    lifter.graph.replace_uses(node.outputs[0], codes)


def _dequantize_linear(lifter: Lifter, node: ir.Node) -> None:
    scale, zero_point = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    codes = lifter.graph.const(node.inputs[0])
    if codes is not None and _is_minifloat(node):
        _fake_quantize(lifter, node)
        return
    if codes is not None and (operand(node).dtype not in STORAGE or attribute(node, "block_size", 0)):
        if lifter.graph.const(scale) is None or (zero_point is not None and lifter.graph.const(zero_point) is None):
            raise lifter.unsupported(node, "has parameters that are not constant")
        lifter.replace(node, lifter.graph.add_const(f"{node.outputs[0].name}_real", _dequantized(lifter.graph, node)))
        return
    found = lifter.lifted.get(operand(node))
    if found is not None and found.params is None:
        raise lifter.unsupported(node, "reads accumulators or dynamic codes")
    params = lifter.params(node, scale, zero_point, attribute(node, "axis", 1), node.inputs[0])
    narrow = (
        found.params.format if found is not None and found.params is not None else lifter.formats.get(operand(node))
    )
    if FORMAT_KEY in node.metadata_props and not isinstance(params.format, Minifloat):  # our own files
        narrow = parse_format(node.metadata_props[FORMAT_KEY])
    if narrow is not None and narrow.storage == params.format.storage:
        params = QuantParams(narrow, params.scale, params.zero_point, params.axis)
    lifter.replace(node, lifter.real(node, 0, params))


def _is_minifloat(node: ir.Node) -> bool:
    """Whether a DequantizeLinear of a constant says that it holds minifloats, with one scale or one a channel."""
    token = node.metadata_props.get(FORMAT_KEY, BIAS_TOKEN)
    known = operand(node).dtype in FLOATS or token != BIAS_TOKEN and isinstance(parse_format(token), Minifloat)
    return known and not attribute(node, "block_size", 0) and len(operand(node, 1).shape or ()) < 2


def _dequantized(graph: Graph, node: ir.Node) -> NDArray[np.float32]:
    """What DequantizeLinear makes of constants, in any of ONNX's granularities and types."""
    codes, scale, *rest = (graph.const(value) for value in node.inputs)
    assert codes is not None and scale is not None
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    wide = codes.astype(np.float32) if codes.dtype.kind not in "iu" else codes.astype(np.int64)

    def spread(values: NDArray) -> NDArray:
        if block:
            return np.repeat(values, block, axis=axis).take(np.arange(codes.shape[axis]), axis=axis)
        return (
            values.reshape([-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)])
            if values.size > 1
            else (values.reshape(()))
        )

    if rest and rest[0] is not None:
        wide = wide - spread(rest[0]).astype(wide.dtype)
    return np.asarray(wide.astype(np.float32) * spread(scale).astype(np.float32))


def _fake_quantize(lifter: Lifter, node: ir.Node) -> None:
    """Ours, or a constant of minifloats: constants become values on their grid."""
    if any(lifter.graph.const(value) is None for value in node.inputs[1:] if value is not None):
        raise lifter.unsupported(node, "has parameters that are not constant")
    read = read_quantizer(lifter.graph, node)
    if read.codes is not None:
        codes = lifter.graph.add_const(f"{read.source.name}_codes", read.codes)
        lifter.replace(node, lifter.real_constant(codes, read.params, node))


def _dynamic(lifter: Lifter, node: ir.Node) -> None:
    """Codes stand for x itself, at scale 1: what reads them computes in float."""
    graph = lifter.graph
    lifter.lifted[node.outputs[0]] = Lifted(operand(node), None)
    graph.replace_uses(node.outputs[1], graph.add_const(f"{node.outputs[1].name}_one", np.ones((), np.float32)))
    graph.replace_uses(node.outputs[2], graph.add_const(f"{node.outputs[2].name}_zero", np.zeros((), np.uint8)))
    graph.note(node, "quantized dynamically: dequantized back to float, its activations get static ranges")


def handlers() -> dict[tuple[str, str], Callable[[Lifter, ir.Node], None]]:
    """(domain, operator) -> what lifts it."""
    from qcompiler.graph.qonnx import quant
    from qcompiler.graph.qoperators import RULES

    return {
        ("", "QuantizeLinear"): _quantize_linear,
        (MICROSOFT, "QuantizeLinear"): _quantize_linear,
        ("", "DequantizeLinear"): _dequantize_linear,
        (MICROSOFT, "DequantizeLinear"): _dequantize_linear,
        ("", "DynamicQuantizeLinear"): _dynamic,
        ("", "Clip"): Lifter.clip,
        (DOMAIN, FAKE_QUANTIZE): _fake_quantize,
        (DOMAIN, MINIFLOAT_QUANTIZE): _fake_quantize,
        **{(domain, "Quant"): quant for domain in QONNX},
        **RULES,
    }


def lift(graph: Graph) -> bool:
    """Lift all quantizers, in place; whether there were any. Raises UnsupportedError."""
    known = set(handlers()) - {("", "Clip")}
    if not any((node.domain, node.op_type) in known for node in graph.ir):
        return False
    Lifter(graph).run()
    return True
