"""Unary functions of codes: a Table up to 8 bits, straight lines between table entries above."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import QuantParams
from qcompiler.ops.lookup import FRACTION, piecewise
from qcompiler.passes.integerize.writer import Writer

SEGMENTS = (256, 1024, 4096)
"""Numbers of lines that are tried."""
ERROR_NARROW, ERROR_WIDE = 0.75, 2.0
"""Largest error of a piecewise function in steps of its output, for outputs of at most 8 bits and above: 1/2 would be
the correctly rounded value."""
LIMIT = 2**31 - 1
SAME = 1e-4


def write_function(
    writer: Writer,
    codes: ir.Value,
    have: QuantParams,
    apply: Callable[[Any], Any],
    want: QuantParams,
    name: str,
    *,
    linear: float | None = None,
) -> ir.Value:
    """want(apply(have(code))) of every code.

    Up to 8 bits, and where no number of lines is as good as ERROR_* asks, a Table that is exact; a plain factor
    (`linear`) of a wider input, and what saturation of the output does anyway (Relu), requantizes; else a Piecewise
    with the fewest lines whose error, measured over all codes, stays within ERROR_*.
    """
    if have.format.bits <= 8:
        return writer.table(codes, have, entries(apply, have, want), want, name)
    if linear is not None:
        return writer.requantize(codes, QuantParams(have.format, have.scale * linear, have.zero_point), want, name)
    if saturates(apply, have, want):
        return writer.requantize(codes, have, want, name)
    for segments in SEGMENTS:
        attributes, table, error = fit(apply, have, want, segments)
        if error <= (ERROR_NARROW if want.format.bits <= 8 else ERROR_WIDE):
            inputs = [codes, writer.const(f"{name}_lines", table)]
            return writer.emit("Piecewise", inputs, attributes, want, writer.target.shape(codes), name)
    return writer.table(codes, have, entries(apply, have, want), want, name)


def saturates(apply: Callable[[Any], Any], have: QuantParams, want: QuantParams) -> bool:
    """Whether the function is the identity up to the ends of the output's range, on every code, within SAME codes
    (a scale such as 6 / 255 is a float32)."""
    fmt, codes = want.format, np.arange(have.format.min, have.format.max + 1)
    both = [
        np.clip(_real(function, codes, have) / np.float64(want.scale) + int(want.zero_point), fmt.min, fmt.max)
        for function in (apply, np.asarray)
    ]
    return bool(np.abs(both[0] - both[1]).max() < SAME)


def fit(
    apply: Callable[[Any], Any], have: QuantParams, want: QuantParams, segments: int
) -> tuple[dict[str, Any], NDArray[np.int32], float]:
    """(attributes, table, error) of a Piecewise with so many lines, which meet the function at their ends.

    error: largest distance of a code from the real function, clipped to the range of the output, in steps of the
    output, over all codes of the input.
    """
    shift = have.format.bits - (segments.bit_length() - 1)
    ends = have.format.min + (np.arange(segments + 1) << shift)
    with np.errstate(over="ignore"):  # poles: what is too large is clipped
        exact = _real(apply, ends, have) / np.float64(want.scale) * (1 << FRACTION)
    table = np.clip(np.rint(exact), -LIMIT, LIMIT).astype(np.int32)
    attributes = {
        "x_format": have.format.token,
        "shift": shift,
        "zero_point": int(want.zero_point),
        "format": want.format.token,
    }
    every = np.arange(have.format.min, have.format.max + 1)
    got = piecewise([every.astype(have.format.storage), table], attributes)[0].astype(np.float64)
    with np.errstate(over="ignore"):
        wanted = _real(apply, every, have) / np.float64(want.scale) + int(want.zero_point)
    error = np.abs(got - np.clip(wanted, want.format.min, want.format.max)).max()
    return attributes, table, float(error)


def entries(apply: Callable[[Any], Any], have: QuantParams, want: QuantParams) -> NDArray:
    """want(apply(have(code))) for every code: computed in float64, rounded half to even once."""
    fmt = want.format
    values = _real(apply, np.arange(have.format.min, have.format.max + 1), have)
    with np.errstate(over="ignore"):
        codes = np.rint(values / np.float64(want.scale)) + int(want.zero_point)
    return np.clip(codes, fmt.min, fmt.max).astype(fmt.storage)


def _real(apply: Callable[[Any], Any], codes: NDArray, have: QuantParams) -> NDArray[np.float64]:
    real = (codes - int(have.zero_point)) * np.float64(have.scale)
    with np.errstate(all="ignore"):
        values = np.asarray(apply(real), np.float64)
    # A function that is not defined there (a root of a negative power base) makes NaN in the QDQ graph, whose code
    # ONNX leaves open; here it is the code of 0.
    return np.nan_to_num(values, nan=0.0)
