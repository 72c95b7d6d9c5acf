"""QOperators of ONNX and onnxruntime as a float operator and a quantizer: rules of `graph/lift.py`.

Inputs are x, x_scale, x_zero_point, ... in the order of each operator's definition. Biases are int32 at the scale
s_x * s_w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompiler.formats import QuantParams
from qcompiler.graph.model import attribute, attributes, operand

if TYPE_CHECKING:
    from qcompiler.graph.lift import Lifter

MICROSOFT = "com.microsoft"


def _at(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _real(lifter: Lifter, node: ir.Node, x: int, scale: int, zero: int, axis: int | None = None) -> ir.Value:
    params = lifter.params(node, _at(node, scale), _at(node, zero), axis, _at(node, x))
    return lifter.real(node, x, params)


def _output(lifter: Lifter, node: ir.Node, value: ir.Value, scale: int, zero: int) -> None:
    like = node.outputs[0] if node.outputs[0].dtype is not None else node.inputs[0]
    lifter.quantized(node, value, lifter.params(node, _at(node, scale), _at(node, zero), None, like))


def _bias(
    lifter: Lifter, node: ir.Node, index: int, x_scale: int, w_scale: int, factor: float = 1.0
) -> ir.Value | None:
    given = _at(node, index)
    if given is None:
        return None
    scale = lifter.constant(node, _at(node, x_scale)).reshape(-1) * lifter.constant(node, _at(node, w_scale)).reshape(
        -1
    )
    codes = lifter.constant(node, given)
    values = codes.reshape(-1).astype(np.float64) * scale.astype(np.float64) * factor
    return lifter.graph.add_const(f"{given.name}_real", values.astype(np.float32).reshape(codes.shape))


def _qlinear_conv(lifter: Lifter, node: ir.Node) -> None:
    inputs = [_real(lifter, node, 0, 1, 2), _real(lifter, node, 3, 4, 5, axis=0), _bias(lifter, node, 8, 1, 4)]
    value = lifter.float_node(node, "Conv", inputs if inputs[2] else inputs[:2], **attributes(node))
    _output(lifter, node, value, 6, 7)


def _qlinear_matmul(lifter: Lifter, node: ir.Node) -> None:
    inputs: list[ir.Value | None] = [_real(lifter, node, 0, 1, 2), _real(lifter, node, 3, 4, 5, axis=-1)]
    _output(lifter, node, lifter.float_node(node, "MatMul", inputs), 6, 7)


def _qgemm(lifter: Lifter, node: ir.Node) -> None:
    turned = attribute(node, "transB", 0)
    inputs = [_real(lifter, node, 0, 1, 2), _real(lifter, node, 3, 4, 5, axis=0 if turned else 1)]
    alpha = attribute(node, "alpha", 1.0)
    bias = _bias(lifter, node, 6, 1, 4, alpha)
    operands: list[ir.Value | None] = [*inputs, bias] if bias else [*inputs]
    value = lifter.float_node(node, "Gemm", operands, **attributes(node))
    if _at(node, 7) is None:
        lifter.replace(node, value)
    else:
        _output(lifter, node, value, 7, 8)


def _binary(op_type: str) -> Callable[[Lifter, ir.Node], None]:
    def rule(lifter: Lifter, node: ir.Node) -> None:
        inputs: list[ir.Value | None] = [_real(lifter, node, 0, 1, 2), _real(lifter, node, 3, 4, 5)]
        _output(lifter, node, lifter.float_node(node, op_type, inputs), 6, 7)

    return rule


def _unary(op_type: str, *names: str) -> Callable[[Lifter, ir.Node], None]:
    def rule(lifter: Lifter, node: ir.Node) -> None:
        if attribute(node, "channels_last", 0):
            raise lifter.unsupported(node, "has channels last")
        values: dict[str, Any] = {name: attribute(node, name) for name in names}
        inputs: list[ir.Value | None] = [_real(lifter, node, 0, 1, 2)]
        if op_type == "ReduceMean" and values.get("axes") is not None:
            inputs.append(lifter.graph.add_const(f"{node.name}_axes", np.asarray(values.pop("axes"), np.int64)))
        _output(lifter, node, lifter.float_node(node, op_type, inputs, **values), 3, 4)

    return rule


def _concat(lifter: Lifter, node: ir.Node) -> None:
    parts: list[ir.Value | None] = [_real(lifter, node, i, i + 1, i + 2) for i in range(2, len(node.inputs), 3)]
    value = lifter.float_node(node, "Concat", parts, axis=attribute(node, "axis"))
    _output(lifter, node, value, 0, 1)


def _centred(lifter: Lifter, node: ir.Node, index: int, zero: int, axis: int) -> ir.Value:
    """Real value of codes at scale 1: constants minus their zero point, or what was lifted over its scale."""
    value = operand(node, index)
    given = _at(node, zero)
    if lifter.graph.const(value) is not None:
        z = np.zeros((), np.int64) if given is None else lifter.constant(node, given).astype(np.int64).reshape(-1)
        z = z.reshape(()) if z.size == 1 else z
        one = lifter.graph.add_const(f"{value.name}_one", np.ones(z.shape, np.float32))
        params = lifter.params(node, one, given, axis if z.ndim else None, value)
        return lifter.real_constant(value, params, node)
    found = lifter.lifted.get(value)
    if found is None:
        raise lifter.unsupported(node, f"reads the codes `{value.name}`, which nothing in the model quantizes")
    if found.params is None:  # dynamic: the scale was replaced by 1
        return found.value
    zero_point = 0 if given is None else int(lifter.constant(node, given).reshape(-1)[0])
    if zero_point != int(found.params.zero_point):
        raise lifter.unsupported(node, "reads codes with another zero point than they were made with")
    return found.value


def _scale_of(lifter: Lifter, value: ir.Value) -> float:
    """What the real value of codes must be divided by to be the centred codes."""
    found = lifter.lifted.get(value)
    return 1.0 if found is None or found.params is None else float(found.params.scale)


def _integer_product(op_type: str) -> Callable[[Lifter, ir.Node], None]:
    def rule(lifter: Lifter, node: ir.Node) -> None:
        from qcompiler.graph.lift import Lifted

        inputs: list[ir.Value | None] = [_centred(lifter, node, 0, 2, -1)]
        inputs.append(_centred(lifter, node, 1, 3, 0 if op_type == "Conv" else -1))
        value = lifter.float_node(node, op_type, inputs, **attributes(node))
        factor = _scale_of(lifter, operand(node, 0)) * _scale_of(lifter, operand(node, 1))
        if factor != 1.0:
            inverse = lifter.graph.add_const(f"{node.outputs[0].name}_step", np.float32(1 / factor))
            value = lifter.float_node(node, "Mul", [value, inverse])
        lifter.lifted[node.outputs[0]] = Lifted(value, None)

    return rule


def _dynamic_matmul(lifter: Lifter, node: ir.Node) -> None:
    """com.microsoft DynamicQuantizeMatMul: A float, B, b_scale, b_zero_point, bias."""
    params = lifter.params(node, _at(node, 2), _at(node, 3), -1, _at(node, 1))
    value = lifter.float_node(node, "MatMul", [operand(node), lifter.real(node, 1, params)])
    bias = _at(node, 4)
    lifter.replace(node, value if bias is None else lifter.float_node(node, "Add", [value, bias]))
    lifter.graph.note(node, "quantized dynamically: dequantized back to float, its activations get static ranges")


def _matmul_to_float(lifter: Lifter, node: ir.Node) -> None:
    """com.microsoft MatMulIntegerToFloat: A, B, a_scale, b_scale, a_zero_point, b_zero_point, bias."""
    found = lifter.lifted.get(operand(node))
    if found is not None and found.params is None:
        x = found.value
    else:
        x = lifter.real(node, 0, lifter.params(node, _at(node, 2), _at(node, 4), None, _at(node, 0)))
    params: QuantParams = lifter.params(node, _at(node, 3), _at(node, 5), -1, _at(node, 1))
    value = lifter.float_node(node, "MatMul", [x, lifter.real(node, 1, params)])
    bias = _at(node, 6)
    lifter.replace(node, value if bias is None else lifter.float_node(node, "Add", [value, bias]))


POOL = ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode", "count_include_pad")
RULES: dict[tuple[str, str], Callable[[Lifter, ir.Node], None]] = {
    ("", "QLinearConv"): _qlinear_conv,
    ("", "QLinearMatMul"): _qlinear_matmul,
    ("", "ConvInteger"): _integer_product("Conv"),
    ("", "MatMulInteger"): _integer_product("MatMul"),
    (MICROSOFT, "QGemm"): _qgemm,
    (MICROSOFT, "QLinearAdd"): _binary("Add"),
    (MICROSOFT, "QLinearMul"): _binary("Mul"),
    (MICROSOFT, "QLinearConcat"): _concat,
    (MICROSOFT, "QLinearSigmoid"): _unary("Sigmoid"),
    (MICROSOFT, "QLinearLeakyRelu"): _unary("LeakyRelu", "alpha"),
    (MICROSOFT, "QLinearSoftmax"): _unary("Softmax", "axis"),
    (MICROSOFT, "QLinearAveragePool"): _unary("AveragePool", *POOL),
    (MICROSOFT, "QLinearGlobalAveragePool"): _unary("GlobalAveragePool"),
    (MICROSOFT, "QLinearReduceMean"): _unary("ReduceMean", "axes", "keepdims"),
    (MICROSOFT, "DynamicQuantizeMatMul"): _dynamic_matmul,
    (MICROSOFT, "MatMulIntegerToFloat"): _matmul_to_float,
}
"""(domain, operator) -> rule."""
