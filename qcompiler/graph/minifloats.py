"""How minifloats are spelled: standard nodes where plain onnxruntime runs them, else a function of our domain.

constant     DequantizeLinear of levels as int8 or int16, or of float8e4m3fn and float8e5m2 numbers: `carrier`
activation   float8e4m3fn and float8e5m2: QuantizeLinear -> DequantizeLinear; others `qcompiler::MinifloatQuantize`

A scale beside levels is that of QuantParams; beside numbers it is 1 / `unit` of it (a power of two, so exact).
float4e2m1, which onnxruntime 1.32 does not run, is left to the pass `export_qdq`.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import ModelError, UnsupportedError
from qcompiler.formats import Minifloat, QuantParams
from qcompiler.minifloat import OCP

_WIDE = {4: np.dtype(ml_dtypes.float8_e4m3fn), 5: np.dtype(ml_dtypes.float8_e5m2)}

FLOAT_CODES = ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn")
"""Numpy names of ONNX's types of few-bit floats."""


def own_type(fmt: Minifloat) -> np.dtype | None:
    """The type of ONNX whose numbers are those of the format, None if it has none."""
    if fmt.token in OCP:
        return _WIDE[fmt.exponent]
    return np.dtype(ml_dtypes.float4_e2m1fn) if fmt.token == "e2m1" else None


def carrier(fmt: Minifloat) -> np.dtype | None:
    """The type that constants of the format are stored in: of levels (integers) or of numbers; None if none is."""
    if fmt.token in OCP:
        return _WIDE[fmt.exponent]
    if fmt.largest < 1 << 15:
        return fmt.integers.storage
    return _WIDE[4] if fmt.signed and fmt.exponent == 4 and fmt.mantissa <= 2 else None


def no_carrier(fmt: Minifloat, where: str) -> UnsupportedError:
    """The error for constants of a format without one."""
    return UnsupportedError(
        f"ONNX has no type that holds the numbers of {fmt.token}.",
        where=where,
        hint="Choose fewer exponent bits, or float8e4m3fn or float8e5m2.",
    )


def holds_numbers(dtype: np.dtype) -> bool:
    """Whether a stored type holds a format's numbers rather than levels."""
    return dtype.kind not in "iu"


def stored_codes(codes: NDArray, fmt: Minifloat, where: str, dtype: np.dtype | None = None) -> NDArray:
    """Codes [...] as an initializer holds them, in `carrier` or `dtype`. Raises UnsupportedError if there is none."""
    dtype = carrier(fmt) if dtype is None else dtype
    if dtype is None:
        raise no_carrier(fmt, where)
    levels = fmt.decode(codes)
    return levels.astype(dtype) if not holds_numbers(dtype) else (levels * fmt.unit).astype(dtype)


def stored_scale(params: QuantParams, dtype: np.dtype | None) -> NDArray[np.float32]:
    """The scale beside codes that are stored in `dtype`."""
    fmt = params.format
    if isinstance(fmt, Minifloat) and dtype is not None and holds_numbers(dtype):
        return np.asarray(params.scale / np.float32(fmt.unit), np.float32)
    return np.asarray(params.scale, np.float32)


def read_codes(stored: NDArray, fmt: Minifloat, where: str) -> NDArray[np.uint8]:
    """The inverse of `stored_codes`. Raises ModelError for what is no number of the format."""
    levels = stored.astype(np.float64) / (fmt.unit if holds_numbers(stored.dtype) else 1.0)
    with np.errstate(invalid="ignore"):
        whole = np.where(np.isfinite(levels), levels, 0.5)
    codes = fmt.encode(np.clip(np.rint(whole), -fmt.largest if fmt.signed else 0, fmt.largest).astype(np.int64))
    if (fmt.decode(codes) != whole).any():
        raise ModelError(f"`{where}` holds what is no number of {fmt.token}.", hint="Export the model again.")
    return codes


def quantize_attributes(params: QuantParams, rank: int) -> dict[str, Any]:
    """Attributes of `qcompiler::MinifloatQuantize` (graph/functions.py) for values of so many dimensions."""
    fmt = params.format
    assert isinstance(fmt, Minifloat)
    last = fmt.largest.bit_length() - 1 - fmt.mantissa
    shape = [1] * max(rank, 1)
    axis = {} if params.axis is None else {"axis": params.axis}
    if params.axis is not None:
        shape[params.axis] = -1
    return {
        **axis, "shape": shape, "format": fmt.token, "steps": [float(1 << k) for k in range(max(last, 0) + 1)],
        "last": max(last, 0), "digits": float(fmt.mantissa), "whole": float(1 << fmt.mantissa),
        "low": float(-fmt.largest) if fmt.signed else 0.0, "high": float(fmt.largest),
    }  # fmt: skip
