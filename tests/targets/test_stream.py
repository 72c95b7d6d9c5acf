"""Chains of convolutions in bands: the oracle's bits with less memory, and outputs over inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.model import Graph
from qcompiler.targets.c.build import build
from qcompiler.targets.c.host import HostSession, host_compiler
from qcompiler.targets.c.machine import SCALAR
from qcompiler.targets.shared.boundary import strip_boundary
from qcompiler.targets.shared.lower import lower
from qcompiler.targets.shared.stream import chains
from tests.quantized import float_graph, integer, quantize


def separable(height: int, width: int, stride: int, pads: tuple[int, int, int, int], residual: bool = False) -> Graph:
    """Integer form of expand 1x1 -> depthwise 3x3 -> project 1x1 between two convolutions."""
    rng = np.random.default_rng(height * width + stride)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    rows = (height + pads[0] + pads[2] - 3) // stride + 1
    columns = (width + pads[1] + pads[3] - 3) // stride + 1
    body = f"""
        a = Conv<pads = [1, 1, 1, 1]>(x, w0, b8)  b = Relu(a)
        c = Conv(b, w1, b24)  d = Relu(c)
        e = Conv<group = 24, strides = [{stride}, {stride}], pads = {list(pads)}>(d, w2, b24)  f = Relu(e)
        g = Conv(f, w3, b8)
        {"h = Add(g, b)" if residual else "h = Relu(g)"}
        y = Conv(h, w4, b2)
    """
    graph = float_graph(
        f"float[1,3,{height},{width}] x => float[1,2,{rows},{columns}] y", body,
        w0=weights(8, 3, 3, 3), w1=weights(24, 8, 1, 1), w2=weights(24, 1, 3, 3), w3=weights(8, 24, 1, 1),
        w4=weights(2, 8, 1, 1), b8=weights(8), b24=weights(24), b2=weights(2),
    )  # fmt: skip
    return integer(quantize(graph, canonical=True), "fixed")


def runs_exactly(graph: Graph, folder: Path, **options: str) -> int:
    """Arena of its bundle, after comparing it with the oracle."""
    lowered = build(graph, {"prefix": "net", **options}, lambda stage, done, total: None)
    manifest = manifest_of("c", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    bundle = write_bundle(folder, lowered.files, manifest, overwrite=False)
    session, stripped = HostSession(bundle.path, bundle.manifest, host_compiler()), strip_boundary(graph)
    oracle, rng = Oracle(stripped), np.random.default_rng(7)
    for _ in range(4):
        x = rng.integers(0, 256, stripped.shape(stripped.inputs[0])).astype(np.uint8)
        np.testing.assert_array_equal(session.run_codes([x])[0], oracle.run({stripped.inputs[0].name: x})[0])
    return int(manifest["size"]["arena_bytes"])


@pytest.mark.parametrize(
    ("height", "width", "stride", "pads", "residual"),
    [
        (24, 10, 1, (1, 1, 1, 1), True),  # bands of three kinds
        (23, 9, 2, (0, 0, 1, 1), False),
        (29, 8, 1, (1, 0, 1, 2), False),  # the last band has one row
        (37, 7, 2, (1, 1, 1, 1), False),
        (31, 6, 1, (2, 1, 0, 1), False),
        (33, 8, 1, (0, 1, 0, 1), False),
    ],
)
def test_bands_give_the_same_bits_in_less_memory(
    height: int, width: int, stride: int, pads: tuple[int, int, int, int], residual: bool, tmp_path: Path
) -> None:
    graph = separable(height, width, stride, pads, residual)
    whole = runs_exactly(graph, tmp_path / "whole")
    assert runs_exactly(graph, tmp_path / "bands", optimize_for="memory") < whole


def test_every_chain_gives_the_same_bits(tmp_path: Path) -> None:
    graph = strip_boundary(separable(19, 9, 1, (1, 1, 1, 1)))
    found = chains(graph)
    assert sorted(len(chain) for chain in found) == [2, 2, 3]
    for chain in found:
        program = lower(graph, SCALAR, streams=(chain,))
        nodes = [call.node for call in program.calls]
        assert set(chain) <= set(nodes)
        for name in chain:  # the pieces of each node make up the whole
            assert sum(call.share for call in program.calls if call.node == name and call.share < 1) == pytest.approx(1)


def test_a_value_that_others_read_is_kept_whole() -> None:
    rng = np.random.default_rng(0)
    w = {"w0": rng.standard_normal((8, 8, 1, 1)), "w1": rng.standard_normal((8, 1, 3, 3))}
    body = "a = Conv(x, w0)  b = Conv<group = 8, pads = [1, 1, 1, 1]>(a, w1)  y = Add(a, b)"
    graph = float_graph(
        "float[1,8,16,8] x => float[1,8,16,8] y", body, **{k: v.astype(np.float32) for k, v in w.items()}
    )
    assert chains(strip_boundary(integer(quantize(graph, canonical=True), "fixed"))) == []


def test_depthwise_layers_and_sums_write_over_their_inputs() -> None:
    graph = strip_boundary(separable(16, 8, 1, (1, 1, 1, 1), residual=True))
    program = lower(graph, SCALAR)
    views = program.views
    depthwise = next(node for node in graph.nodes("Conv") if len(node.attributes) and "group" in node.attributes
                     and node.attributes["group"].value == 24)  # fmt: skip
    add = graph.nodes("Add")[0]
    assert views[depthwise.outputs[0].name].buffer is views[depthwise.inputs[0].name].buffer
    assert views[add.outputs[0].name].buffer in [views[value.name].buffer for value in add.inputs[:2]]
