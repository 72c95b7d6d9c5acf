"""Items, what choosing changes, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.cost import BytesAndBops, Cost, Widths, Work
from qcompiler.graph import qdq
from qcompiler.ops.macs import float_macs
from qcompiler.passes import insert_qdq, set_ranges
from qcompiler.passes.mixed_precision import candidates
from qcompiler.passes.mixed_precision.problem import Problem
from tests.passes.mixed_precision.networks import items_of, residual
from tests.quantized import float_graph


def test_items_are_weights_and_operands() -> None:
    graph, context = residual()
    items = {item.name: item for item in items_of(graph, context, (4, 8))}
    assert [name for name, item in items.items() if item.kind == "weight"] == ["w1", "w2", "w3", "w4", "w5"]
    assert [name for name, item in items.items() if item.kind == "activation"] == ["x", "a1", "a2", "f", "a4"]
    assert items["a1"].inner  # the Add reads it as well
    assert not items["a2"].inner and items["a2"].bits == (4, 8)
    assert set(items["f"].values) == {"a3", "p", "f"}  # MaxPool and Reshape only move
    assert all(item.pinned and item.bits == (8,) for item in items_of(graph, context) if item.kind == "activation")


def test_what_the_user_fixed_has_one_option() -> None:
    rules = ({"match": "^c2$", "weight": "int5"}, {"match": "^r4$", "activation": "uint6"})
    graph, context = residual(rules=rules, exclude=("^c3$",), keep_first_last=True)
    items = {item.name: item for item in items_of(graph, context, (4, 8))}
    fixed = {name: item.bits for name, item in items.items() if item.pinned}
    assert fixed == {"w2": (5,), "w1": (8,), "w5": (8,), "w3": (8,), "x": (8,), "a2": (8,), "f": (8,),
                     "a4": (6,)}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_choice_becomes_the_formats_of_the_graph_and_costs_its_products(seed: int) -> None:
    graph, context = residual()
    items = items_of(graph, context, (3, 4, 8))
    rng = np.random.default_rng(seed)
    choice = [int(rng.integers(len(item.bits))) for item in items]
    before = context.assignment.describe()
    changed = candidates.change(context.assignment, items, choice)
    assert context.assignment.describe() == before and not context.assignment.narrowed
    for item, k in zip(items, choice, strict=True):
        assert candidates.width(changed, item) == item.bits[k]
    linear, crossed = candidates.costs(graph, items)
    problem = Problem([np.zeros(len(item.bits)) for item in items], linear, {}, {}, crossed)
    sizes = {node.name: float_macs(graph, node) for node in graph.nodes()}
    context.assignment = changed
    graph = insert_qdq.run(set_ranges.run(graph, set_ranges.Options(), context), insert_qdq.Options(), context)
    bops = size = 0
    for node in graph.nodes("Conv", "MatMul"):
        widths = [qdq.quantizer_of(graph, value).params.format.bits for value in node.inputs[:2]]
        bops += sizes[node.name] * widths[0] * widths[1]
        size += (qdq.quantizer_of(graph, node.inputs[1]).codes.size * widths[1] + 7) // 8
    assert problem.cost(choice) == {"bops": bops, "size": size}


def test_choosing_what_was_decided_changes_nothing() -> None:
    for precision in ("w8a8", "w4a4", "w4a8"):
        graph, context = residual(precision)
        items = items_of(graph, context, (4, 8))
        choice = [item.bits.index(candidates.width(context.assignment, item)) for item in items]
        changed = candidates.change(context.assignment, items, choice)
        for key in ("activations", "constants", "narrowed"):
            assert getattr(changed, key) == getattr(context.assignment, key)


def test_w4a4_of_decide_can_be_chosen() -> None:
    graph, context = residual()
    items = items_of(graph, context, (4, 8))
    changed = candidates.change(context.assignment, items, [item.bits.index(4) for item in items])
    wanted = residual("w4a4")[1].assignment
    assert changed.constants == wanted.constants
    assert changed.narrowed == wanted.narrowed
    assert {n: s for n, s in changed.activations.items() if n != "y"} == {
        n: s for n, s in wanted.activations.items() if n != "y"
    }


def test_products_of_activations_and_shared_weights() -> None:
    w = np.eye(4, dtype=np.float32)
    graph = float_graph(
        "float[1,4,4] x => float[1,4,4] y",
        "q = MatMul(x, w)  k = MatMul(x, w)  t = Transpose <perm = [0,2,1]> (k)  z = MatMul(q, t)  y = MatMul(z, z)",
        w=w,
    )
    from qcompiler.context import Context
    from qcompiler.passes import decide

    context = Context()
    graph = decide.run(graph, decide.Options(keep_first_last=False), context)
    items = candidates.find_items(graph, context.assignment, (4, 8), (4, 8))
    assert [(item.name, item.kind) for item in items] == [
        ("x", "activation"), ("w", "weight"), ("q", "activation"), ("t", "activation"), ("z", "activation"),
    ]  # fmt: skip
    assert set(items[3].values) == {"k", "t"}
    linear, crossed = candidates.costs(graph, items)
    assert set(crossed["bops"]) == {(0, 1), (2, 3)}
    np.testing.assert_array_equal(crossed["bops"][0, 1], 2 * 64 * np.outer([4, 8], [4, 8]))
    np.testing.assert_array_equal(linear["bops"][4], 64 * np.array([16, 64]))
    np.testing.assert_array_equal(linear["size"][1], [8, 16])


def test_costs_of_a_target() -> None:
    graph, context = residual()
    items = items_of(graph, context)
    linear, crossed = candidates.costs(graph, items, context.assignment, BytesAndBops())
    assert not crossed and linear.keys() == {"size", "bops"}  # it knows no latency, and peaks do not add up

    class Model(BytesAndBops):
        def cost(self, work: Work, widths: Widths) -> Cost:
            return Cost(float(widths.weight) + widths.inputs[0] / 10, 0, 5, {"instructions": work.macs})

    linear, crossed = candidates.costs(graph, items, context.assignment, Model())
    problem = Problem([np.zeros(len(item.bits)) for item in items], linear, {}, {}, crossed)
    narrow = problem.cost([0] * len(items))
    assert narrow["latency"] == pytest.approx(5 * 2.8) and "ram" not in narrow
    assert narrow["instructions"] == sum(float_macs(graph, node) for node in graph.nodes("Conv", "MatMul"))
