"""Operators on one element at a time, unary and with broadcasting, comparisons and casts.

Cast to an integer type of something that was computed keeps the float type and truncates with a straight-through
gradient: codes are integers below 2^24, and gradients pass.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.execute.torch.rounding import ste_ceil, ste_floor, ste_round, ste_trunc
from qcompiler.execute.torch.site import Function, Rule, Site, align, lift, plain


def _fold_left(function: Function) -> Rule:
    """Of two or more inputs, or one."""

    def run(*tensors: Tensor) -> Tensor:
        result = tensors[0]
        for tensor in tensors[1:]:
            result = function(*align(result, tensor))
        return result

    return lambda site: run


def _mean(site: Site) -> Function:
    total, count = _fold_left(torch.add)(site), len(site.node.inputs)
    return lambda *tensors: total(*tensors) / count


def _div(site: Site) -> Function:
    if site.node.inputs[0] is not None and site.node.inputs[0].dtype in _INTEGERS:
        return lambda a, b: torch.div(*align(a, b), rounding_mode="trunc")
    return lambda a, b: torch.div(*align(a, b))


def _mod(site: Site) -> Function:
    function = torch.fmod if site.attr("fmod", 0) else torch.remainder
    return lambda a, b: function(*align(a, b))


def _where(site: Site) -> Function:
    def run(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        condition, a, b = align(condition, a, b)
        return torch.where(condition.bool(), a, b)

    return run


def _clip(site: Site) -> Function:
    bounds = [site.value(i) for i in (1, 2)]
    if all(value is None or site.graph.const(value) is not None for value in bounds):
        low, high = (None if value is None else site.graph.const(value).item() for value in bounds)  # type: ignore[union-attr]
        if low is None and high is None:
            return lambda x, *rest: x
        return lambda x, *rest: torch.clamp(x, low, high)

    def run(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        x = x if low is None else _larger(*align(x, low))
        return x if high is None else _smaller(*align(x, high))

    return run


def _larger(a: Tensor, b: Tensor) -> Tensor:
    """maximum(a, b), which halves the gradient between equals; here a has it, as codes at their bound want."""
    return torch.clamp(a, min=b)


def _smaller(a: Tensor, b: Tensor) -> Tensor:
    return torch.clamp(a, max=b)


def _prelu(site: Site) -> Function:
    def run(x: Tensor, slope: Tensor) -> Tensor:
        return torch.where(x < 0, x * lift(slope, x.dim()), x)

    return run


def _gelu(site: Site) -> Function:
    approximate = site.attr("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


def _celu(x: Tensor, alpha: float) -> Tensor:
    return x.clamp(min=0) + alpha * torch.expm1(x.clamp(max=0) / alpha)


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def _hard_sigmoid(x: Tensor, alpha: float = 1 / 6, beta: float = 0.5) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _shrink(x: Tensor, lambd: float, bias: float) -> Tensor:
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))


def _with(function: Function, **defaults: Any) -> Rule:
    """A unary function whose keyword arguments are the attributes of these names."""

    def rule(site: Site) -> Function:
        values = {name: site.attr(name, default) for name, default in defaults.items()}
        return lambda x: function(x, **values)

    return rule


def _swish(site: Site) -> Function:
    alpha = site.attr("alpha", 1.0)
    return F.silu if alpha == 1.0 else lambda x: x * torch.sigmoid(alpha * x)


_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_INTEGERS = tuple(getattr(ir.DataType, name) for name in ("INT64", "INT32", "INT16", "INT8", "UINT8", "UINT16"))


def _cast(site: Site) -> Function:
    to = ir.DataType(site.attr("to"))
    if to in _FLOATS:
        return lambda x: x if x.is_floating_point() else x.to(site.dtype())
    if to == ir.DataType.BOOL:
        return lambda x: x != 0
    if not to.is_integer():
        raise site.refuse(f"makes {to}")

    def run(x: Tensor) -> Tensor:
        return ste_trunc(x) if x.is_floating_point() else x.to(torch.int64)

    return run


def _quantize(site: Site) -> Function:
    """QuantizeLinear by itself (a pair with DequantizeLinear is a Quantizer): codes as float, straight-through."""
    low, high = _range(site, site.node.outputs[0])
    axis = _axis(site)

    def run(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        codes = ste_round(x / _along(scale, axis, x))
        return torch.clamp(codes if zero_point is None else codes + _along(zero_point, axis, x), low, high)

    return run


def _dequantize(site: Site) -> Function:
    axis = _axis(site)

    def run(codes: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        steps = codes if zero_point is None else codes - _along(zero_point, axis, codes)
        return steps.to(scale.dtype) * _along(scale, axis, codes)

    return run


def _range(site: Site, value: ir.Value) -> tuple[int, int]:
    zero_point = site.value(2)
    dtype = (zero_point.dtype if zero_point is not None else value.dtype) or ir.DataType.UINT8
    if not dtype.is_integer():
        raise site.refuse(f"quantizes to {dtype}")
    bits = dtype.bitwidth
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dtype.is_signed() else (0, (1 << bits) - 1)


def _axis(site: Site) -> int | None:
    if site.attr("block_size", 0):
        raise site.refuse("has blocks")
    scale = site.value(1)
    if scale is None or scale.shape is None or not len(scale.shape):
        return None
    return int(site.attr("axis", 1))


def _along(values: Tensor, axis: int | None, x: Tensor) -> Tensor:
    if axis is None or values[:1].numel() == 1:
        return values.reshape(values.shape[0], *[1] * (x.dim() - 1))
    shape = [1] * x.dim()
    shape[0], shape[axis + 1 if axis >= 0 else axis] = values.shape[0], -1
    return values.reshape(shape)


def _bits(function: Function) -> Rule:
    return lambda site: lambda *tensors: function(*align(*(tensor.bool() for tensor in tensors)))


UNARY: dict[str, Function] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": ste_ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": ste_floor, "HardSwish": lambda x: x * _hard_sigmoid(x),
    "Identity": lambda x: x, "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": ste_round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Sinh": torch.sinh, "Softplus": lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())),
    "Softsign": lambda x: x / (1 + x.abs()), "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
    "qcompiler::Swish": F.silu, "qcompiler::QuickGelu": lambda x: x * torch.sigmoid(1.702 * x),
}  # fmt: skip

RULES: dict[str, Rule] = {
    **{name: plain(function) for name, function in UNARY.items()},
    "Add": plain(torch.add), "Sub": plain(torch.sub), "Mul": plain(torch.mul), "Pow": plain(torch.pow),
    "Div": _div, "Mod": _mod, "Where": _where, "Clip": _clip, "PRelu": _prelu, "Gelu": _gelu, "Swish": _swish,
    "Max": _fold_left(_larger), "Min": _fold_left(_smaller), "Sum": _fold_left(torch.add), "Mean": _mean,
    "Equal": plain(torch.eq), "Less": plain(torch.lt), "LessOrEqual": plain(torch.le), "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge), "And": _bits(torch.logical_and), "Or": _bits(torch.logical_or),
    "Xor": _bits(torch.logical_xor), "Not": _bits(torch.logical_not),
    "Celu": _with(_celu, alpha=1.0),
    "Elu": _with(F.elu, alpha=1.0),
    "HardSigmoid": _with(_hard_sigmoid, alpha=0.2, beta=0.5),
    "LeakyRelu": _with(lambda x, alpha: torch.where(x < 0, x * alpha, x), alpha=0.01),
    "Selu": _with(_selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Shrink": _with(_shrink, lambd=0.5, bias=0.0),
    "ThresholdedRelu": _with(lambda x, alpha: torch.where(x > alpha, x, torch.zeros_like(x)), alpha=1.0),
    "Cast": _cast, "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize,
}  # fmt: skip
