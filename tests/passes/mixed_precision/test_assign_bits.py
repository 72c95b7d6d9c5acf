"""The pass assign_bits: budgets hold, the choice arrives in the graph, other budgets need no probes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from qcompiler.context import Context
from qcompiler.cost import Cost, Widths, Work, totals
from qcompiler.errors import BudgetError, QCompilerError, RecipeError, UnsupportedError
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph
from qcompiler.passes import assign_bits, insert_qdq, set_ranges
from qcompiler.passes.mixed_precision import facts
from qcompiler.passes.mixed_precision.probe import Probes
from qcompiler.recipe import parse_recipe
from qcompiler.target import Capabilities
from tests.passes.mixed_precision.networks import residual


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path))


def assign(options: dict, precision: str = "w8a8", **decided) -> tuple[Graph, Context, dict]:
    graph, context = residual(precision, **decided)
    graph = assign_bits.run(graph, assign_bits.Options(**options), context)
    return graph, context, context.facts.get("assign_bits", {})


def weight_bytes(graph: Graph, context: Context) -> int:
    """Packed codes of the weights of the QDQ graph."""
    graph = insert_qdq.run(set_ranges.run(graph, set_ranges.Options(), context), insert_qdq.Options(), context)
    total = 0
    for node in graph.nodes("Conv", "MatMul"):
        read = qdq.quantizer_of(graph, node.inputs[1])
        assert read is not None and read.codes is not None
        total += (read.codes.size * read.params.format.bits + 7) // 8
    return total


def chosen(document: dict) -> dict[str, int]:
    return {item["name"]: item["chosen"] for item in document["items"]}


@pytest.mark.parametrize("score", list(assign_bits.SCORES))
def test_every_score_meets_its_budget(score: str) -> None:
    if score in ("hessian", "fisher", "combined"):
        pytest.importorskip("torch", reason="torch is not installed: pip install 'qcompiler[learn]'")
    graph, context, found = assign({"score": score, "budget_size": 600, "points": 5, "widths": (2, 3, 4, 6, 8)})
    assert found["total"]["size"] <= 600 and found["status"] == "optimal" and found["gap"] <= 1e-6
    assert weight_bytes(graph, context) == found["total"]["size"]
    assert found == json.loads(json.dumps(found, allow_nan=False))
    sizes = [point["total"]["size"] for point in found["curve"]]
    scores = [point["score"] for point in found["curve"]]
    assert sizes == sorted(sizes) and scores == sorted(scores, reverse=True) and len(sizes) > 2
    for one in found["uniform"]:
        assert not one["fits"] or one["score"] >= found["score"] * (1 - 1e-9)


@pytest.mark.parametrize("solver", facts.SOLVERS)
def test_weights_and_activations_within_two_budgets(solver: str) -> None:
    options = {"activations": True, "activation_widths": (4, 6, 8), "widths": (2, 4, 8), "solver": solver, "points": 0}
    _, context, found = assign({**options, "budget_size": "0.5x", "budget_bops": "0.4x"})
    widest = facts.problem_of(found)[1].cost([len(item["bits"]) - 1 for item in found["items"]])
    assert found["total"]["size"] <= 0.5 * widest["size"] and found["total"]["bops"] <= 0.4 * widest["bops"]
    assert found["budgets"] == {"size": 0.5 * widest["size"], "bops": 0.4 * widest["bops"]}
    formats = {name: spec.format.bits for name, spec in context.assignment.constants.items()}
    assert formats == {name: bits for name, bits in chosen(found).items() if name.startswith("w")}


def test_solvers_rank_as_they_should() -> None:
    options = {"budget_size": 560, "points": 0, "activations": True}
    scores = {s: assign({**options, "solver": s})[2]["score"] for s in ("ilp", "greedy")}
    assert scores["ilp"] <= scores["greedy"] * (1 + 1e-9)
    pairwise = assign({**options, "solver": "pairwise"})[2]
    linear = assign({**options, "solver": "ilp"})[2]
    items, problem = facts.problem_of(pairwise)
    other = [item.bits.index(bits) for item, bits in zip(items, chosen(linear).values(), strict=True)]
    assert pairwise["score"] <= problem.score(other) * (1 + 1e-6)


@pytest.mark.parametrize("pairs", ["block", "block_lowest"])
def test_measured_pairs(pairs: str) -> None:
    found = assign({"budget_size": 560, "points": 0, "solver": "pairwise", "pairs": pairs, "widths": (2, 4, 8)})[2]
    assert found["pairs"] and found["pairs_name"] == pairs and found["total"]["size"] <= 560


def test_other_budgets_without_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"points": 4, "activations": True}
    first = assign({**options, "budget_size": 700})[2]
    direct = assign({**options, "budget_size": "0.45x", "budget_bops": "0.5x"})[2]
    monkeypatch.setattr(Probes, "outputs", None)
    stored = json.loads(json.dumps(first))
    assert facts.resolve(stored, {"size": 700}) == first
    again = facts.resolve(stored, {"size": "0.45x", "bops": "0.5x"})
    assert again == direct
    graph, context, told = assign({**options, "choice": facts.choice_of(again)})
    assert not told and weight_bytes(graph, context) == again["total"]["size"]
    assert context.assignment.narrowed.keys() == {
        name for item in again["items"] if item["inner"] and item["chosen"] < 8 for name in item["values"]
    }
    with pytest.raises(BudgetError, match="size needs at least"):
        facts.resolve(stored, {"size": 10})
    with pytest.raises(RecipeError, match="no solved assignment"):
        facts.resolve({"solver": "ilp"}, {"size": 1})


def test_what_was_fixed_stays() -> None:
    rules = ({"match": "^c2$", "weight": "int5"},)
    found = assign({"budget_size": 700, "points": 0}, rules=rules, keep_first_last=True)[2]
    assert {name: bits for name, bits in chosen(found).items() if name in ("w1", "w2", "w5")} == {
        "w1": 8, "w2": 5, "w5": 8,
    }  # fmt: skip
    with pytest.raises(BudgetError, match="`w2` 360"):
        assign({"budget_size": 500}, rules=rules, keep_first_last=True)


def test_a_target_that_lacks_widths_is_asked_first() -> None:
    graph, context = residual()
    from qcompiler.target import Capabilities

    context.capabilities = Capabilities((4, 8), (8, 16), ("float",), True)
    assign_bits.run(graph, assign_bits.Options(budget_size="0.7x"), context)
    assert {spec.format.bits for spec in context.assignment.constants.values()} <= {4, 8}
    with pytest.raises(RecipeError, match="activations cannot have"):
        options = assign_bits.Options(budget_size="0.7x", activations=True, activation_widths=(4,))
        assign_bits.run(graph, options, context)


class Line:
    """A cost model: 1 us a bit of the weight, a byte of flash a weight's bit, and 3 us for a narrower reading."""

    origin = "made up"

    def cost(self, work: Work, widths: Widths) -> Cost:
        if work.op_type == "Identity":
            return Cost(0.003, resources={"flash_bytes": 0})
        return Cost(1e-3 * widths.weight, resources={"flash_bytes": widths.weight})


def planned(extra: float, arena: int = 640):
    """Cost of the whole: `extra` ms and bytes more than all products, and as much again if `w2` is narrow."""

    def whole(choice: tuple[str, ...]) -> Cost:
        bits = dict(pair.split("=") for pair in choice)
        more = extra * (2 if int(bits["w2"]) < 6 else 1)
        total = sum(int(value) for name, value in bits.items() if name[0] == "w")
        return Cost(1e-3 * total + more, 0, arena, {"flash_bytes": total + 1000 * more})

    return whole


def test_costs_of_the_target_are_budgets() -> None:
    graph, context = residual()
    context.cost, context.whole = Line(), planned(0.01)
    before = context.assignment
    options = assign_bits.Options(budget_latency="0.036ms", budget_flash=37, budget_ram=640, points=3, score="local")
    assign_bits.run(graph, options, context)
    found = context.facts["assign_bits"]
    items, problem = facts.problem_of(json.loads(json.dumps(found)))
    # What the plan says, to the last bit, is what the program says of its choice.
    want = totals(planned(0.01)(facts.choice_of(found)))
    assert found["planned"] == want
    assert {name: found["total"][name] for name in want} == pytest.approx(want)
    assert all(found["total"][name] <= limit * (1 + 1e-9) for name, limit in found["budgets"].items())
    assert len(found["curve"]) >= 2 and [p["total"]["latency"] for p in found["curve"]] == sorted(
        p["total"]["latency"] for p in found["curve"]
    )
    assert facts.parse_budget("latency", "0.5x", problem, items) == pytest.approx(
        0.5 * problem.cost([len(i.bits) - 1 for i in items])["latency"]
    )
    # The arena is what it is, and said before anything is measured.
    context.assignment, context.samples = before, None
    with pytest.raises(BudgetError, match="ram needs at least 640.*whatever the widths"):
        assign_bits.run(graph, dataclasses.replace(options, budget_ram=600), context)
    context.cost = context.whole = None
    with pytest.raises(RecipeError, match="nothing says what `latency` costs"):
        assign_bits.run(graph, options, context)


def test_a_plan_that_never_holds_is_refused() -> None:
    graph, context = residual()
    context.cost = Line()
    seen: list[tuple[str, ...]] = []

    def whole(choice: tuple[str, ...]) -> Cost:
        seen.append(choice)
        return Cost(1.0 * len(seen), resources={"flash_bytes": 1})

    context.whole = whole
    with pytest.raises(BudgetError, match="needs at least|no choice was found"):
        assign_bits.run(graph, assign_bits.Options(budget_latency=1.001, points=0, score="local"), context)
    assert len(seen) > 1


def test_narrow_readings_cost_a_conversion() -> None:
    graph, context = residual()
    context.cost, context.whole = Line(), None
    options = {"budget_latency": 1.0, "activations": True, "activation_widths": (4, 8), "points": 0, "score": "local"}
    assign_bits.run(graph, assign_bits.Options(**options), context)
    costs = context.facts["assign_bits"]["costs"]["latency"]
    items = context.facts["assign_bits"]["items"]
    inner = {item["name"]: row for item, row in zip(items, costs, strict=True) if item["inner"]}
    assert inner == {"a1": [pytest.approx(0.003), 0.0]}  # an Add reads it with all its bits


def test_several_scores_are_compared_by_what_whole_choices_lose() -> None:
    options = {"budget_size": 560, "points": 0, "score": "local", "final_solver": True}
    one = assign({**options, "compare": ("gauss_newton", "swap")})[2]
    about = one["measured"]
    assert about["choices"].keys() == {"local", "gauss_newton", "swap"}
    assert about["loss"] == min([*about["choices"].values(), *about["uniform"].values()])
    alone = assign({**options, "score": one["score_name"]})[2]
    assert chosen(alone) == chosen(one) and alone["score"] == one["score"] and one["status"] == "optimal"


def test_bisection_takes_as_few_bits_as_the_loss_allows() -> None:
    options = {"solver": "bisection", "widths": (3, 4, 6, 8), "score": "swap", "base": "decided", "points": 0}
    _, _, loose = assign({**options, "max_loss": 0.3})
    _, _, tight = assign({**options, "max_loss": 0.003})
    assert loose["total"]["size"] < tight["total"]["size"]
    with pytest.raises(BudgetError, match="widest precision"):
        assign({**options, "max_loss": 1e-9})


@pytest.mark.parametrize("activations", [False, True])
def test_rounds_only_lower_the_measured_loss(activations: bool) -> None:
    options = {"budget_size": 560, "points": 0, "score": "local", "activations": activations, "base": "decided"}
    if activations:
        options["budget_bops"] = "0.4x"
    first = assign(options)[2]
    found = assign({**options, "rounds": 3})[2]
    about = found["measured"]
    assert "measured" not in first
    assert about["loss"] <= min([*about["choices"].values(), *about["uniform"].values()])
    assert about["loss"] < about["choices"]["local"] and found["status"] == "refined"  # local scores do not know it
    steps = [about["choices"]["local"], *about["rounds"]]
    assert steps == sorted(steps, reverse=True)
    assert all(found["total"][name] <= budget for name, budget in found["budgets"].items())


def test_the_same_twice_and_from_several_processes() -> None:
    options = {"budget_size": 600, "points": 3, "final_solver": True}
    first = assign(options)[2]
    assert assign(options)[2] == first
    assert assign({**options, "executor": "processes:2"})[2] == first


BAD = [
    ({}, "needs a budget"), ({"budget_size": "lots"}, "no budget for size"), ({"budget_size": -3}, "no budget"),
    ({"budget_size": "3 furlongs"}, "no budget"), ({"budget_size": 600, "score": "x"}, "no score"),
    ({"budget_size": 600, "solver": "x"}, "no solver"), ({"budget_size": 600, "pairs": "x"}, "no pairs"),
    ({"budget_size": 600, "widths": (1, 2)}, "cannot have"), ({"budget_size": 600, "base": "x"}, "no base"),
    ({"budget_size": 600, "loss": "x"}, "no loss"), ({"budget_size": 600, "executor": "x"}, "no executor"),
    ({"budget_size": 600, "solver": "bisection"}, "takes a loss"), ({"budget_latency": 1.0}, "nothing says"),
    ({"choice": ("w1=9",)}, "can have"), ({"choice": ("zz=4",)}, "No free item"), ({"choice": ("w1",)}, "No free"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "match"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_options(options: dict, match: str) -> None:
    with pytest.raises(QCompilerError, match=match):
        assign(options)


def test_nothing_to_do_and_nothing_decided() -> None:
    with pytest.raises(RecipeError, match="nothing to choose"):
        assign({"budget_size": 600}, exclude=(".",))
    graph, context = residual()
    with pytest.raises(RecipeError, match="Run the pass `decide`"):
        assign_bits.run(graph, assign_bits.Options(budget_size=1), dataclasses.replace(context, assignment=None))


def test_budgets_as_text() -> None:
    found = assign({"budget_size": 700, "points": 0})[2]
    items, problem = facts.problem_of(found)
    for text, want in (("1KiB", 1024), ("0.5 kB", 500), ("2MiB", 2**21), ("3e2", 300), (12, 12.0)):
        assert facts.parse_budget("size", text, problem, items) == want
    timed = dataclasses.replace(problem, fixed={"latency": 3.0})
    for text, want in (("12ms", 12), ("0.5 s", 500), ("250us", 0.25), (4, 4.0), ("2x", 6.0)):
        assert facts.parse_budget("latency", text, timed, items) == want
    for name, text in (("size", "12ms"), ("latency", "12KiB")):
        with pytest.raises(RecipeError, match="no budget for"):
            facts.parse_budget(name, text, timed, items)
    assert facts.parse_budget("size", "0.25x", problem, items) == pytest.approx(
        0.25 * sum(max(row) for row in found["costs"]["size"])
    )


def test_recipe() -> None:
    text = '[recipe]\nbase = "default"\n[recipe.after]\ndecide = ["assign_bits"]\n[pass.assign_bits]\n'
    recipe = parse_recipe(text + 'budget_size = "180KiB"\nwidths = [2, 4, 8]\n')
    assert recipe.options_of("assign_bits").budget_size == "180KiB"
    assert parse_recipe(recipe.to_toml()) == recipe
    with pytest.raises(RecipeError, match="must run behind `assign_bits`|must run behind `decide`"):
        parse_recipe(text.replace("decide =", "set_ranges ="))


def test_scores_of_more_bits_are_never_worse() -> None:
    np.testing.assert_array_equal(assign_bits.monotone(np.array([5.0, 2, 3, 1, 1.5])), [5, 3, 3, 1.5, 1.5])


def test_only_the_best_format_of_a_width_binds_narrower_ones() -> None:
    scores, bits = np.array([5.0, 4.0, 6.0, 1.0]), (3, 4, 4, 8)
    np.testing.assert_array_equal(assign_bits.monotone(scores, bits), [5, 4, 6, 1])
    np.testing.assert_array_equal(assign_bits.monotone(np.array([3.0, 4.0, 6.0, 1.0]), bits), [4, 4, 6, 1])


@dataclasses.dataclass(frozen=True)
class _Circuit:
    """A target on which a product with a weight of e2m1 costs more than one with int4."""

    origin: str = ""

    def cost(self, work: Work, widths: Widths) -> Cost:
        each = (widths.weight or 0) + (1 if widths.weight_format == "e2m1" else 0)
        return Cost(resources={"lut": work.macs * each})

    def whole(self, graph: Graph) -> Cost:
        raise NotImplementedError


def test_formats_that_differ_in_cost_are_options_of_their_own() -> None:
    """Where LUTs are short, int4 stands where e2m1 would lose less; the choice names formats and is taken back."""

    def chosen(share: float) -> dict[str, str]:
        graph, context = residual("w8a8")
        rng = np.random.default_rng(0)
        for name in ("w2", "w3"):
            weight = graph.ir.initializers[name]
            graph.set_const(weight, rng.standard_t(3, graph.shape(weight)).astype(np.float32))
        context.capabilities = Capabilities(
            (4, 8), (8,), ("fixed",), True, weight_minifloats=("e2m1",), formats_cost=True
        )
        context.cost = _Circuit()
        options = {"points": 0, "widths": (4, 8), "minifloats": ("e2m1",), "score": "swap"}
        first = context.assignment
        graph = assign_bits.run(graph, assign_bits.Options(budget_lut=f"{share}x", **options), context)
        found = context.facts["assign_bits"]
        items = {item["name"]: item for item in found["items"]}
        assert items["w2"]["bits"] == [4, 4, 8] and items["w2"]["formats"] == ["int4", "e2m1", "int8n"]
        formats = {name: context.assignment.constants[name].format.token for name in items if name[0] == "w"}
        choice, context.assignment = facts.choice_of(found), first
        again = assign_bits.Options(choice=choice, **options)
        assign_bits.run(graph, again, context)
        assert {name: context.assignment.constants[name].format.token for name in formats} == formats
        return formats

    assert {*chosen(0.5).values()} == {"int4"}
    assert {"int4", "e2m1"} <= {*chosen(0.506).values()}


def test_minifloats_are_taken_where_they_err_less() -> None:
    """Heavy-tailed weights want exponents, even ones integers; the choice says formats, and other budgets keep them."""
    graph, context = residual("w8a8")
    rng = np.random.default_rng(0)
    initializers = graph.ir.initializers
    graph.set_const(initializers["w2"], rng.standard_t(3, graph.shape(initializers["w2"])).astype(np.float32))
    graph.set_const(initializers["w3"], rng.uniform(-1, 1, graph.shape(initializers["w3"])).astype(np.float32))
    options = {"budget_size": 700, "points": 0, "widths": (4, 8), "minifloats": ("e2m1", "e3m0"), "score": "swap"}
    graph = assign_bits.run(graph, assign_bits.Options(**options), context)
    found = context.facts["assign_bits"]
    formats = {item["name"]: dict(zip(item["bits"], item["formats"], strict=True))
               for item in found["items"] if "formats" in item}  # fmt: skip
    assert formats["w2"] == {4: "e2m1", 8: "int8n"} and formats["w3"][4] == "int4"
    for item in found["items"]:
        if "formats" in item:
            token = item["formats"][item["bits"].index(item["chosen"])]
            assert context.assignment.constants[item["name"]].format.token == token
    assert weight_bytes(graph, context) == found["total"]["size"] <= 700
    again = facts.resolve(found, {"size": 900})
    assert [one.get("formats") for one in again["items"]] == [one.get("formats") for one in found["items"]]
    with pytest.raises(RecipeError, match="ue2m2"):
        assign_bits.run(graph, assign_bits.Options(budget_size=500, minifloats=("ue2m2",)), context)
    context.capabilities = Capabilities((4, 8), (8,), ("fixed",), True)
    with pytest.raises(UnsupportedError, match="no weights in e2m1"):
        assign_bits.run(graph, assign_bits.Options(budget_size=500, minifloats=("e2m1",)), context)
