"""MatMul with a constant weight (Gemm and MatMul of the float graph), and BatchMatMul of two activations."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.ops.operator import Operator, Shape
from qcompiler.ops.requantize import exact_dtype, requantize


def matmul(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """x codes [..., K], w int8/int16 [K, N], bias int32/int64 [N], *r [N] -> codes [..., N]."""
    x, w, bias, *parameters = inputs
    assert x is not None and w is not None and bias is not None
    x = x.astype(np.int64) - int(attributes.get("x_zero_point", 0))
    weights = int(np.abs(w.astype(np.int64)).sum(axis=0).max(initial=0))
    largest = int(np.abs(x).max(initial=0)) * weights + int(np.abs(bias.astype(np.int64)).max(initial=0))
    dtype: Any = exact_dtype(largest)
    acc = x.astype(dtype) @ w.astype(dtype) + bias.astype(dtype)
    return [requantize(acc, parameters, attributes, acc.ndim - 1)]


def batch_matmul(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """a codes [..., M, K], b codes [..., K, N], leading dimensions broadcast, *r [] -> codes [..., M, N].

    acc = sum over k of (a - za) * (b - zb), exact; integerize proves that int32 holds it when both have at most 8 bits.
    """
    a, b, *parameters = inputs
    assert a is not None and b is not None
    a = a.astype(np.int64) - int(attributes.get("a_zero_point", 0))
    b = b.astype(np.int64) - int(attributes.get("b_zero_point", 0))
    largest = int(np.abs(a).max(initial=0)) * int(np.abs(b).max(initial=0)) * a.shape[-1]
    dtype: Any = exact_dtype(largest)
    return [requantize(a.astype(dtype) @ b.astype(dtype), parameters, attributes, None)]


def _batch_macs(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: dict[str, Any]) -> int:
    return prod(outputs[0]) * inputs[0][-1]


def _macs(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: dict[str, Any]) -> int:
    return prod(outputs[0]) * inputs[1][0]


MATMUL = Operator("MatMul", "qcompiler", matmul, _macs)
BATCH_MATMUL = Operator("BatchMatMul", "qcompiler", batch_matmul, _batch_macs)
