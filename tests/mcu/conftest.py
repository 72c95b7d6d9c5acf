"""Bundles that the boards run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import Bundle
from qcompiler.driver import compile
from qcompiler.graph.model import Graph
from tests.conftest import Digits
from tests.mcu.boards import BOARDS, Board, build_plugin
from tests.quantized import float_graph


def chosen() -> list[str]:
    """Names of boards in QCOMPILER_BOARDS (separated by commas, or `all`); M4 and RISC-V by default."""
    names = os.environ.get("QCOMPILER_BOARDS", "m4,rv32")
    return list(BOARDS) if names == "all" else names.split(",")


@pytest.fixture(params=chosen())
def board(request: pytest.FixtureRequest) -> Board:
    """A board whose tools are here."""
    found = BOARDS[request.param]
    if reason := found.missing():
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session", params=["digits", "keywords"])
def bundle(
    request: pytest.FixtureRequest, digits: Digits, digits_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The digits CNN at W8A8, a keyword spotter at W4A8."""
    path = tmp_path_factory.mktemp("mcu") / request.param
    if request.param == "digits":
        return compile(digits.cnn, "c", digits_data / "calib.npz", output=path, dims={"N": 1})
    x = np.random.default_rng(2).standard_normal((8, 1, 49, 10)).astype(np.float32)
    return compile(
        keywords().model, "c", {"x": x}, output=path, options={"precision": "w4a8"},
        target_options={"prefix": "keywords", "arena": "caller"},
    )  # fmt: skip


def keywords() -> Graph:
    """A network of the shape of MLPerf Tiny's keyword spotter, with random weights: 10 x 4 convolution, two separable
    blocks of 64 channels, average pool, 12 scores."""
    rng = np.random.default_rng(1)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    body = """
        a = Conv<strides = [2, 2], pads = [4, 1, 5, 1]>(x, w0, b0)
        b = Relu(a)
        c = Conv<group = 64, pads = [1, 1, 1, 1]>(b, w1, b1)
        d = Relu(c)
        e = Conv(d, w2, b2)
        f = Relu(e)
        g = Conv<group = 64, pads = [1, 1, 1, 1], strides = [2, 2]>(f, w3, b3)
        h = Relu(g)
        i = Conv(h, w4, b4)
        j = Relu(i)
        k = GlobalAveragePool(j)
        l = Flatten(k)
        m = Gemm(l, w5, b5)
        y = Softmax(m)
    """
    return float_graph(
        "float[1,1,49,10] x => float[1,12] y", body,
        w0=weights(64, 1, 10, 4), w1=weights(64, 1, 3, 3), w2=weights(64, 64, 1, 1), w3=weights(64, 1, 3, 3),
        w4=weights(64, 64, 1, 1), w5=weights(64, 12), b5=weights(12), **{f"b{i}": weights(64) for i in range(5)},
    )  # fmt: skip


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The instruction counter, compiled."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    return build_plugin(tmp_path_factory.mktemp("plugin") / "count.so")
