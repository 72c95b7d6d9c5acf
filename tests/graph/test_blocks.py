"""Blocks of real and small networks: the units that people draw, and all nodes once, in order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qcompiler.graph.blocks import Block, blocks, has_weight
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from tests import quantized
from tests.quantized import float_graph


def checked(graph: Graph, **options: int) -> list[Block]:
    """The blocks: every node once, in topological order inside, and nothing read before it is made."""
    found = blocks(graph, **options)
    order = {node: i for i, node in enumerate(graph.nodes())}
    assert Counter(node for block in found for node in block.nodes) == Counter(graph.nodes())
    known = {str(value.name) for value in graph.inputs}
    for block in found:
        places = [order[node] for node in block.nodes]
        assert places == sorted(places)
        assert set(block.inputs) <= known
        known |= set(block.outputs)
    assert {str(value.name) for value in graph.outputs} <= known
    return found


def weights(graph: Graph, found: list[Block]) -> list[int]:
    return [sum(has_weight(graph, node) for node in block.nodes) for block in found]


def test_residual_blocks_of_resnet20(assets: Path):
    graph = load_graph(assets / "models" / "resnet20_cifar10.onnx", dims={"N": 1})
    found = checked(graph)
    assert weights(graph, found) == [1, *[2] * 9, 1]
    assert all(len(block.inputs) == len(block.outputs) == 1 for block in found)
    assert [block.nodes[-1].op_type for block in found[:-2]] == ["Relu"] * 9
    assert all("Add" in {node.op_type for node in block.nodes} for block in found[1:-1])


def test_inverted_residual_blocks_of_mobilenetv2(assets: Path):
    graph = load_graph(assets / "models" / "mobilenetv2_cifar10_jpeg.onnx", dims={"N": 1})
    found = checked(graph)
    assert weights(graph, found) == [1, 2, *[3] * 12, 1, 1]
    assert all(len(block.inputs) == len(block.outputs) == 1 for block in found)


def test_halves_of_transformer_blocks(assets: Path):
    graph = load_graph(assets / "models" / "vit_hybrid_cifar10_jpeg.onnx", dims={"N": 1})
    found = checked(graph)
    assert len(found) == 7 + 1 + 2 * 6 + 1
    for i, block in enumerate(found[8:20]):
        kinds = {node.op_type for node in block.nodes}
        assert {"LayerNormalization", "MatMul", "Add"} <= kinds and ("Softmax" in kinds) == (i % 2 == 0)
        assert len(block.inputs) == len(block.outputs) == 1
    assert found[20].nodes[0].op_type == "LayerNormalization"


def test_halves_of_a_language_model(assets: Path):
    graph = load_graph(assets / "models" / "stories260k_prefill.onnx", dims={"N": 1})
    found = checked(graph)
    assert weights(graph, found) == [4, 3] * 5 + [1]
    assert all(len(block.inputs) == len(block.outputs) == 1 for block in found)
    decode = load_graph(assets / "models" / "stories260k_decode.onnx", dims={"past": 7})
    found = checked(decode)  # caches go in and out beside the main path
    assert weights(decode, found) == [4, 3] * 5 + [1]


def test_a_unet_is_cut_between_the_ends_of_its_shortcut(assets: Path):
    graph = load_graph(assets / "models" / "ddpm_digits.onnx", dims={"N": 1})
    found = checked(graph)
    assert weights(graph, found) == [6, 1, 2, 1, 2, 2, 2, 1, 3, 1]
    assert found[0].inputs == ("t",)
    assert weights(graph, checked(graph, limit=100)) == [6, 1, 2, 8, 3, 1]


def test_quantizers_stay_with_what_they_quantize():
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((4, 4, 3, 3)).astype(np.float32), rng.standard_normal((4, 4, 1, 1)).astype(np.float32)
    graph = float_graph(
        "float[1,4,6,6] x => float[1,4,6,6] y",
        """c = Conv<pads = [1,1,1,1]>(x, w)  r = Relu(c)  d = Conv(r, v)  s = Add(d, r)
           y = Conv<pads = [1,1,1,1]>(s, w)""",
        w=w, v=v,
    )  # fmt: skip
    assert [block.outputs for block in checked(graph)] == [("r",), ("s",), ("y",)]
    graph = quantized.quantize(graph)
    found = checked(graph)
    assert [block.outputs for block in found] == [("r_dequantized",), ("s_dequantized",), ("y",)]
    assert [block.inputs for block in found] == [("x",), ("r_dequantized",), ("s_dequantized",)]


def test_a_mask_is_no_main_path():
    """A value that enters every block, from another input: with weights it is a block, without it joins the first."""
    w = np.eye(4, dtype=np.float32)
    text = """{} a = MatMul(x, w)  b = Relu(a)  c = Mul(b, n)  d = MatMul(c, w)  e = Relu(d)  f = Mul(e, n)
              y = MatMul(f, w)"""
    header = "float[1,4] m, float[1,4] x => float[1,4] y"
    found = checked(float_graph(header, text.format("n = Sigmoid(m)"), w=w))
    assert [(block.inputs, block.outputs) for block in found] == [
        (("m", "x"), ("n", "c")), (("c", "n"), ("f",)), (("f",), ("y",))
    ]  # fmt: skip
    found = checked(float_graph(header, text.format("n = MatMul(m, w)"), w=w))
    assert [block.outputs for block in found] == [("n",), ("c",), ("f",), ("y",)]


@pytest.mark.parametrize("text", ["y = Relu(x)", "a = Relu(x)  y = MatMul(a, k)", "y = Add(x, k)"])
def test_small_graphs_are_one_block(text: str):
    graph = float_graph("float[2,2] x => float[2,2] y", text, k=np.eye(2, dtype=np.float32))
    assert len(checked(graph)) == 1
