"""Functions of 16-bit values that saturation of the output does anyway."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.formats import Int, QuantParams
from qcompiler.passes.integerize.piecewise import saturates
from tests.quantized import float_graph, integer, quantize

WIDE = QuantParams(Int(16, signed=False), np.float32(0.001), np.int64(30000))


def narrow(scale: float, zero_point: int) -> QuantParams:
    return QuantParams(Int(8, signed=False), np.float32(scale), np.int64(zero_point))


@pytest.mark.parametrize(
    ("function", "want", "expected"),
    [
        (lambda x: np.maximum(x, 0), narrow(0.1, 0), True),
        (lambda x: np.maximum(x, 0), narrow(0.1, 1), False),
        (lambda x: np.clip(x, 0, 6), narrow(6 / 255, 0), True),
        (lambda x: np.clip(x, 0, 6), narrow(7 / 255, 0), False),
        (np.abs, narrow(0.1, 0), False),
    ],
)
def test_only_what_the_range_does_anyway(function, want, expected):
    assert saturates(function, WIDE, want) is expected


def test_relu_of_a_wide_value_needs_no_table():
    rules = [{"op_type": "Add", "activation": "uint16"}]
    graph = float_graph("float[1,8] a, float[1,8] b => float[1,8] y, float[1,8] s", "s = Add(a, b)  y = Relu(s)")
    result = integer(quantize(graph, rules=rules))
    kinds = [node.op_type for node in result.nodes()]
    assert "Requantize" in kinds and not {"Table", "Piecewise"} & set(kinds)
