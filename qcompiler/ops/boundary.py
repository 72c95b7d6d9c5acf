"""QuantizeLinear and DequantizeLinear where float32 enters and leaves, per tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import QuantParams, parse_format
from qcompiler.ops.operator import Operator
from qcompiler.quantizer import dequantize, quantize


def _params(inputs: list[NDArray | None], token: str | None) -> QuantParams:
    _, scale, zero_point = (*inputs, None)[:3]
    assert scale is not None
    fmt = parse_format(token or ("uint8" if zero_point is None else str(zero_point.dtype)))
    return QuantParams(fmt, scale.reshape(()), np.int64(0) if zero_point is None else zero_point.reshape(()))


def quantize_linear(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """clip(rint(x / scale) + z) with a float32 division. Attribute `format` is the output's metadata."""
    assert inputs[0] is not None
    return [quantize(inputs[0], _params(inputs, attributes.get("format")))]


def dequantize_linear(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """float32(x - z) * scale, one float32 multiply."""
    assert inputs[0] is not None
    return [dequantize(inputs[0], _params(inputs, str(inputs[0].dtype)))]


QUANTIZE = Operator("QuantizeLinear", "", quantize_linear)
DEQUANTIZE = Operator("DequantizeLinear", "", dequantize_linear)
