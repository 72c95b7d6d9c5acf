"""Costs of choices: work and widths of a node, bytes and bit operations, and how costs add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.calibrate.data import load_samples
from qcompiler.context import Context
from qcompiler.cost import BytesAndBops, Cost, Widths, Work, additive, bops, widths_of, work_of
from qcompiler.graph.model import Graph
from qcompiler.passes import decide
from tests.quantized import float_graph, integer, quantize

RNG = np.random.default_rng(3)


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def graph() -> Graph:
    body = (
        "a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) b = Relu(a) c = Conv<group = 8, pads = [1, 1, 1, 1]>(b, w1) "
        "d = Add(c, b) e = Sigmoid(d) f = GlobalAveragePool(e) h = Flatten(f) y = Gemm<transB = 1>(h, w2, b2)"
    )
    return float_graph(
        "float[1,3,10,10] x => float[1,5] y", body,
        w0=weights(8, 3, 3, 3), b0=weights(8), w1=weights(8, 1, 3, 3), w2=weights(5, 8), b2=weights(5),
    )  # fmt: skip


def test_work_is_what_shapes_say(graph: Graph) -> None:
    found = {node.outputs[0].name: work_of(graph, node) for node in graph.nodes()}
    assert [found[name].kind for name in "abcdefhy"] == [
        "conv", "free", "conv", "add", "activation", "mean", "free", "dense",
    ]  # fmt: skip
    assert found["a"].weight == (8, 3, 3, 3) and found["a"].macs == 8 * 3 * 9 * 100
    assert found["c"].get("group") == 8 and found["c"].macs == 8 * 9 * 100
    assert found["y"].weight == (8, 5) and found["y"].macs == 40  # transposed: K first
    assert found["d"].inputs == ((1, 8, 10, 10),) * 2


def test_a_product_of_activations_counts_both_widths() -> None:
    graph = float_graph("float[2,4,6] x, float[2,6,5] z => float[2,4,5] y", "a = MatMul(x, z) y = Neg(a)")
    work = work_of(graph, graph.nodes("MatMul")[0])
    assert work.kind == "matmul" and work.inputs == ((2, 4, 6), (2, 6, 5)) and work.macs == 240
    assert bops(work, Widths(None, (8, 4), 8)) == 240 * 32


def test_widths_follow_the_assignment(graph: Graph) -> None:
    x = RNG.standard_normal((4, 3, 10, 10)).astype(np.float32)
    context = Context(samples=load_samples({"x": x}, graph))
    rules = [{"match": "", "op_type": "Sigmoid", "activation": "uint16"}, {"op_type": "Gemm", "weight": "int3"}]
    decide.run(graph, decide.Options(precision="w4a8", rules=rules, keep_first_last=False), context)
    assert context.assignment is not None
    found = {n.outputs[0].name: widths_of(graph, n, context.assignment) for n in graph.nodes()}
    assert found["a"] == Widths(4, (8,), 8)
    assert found["e"] == Widths(None, (8,), 16)
    assert found["f"].inputs == (16,)
    assert found["y"].weight == 3
    total = additive(BytesAndBops(), graph, context.assignment)
    assert total.weight_bytes == 216 // 2 + 4 * 8 + 72 // 2 + 4 * 8 + 40 * 3 // 8 + 4 * 5


def test_bytes_of_the_whole_are_those_of_its_nodes(graph: Graph) -> None:
    made = integer(quantize(graph, precision="w8a8"))
    model = BytesAndBops()
    whole = model.whole(made)
    parts = [model.cost(w, Widths(8 if w.weight else None, (8,) * len(w.inputs), 8)) for w in
             (work_of(graph, node) for node in graph.nodes())]  # fmt: skip
    total = sum(parts, Cost())
    assert total.weight_bytes == whole.weight_bytes == 216 + 72 + 40 + 4 * 21
    assert total.resources["bops"] == whole.resources["bops"] == 64 * (216 * 100 + 72 * 100 + 40)


@given(bits=st.integers(2, 15), count=st.integers(1, 999), out=st.integers(1, 40))
def test_more_bits_never_cost_fewer_bytes(bits: int, count: int, out: int) -> None:
    work = Work("dense", "MatMul", ((1, count),), (1, out), (count, out), (), count * out)
    for model in (BytesAndBops(True), BytesAndBops(False)):
        low, high = (model.cost(work, Widths(b, (8,), 8)) for b in (bits, bits + 1))
        assert low.weight_bytes <= high.weight_bytes
        assert low.resources["bops"] < high.resources["bops"]
        wide = model.cost(work, Widths(bits, (bits + 1,), 8))
        assert wide.peak_bytes >= model.cost(work, Widths(bits, (bits,), 8)).peak_bytes


def test_costs_add_up_and_peaks_do_not() -> None:
    total = Cost(1.0, 10, 100, {"bops": 3}) + Cost(0.5, 5, 70, {"bops": 4, "instructions": 2})
    assert (total.latency, total.weight_bytes, total.peak_bytes) == (1.5, 15, 100)
    assert total.resources == {"bops": 7, "instructions": 2}


def test_minifloats_cost_what_their_levels_do() -> None:
    """Kernels read levels: 5 bits of E2M1, 10 of E3M2, which take two bytes; packed weights are codes."""
    w = np.ones((6, 8, 1, 1), np.float32)
    graph = float_graph("float[1,8,4,4] x => float[1,6,4,4] y", "y = Conv(x, w)", w=w)
    for precision, weight, read in (("e2m1w-e2m1a", 4, 5), ("e3m2w-e3m2a", 6, 10)):
        context = Context()
        decide.run(graph, decide.Options(precision=precision, keep_first_last=False), context)
        widths = widths_of(graph, graph.nodes("Conv")[0], context.assignment)
        assert (widths.weight, widths.inputs) == (weight, (read,))
        cost = BytesAndBops().cost(work_of(graph, graph.nodes("Conv")[0]), widths)
        assert cost.peak_bytes == 8 * 16 * (1 if read <= 8 else 2) + 6 * 16
