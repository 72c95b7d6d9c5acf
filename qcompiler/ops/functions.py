"""Unary functions of ONNX in float64, from which tables are made.

A function is called as f(x, attributes); constants among a node's inputs come in as attributes `input1`, `input2`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[[Array, dict[str, Any]], Array]


QUICK = 1.702
"""x sigmoid(1.702 x) is the QuickGelu of CLIP."""


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _erf(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(erf(x))


def _gelu(x: Array, a: dict[str, Any]) -> Array:
    if a.get("approximate", "none") == "tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / np.sqrt(2)))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _div(constant: float, x: Array) -> Array:
    return constant / np.where(x == 0, 1e-38, x)


def _clip(x: Array, a: dict[str, Any]) -> Array:
    low, high = a.get("input1", a.get("min", -np.inf)), a.get("input2", a.get("max", np.inf))
    return np.clip(x, float(low), float(high))


def _hard_sigmoid(x: Array, a: dict[str, Any]) -> Array:
    return np.clip(a.get("alpha", 0.2) * x + a.get("beta", 0.5), 0, 1)


def _slope(x: Array, slope: float) -> Array:
    return np.where(x < 0, slope * x, x)


def _cast(x: Array, a: dict[str, Any]) -> Array:
    """To integers towards 0, to truth values, to float."""
    kind = ir.DataType(a["to"])
    if kind == ir.DataType.BOOL:
        return np.where(x == 0, 0.0, 1.0)
    return np.trunc(x) if kind.is_integer() else x


def _compared(holds: Callable[[Any, Any], Any], x: Array, a: dict[str, Any]) -> Array:
    """1 where it holds, in float32, in which models compare."""
    left, right = np.asarray(x, np.float32), np.float32(a["constant"])
    return np.asarray(holds(right, left) if a["constant_first"] else holds(left, right), np.float64)


def _mod(x: Array, a: dict[str, Any]) -> Array:
    first, second = (a["constant"], x) if a["constant_first"] else (x, a["constant"])
    return np.fmod(first, second) if a.get("fmod", 0) else np.mod(first, second)


FUNCTIONS: dict[str, Function] = {
    "Abs": lambda x, a: np.abs(x),
    "Ceil": lambda x, a: np.ceil(x),
    "Celu": lambda x, a: np.where(x > 0, x, a.get("alpha", 1.0) * np.expm1(np.minimum(x, 0) / a.get("alpha", 1.0))),
    "Clip": _clip,
    "Cos": lambda x, a: np.cos(x),
    "Elu": lambda x, a: _elu(x, a.get("alpha", 1.0)),
    "Erf": lambda x, a: _erf(x),
    "Exp": lambda x, a: np.exp(x),
    "Floor": lambda x, a: np.floor(x),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda x, a: x * np.clip(x / 6 + 0.5, 0, 1),
    "Identity": lambda x, a: x,
    "LeakyRelu": lambda x, a: _slope(x, a.get("alpha", 0.01)),
    "Log": lambda x, a: np.log(np.maximum(x, 1e-38)),
    "Mish": lambda x, a: x * np.tanh(softplus(x)),
    "Neg": lambda x, a: -x,
    "PRelu": lambda x, a: _slope(x, float(a["input1"])),
    "Pow": lambda x, a: np.power(x, float(a["input1"])),
    "QuickGelu": lambda x, a: x * sigmoid(QUICK * x),
    "Reciprocal": lambda x, a: 1 / np.where(x == 0, 1e-38, x),
    "Relu": lambda x, a: np.maximum(x, 0),
    "Round": lambda x, a: np.rint(x),
    "Selu": lambda x, a: a.get("gamma", 1.0507009873554805) * _elu(x, a.get("alpha", 1.6732632423543772)),
    "Sigmoid": lambda x, a: sigmoid(x),
    "Sign": lambda x, a: np.sign(x),
    "Sin": lambda x, a: np.sin(x),
    "Softplus": lambda x, a: softplus(x),
    "Softsign": lambda x, a: x / (1 + np.abs(x)),
    "Sqrt": lambda x, a: np.sqrt(np.maximum(x, 0)),
    "Swish": lambda x, a: x * sigmoid(a.get("alpha", 1.0) * x),
    "Tanh": lambda x, a: np.tanh(x),
    "ThresholdedRelu": lambda x, a: np.where(x > a.get("alpha", 1.0), x, 0.0),
    "Acos": lambda x, a: np.arccos(np.clip(x, -1, 1)),
    "Acosh": lambda x, a: np.arccosh(np.maximum(x, 1)),
    "Asin": lambda x, a: np.arcsin(np.clip(x, -1, 1)),
    "Asinh": lambda x, a: np.arcsinh(x),
    "Atan": lambda x, a: np.arctan(x),
    "Atanh": lambda x, a: np.arctanh(np.clip(x, -1 + 1e-7, 1 - 1e-7)),
    "Cosh": lambda x, a: np.cosh(x),
    "Shrink": lambda x, a: np.where(np.abs(x) > a.get("lambd", 0.5), x - np.sign(x) * a.get("bias", 0.0), 0.0),
    "Sinh": lambda x, a: np.sinh(x),
    "Tan": lambda x, a: np.tan(x),
    # Integers and truth values in between.
    "Cast": _cast,
    "Not": lambda x, a: np.where(x == 0, 1.0, 0.0),
    "Equal": partial(_compared, np.equal),
    "Greater": partial(_compared, np.greater),
    "GreaterOrEqual": partial(_compared, np.greater_equal),
    "Less": partial(_compared, np.less),
    "LessOrEqual": partial(_compared, np.less_equal),
    # Arithmetic with one scalar constant. `constant_first` tells on which side it stands.
    "Add": lambda x, a: x + float(a["constant"]),
    "Div": lambda x, a: _div(float(a["constant"]), x) if a["constant_first"] else x / float(a["constant"]),
    "Mod": _mod,
    "Mul": lambda x, a: x * float(a["constant"]),
    "Sub": lambda x, a: float(a["constant"]) - x if a["constant_first"] else x - float(a["constant"]),
}
ARITHMETIC = ("Add", "Div", "Mul", "Sub")
WITH_CONSTANT = (*ARITHMETIC, "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod")
"""Functions of two operands, one of which is a scalar constant."""
CLIPS = ("Relu", "Clip")
