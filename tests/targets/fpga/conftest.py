"""The digits CNN in integers, as circuits are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.driver import quantize
from qcompiler.graph.model import Graph

DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits"


@pytest.fixture(scope="session")
def digits() -> Graph:
    """The INTEGER graph at W4A8. Clone it before changing anything."""
    result = quantize(
        DIGITS / "cnn.onnx", "random", "minmax", target="fpga", options={"precision": "w4a8"}, samples=4, dims={"N": 1}
    )
    assert result.integer_graph is not None
    return result.integer_graph
