"""Float islands, from `--nonlinear float` to the report: what becomes one, what is refused, how it is compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import qcompiler
from qcompiler.bundle import manifest_of
from qcompiler.cli.app import run
from qcompiler.context import Context
from qcompiler.errors import ModelError, RecipeError, UnsupportedError
from qcompiler.evaluate import verify
from qcompiler.execute.oracle import Oracle
from qcompiler.execute.ort import Session
from qcompiler.graph import islands, stages
from qcompiler.graph.islands import ISLAND_KEY, describe_islands, is_island
from qcompiler.graph.model import Graph
from qcompiler.inspect import inspect_graph
from qcompiler.passes import check_support
from qcompiler.runtime.loader import BundleLoadError, load
from qcompiler.target import Capabilities
from qcompiler.targets.cpu.build import build
from qcompiler.tolerance import Tolerance, cut, verify_parts
from tests.quantized import differences, float_graph, integer, quantize, random_input

FLOAT = {"check_support.nonlinear": "float"}


def network() -> Graph:
    """x -> product -> {Sigmoid, Pow, Softmax} and Sinh -> product; z depends on no island."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((16, 16)).astype(np.float32) / 4
    body = """[h] h = MatMul (x, w)  [z] z = Relu (h)  [e] e = Sigmoid (h)  [a] a = Pow (z, e)  [t] t = Softmax (a)
    [s] s = Sinh (h)  [m] m = Add (t, s)  [y] y = MatMul (m, w)"""
    return float_graph("float[4,16] x => float[4,16] y, float[4,16] z", body, w=w)


def samples(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4 * count, 16)).astype(np.float32)


def lower(graph: Graph):
    return build(graph, {}, lambda stage, done, total: None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("islands") / "net.cpu"
    return qcompiler.compile(network().model, calibration={"x": samples(16)}, output=path, options=FLOAT)


def marked(graph: Graph, nonlinear: str = "float", capabilities: Capabilities | None = None) -> Graph:
    context = Context(capabilities=capabilities)
    return check_support.run(graph.clone(), check_support.Options(nonlinear=nonlinear), context)


# -- what becomes an island ------------------------------------------------------------------------------------


def test_without_the_option_it_is_refused_and_the_hint_names_it():
    with pytest.raises(UnsupportedError, match=r"Pow \(node `a`\) has no integer form.*--nonlinear float"):
        marked(network(), "integer")


def test_the_hint_is_not_given_where_it_would_not_help():
    no_float = Capabilities((8,), (8,), ("fixed",), float_boundary=False)
    with pytest.raises(UnsupportedError) as caught:
        marked(network(), "integer", no_float)
    assert "--nonlinear" not in str(caught.value)
    beyond = float_graph("float[2,8] x => float[2,8] y", "y = Bernoulli (x)")
    for choice in ("integer", "float"):
        with pytest.raises(UnsupportedError, match=r"Bernoulli \(node `y`\) has no integer form yet") as caught:
            marked(beyond, choice)
        assert "--nonlinear" not in str(caught.value)
    assert "is no operator of float islands" in str(caught.value)


def test_a_target_without_float_refuses_before_calibration(tmp_path: Path):
    with pytest.raises(UnsupportedError, match=r"computes without float.*Pow \(node `a`\).*Leave out"):
        qcompiler.compile(network().model, "c", {"x": samples(2)}, output=tmp_path / "b", options=FLOAT)
    assert not list(tmp_path.iterdir())


def test_an_unknown_choice_is_refused():
    with pytest.raises(RecipeError, match="Choose integer or float"):
        marked(network(), "fixed")


def test_islands_are_what_has_no_integer_form_and_what_is_not_linear():
    graph = marked(network())
    assert {node.op_type for node in graph.nodes() if is_island(node)} == {"Sigmoid", "Pow", "Softmax", "Sinh"}
    described = describe_islands(graph)
    assert [[node["name"] for node in island["nodes"]] for island in described] == [["e", "a", "t"], ["s"]]
    assert described[0]["nodes"][1] == {"name": "a", "operator": "Pow", "reason": "has no integer form yet"}
    assert "--nonlinear float" in described[1]["nodes"][0]["reason"]


def test_the_mask_of_a_softmax_stays_in_its_island():
    mask = np.triu(np.full((6, 6), -1e9, np.float32), 1)
    body = "s = MatMul (x, k)  a = Add (s, mask)  p = Softmax (a)  y = MatMul (p, x)"
    graph = marked(float_graph("float[6,6] x, float[6,6] k => float[6,6] y", body, mask=mask))
    assert [node.op_type for node in graph.nodes() if is_island(node)] == ["Add", "Softmax"]
    qdq = quantize(graph)
    whole = integer(qdq)
    assert differences(qdq, whole)[0] <= 1
    add = next(node for node in whole.nodes() if node.op_type == "Add" and is_island(node))
    assert any(np.array_equal(whole.const(value), mask) for value in add.inputs)  # as it was, not as codes


def test_what_makes_the_choices_of_an_island_belongs_to_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(islands, "NONLINEAR", {"Where"})
    body = "c = Greater (x, z)  y = Where (c, x, z)"
    graph = marked(float_graph("float[3,8] x, float[3,8] z => float[3,8] y", body))
    assert all(is_island(node) for node in graph.nodes())
    qdq = quantize(graph)
    assert differences(qdq, integer(qdq)) == (0, 0.0)
    shared = body + "  u = Softmax (z)  o = Where (c, u, x)  a = Not (c)  v = Mul (x, z)  w = Where (a, v, z)"
    monkeypatch.setattr(islands, "OPERATORS", islands.OPERATORS - {"Not"})
    monkeypatch.setattr(islands, "NONLINEAR", {"Where"})
    graph = float_graph("float[3,8] x, float[3,8] z => float[3,8] y, float[3,8] o, float[3,8] w", shared)
    with pytest.raises(UnsupportedError, match=r"Not \(node `.*`\) reads `c`, which a float island makes"):
        marked(graph)


def test_inspect_tells_of_islands():
    rows = {row["name"]: row for row in inspect_graph(network(), nonlinear="float")["nodes"]}
    assert rows["a"]["becomes"] == rows["t"]["becomes"] == "float island"
    assert rows["a"]["reason"] == "has no integer form yet" and "--nonlinear float" in rows["t"]["reason"]
    found = inspect_graph(network(), nonlinear="float")
    assert found["integer_nodes"] == len(found["nodes"]) - 4 and len(found["islands"]) == 2
    kinds = {row["name"]: row["becomes"] for row in inspect_graph(network())["nodes"]}
    assert kinds["a"] == "unsupported" and "float island" not in kinds.values()


# -- the graphs ------------------------------------------------------------------------------------------------


def test_the_integer_graph_has_float_only_in_marked_nodes():
    graph = integer(quantize(marked(network())))
    stages.check(graph, stages.Stage.INTEGER)
    node = next(node for node in graph.nodes() if node.op_type == "Sinh")
    del node.metadata_props[ISLAND_KEY]
    with pytest.raises(ModelError, match="returns to float inside the graph"):
        stages.check(graph, stages.Stage.INTEGER)
    graph = integer(quantize(marked(network())))
    softmax = next(node for node in graph.nodes() if node.op_type == "Softmax")
    softmax.inputs[0].producer().metadata_props.pop(ISLAND_KEY)  # the Pow before it
    with pytest.raises(ModelError, match="float inside|no integer oracle"):
        stages.check(graph, stages.Stage.INTEGER)


def test_values_within_an_island_are_not_quantized_and_the_oracle_agrees_with_onnxruntime():
    qdq = quantize(marked(network()))
    whole = integer(qdq)
    softmax = next(node for node in whole.nodes() if node.op_type == "Softmax" and is_island(node))
    power = softmax.inputs[0].producer()
    assert [power.op_type, power.inputs[1].producer().op_type] == ["Pow", "Sigmoid"]
    assert differences(qdq, whole)[0] <= 1


# -- the bundle ------------------------------------------------------------------------------------------------


def test_the_bundle_agrees_with_the_qdq_file_in_onnxruntime(bundle):
    """Within the tolerance that the oracle gives; and all thread counts give the same bits."""
    oracle, session = Oracle(bundle.integer_graph()), Session(bundle.qdq_graph())
    inputs = [{"x": x} for x in samples(8, seed=5).reshape(8, 4, 16)]
    with bundle.load(threads=1) as one, bundle.load(threads=2) as two:
        for compute in (one.run, two.run, lambda x: session.run(x)):
            found = verify(oracle.run, [compute], ["it"], inputs, tolerance=Tolerance(oracle))
            assert found.passed and found.samples == 8
        for x in inputs:
            for a, b in zip(one.run(x), two.run(x), strict=True):
                np.testing.assert_array_equal(a, b)
        one.self_test()


def test_the_report_lists_islands_and_says_how_it_compared(bundle):
    report = bundle.report()
    assert [[node["operator"] for node in island["nodes"]] for island in report["islands"]] == [
        ["Sigmoid", "Pow", "Softmax"],
        ["Sinh"],
    ]
    checked = report["verification"]
    y, z = checked["outputs"]
    assert checked["within_tolerance"] and "oracle runs" in checked["rule"]
    assert y["compared"] == "within tolerance" and y["largest_difference"] <= y["tolerance"]
    assert z == {"name": "z", "compared": "bit for bit"}
    parts = {row["name"]: row for row in checked["parts"]["outputs"]}
    assert sum(row["compared"] == "bit for bit" for row in parts.values()) == 4  # y, z, and what the islands read
    assert sum(row["compared"] == "within tolerance" for row in parts.values()) == 2
    assert checked["parts"]["mismatches"] == 0
    assert "but for float islands" in report["verdict"]
    assert "Float islands" in (bundle.path / "report.html").read_text()
    tolerances = [output.get("tolerance", 0) for output in bundle.manifest["outputs"]]
    assert tolerances[0] > 0 and tolerances[1] == 0


def test_the_self_test_allows_the_tolerance_and_no_more(bundle, tmp_path: Path):
    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    allowed = bundle.manifest["outputs"][0]["tolerance"]
    with np.load(copy / "selftest.npz") as stored:
        given = dict(stored)
    for output, change, fails in (
        ("out_0", 0.9 * allowed, False),
        ("out_0", 1.1 * allowed, True),
        ("out_1", 1e-5, True),
    ):
        arrays = {name: array.copy() for name, array in given.items()}
        arrays[output].flat[0] += change
        np.savez(copy / "selftest.npz", **arrays)
        with load(copy, check=False) as session:
            if fails:
                with pytest.raises(BundleLoadError, match="self-test failed"):
                    session.self_test()
            else:
                session.self_test()


def test_the_command_line_compiles_verifies_and_inspects(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    network().save(tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", x=samples(8))
    model, data, out = (str(tmp_path / name) for name in ("net.onnx", "calib.npz", "out"))
    assert run([model, "--calib", data, "-o", out, "--quiet"]) == 3
    assert "--nonlinear float" in capsys.readouterr().err
    assert run([model, "--calib", data, "-o", out, "--nonlinear", "fixed", "--quiet"]) == 2
    capsys.readouterr()
    assert run([model, "--calib", data, "-o", out, "--nonlinear", "float", "--quiet"]) == 0
    assert "island   Sigmoid `e`" in capsys.readouterr().out
    assert "nonlinear" in (Path(out) / "recipe.toml").read_text()
    assert run(["verify", out, "--data", data, "--threads", "1,2", "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["within_tolerance"] and document["outputs"][1] == {"name": "z", "compared": "bit for bit"}
    assert run(["inspect", model, "--nonlinear", "float"]) == 0
    assert "float island: Sigmoid `e`" in capsys.readouterr().out


def test_the_same_bytes_come_out_twice():
    graph = integer(quantize(marked(network())))
    first, second = lower(graph), lower(graph)
    assert first.files == second.files


def test_a_softmax_and_norms_as_islands_on_a_transformer(digits, tmp_path: Path):
    options = {"calibration": {"x": digits.data["x_calib"][:32]}, "dims": {"N": 1}}
    done = qcompiler.compile(digits.vit, output=tmp_path / "vit", options=FLOAT, **options)
    report = done.report()
    operators = {node["operator"] for island in report["islands"] for node in island["nodes"]}
    assert operators == {"Softmax", "LayerNormalization", "Gelu"}
    assert report["verification"]["within_tolerance"] and report["verification"]["parts"]["within_tolerance"]
    assert report["quality"]["top1_agreement"] == 1.0


def test_places_behind_an_island_are_whole_numbers(tmp_path: Path):
    w = np.random.default_rng(2).standard_normal((16, 12)).astype(np.float32)
    body = "h = MatMul (x, w)  t = Softmax (h)  k = ArgMax <axis = 1, keepdims = 0> (t)"
    graph = float_graph("float[4,16] x => int64[4] k", body, w=w)
    done = qcompiler.compile(graph.model, calibration={"x": samples(16)}, output=tmp_path / "b", options=FLOAT)
    checked = done.report()["verification"]
    assert checked["within_tolerance"] and checked["outputs"][0]["name"] == "k"
    with done.load() as session:
        session.self_test()
        (places,) = session.run({"x": samples(1, seed=9)})
    assert places.dtype == np.int64 and places.shape == (4,)


# -- the comparison --------------------------------------------------------------------------------------------


def test_tolerance_lets_nothing_else_pass():
    whole = integer(quantize(marked(network())))
    oracle = Oracle(whole)
    tolerance = Tolerance(oracle)
    sample = {"x": random_input(whole, "x", 3)}
    want = oracle.run(sample)
    allowed = tolerance(sample, want)
    assert allowed[0] > 0 and allowed[1] == 0
    for output, change, passes in ((0, 0.9 * allowed[0], True), (0, 1.1 * allowed[0], False), (1, 1e-6, False)):
        moved = [array.copy() for array in want]
        moved[output].flat[0] += np.float32(change) if output == 0 else np.spacing(moved[1].flat[0])
        found = verify(oracle.run, [lambda _, moved=moved: moved], ["it"], [sample], tolerance=tolerance)
        assert (found.passed, found.bit_exact) == (passes, False)


def test_a_graph_without_islands_has_no_tolerance():
    graph = float_graph("float[2,8] x => float[2,8] y", "y = Relu (x)")
    whole = integer(quantize(graph))
    oracle, sample = Oracle(whole), {"x": random_input(whole, "x", 3)}
    assert Tolerance(oracle)(sample, oracle.run(sample)) == [0.0] and cut(whole) is None


def _change_bias(graph: Graph) -> None:
    node = next(node for node in graph.nodes("MatMul") if node.outputs[0].name.startswith("y"))
    bias = graph.const(node.inputs[2]).copy()
    bias[0] += 10_000
    graph.set_const(node.inputs[2], bias)


def _change_island(graph: Graph) -> None:
    node = next(node for node in graph.nodes("Sinh"))
    node.op_type = "Tan"


@pytest.mark.parametrize("change", [None, _change_bias, _change_island])
def test_parts_tell_a_wrong_kernel(change):
    """A lowering of another graph: an integer operator that is wrong, an island that is wrong."""
    whole = integer(quantize(marked(network())))
    parts = cut(whole)
    other = parts.graph.clone()
    if change:
        change(other)
    lowered = lower(other)
    manifest = manifest_of("cpu", "float", whole, {}, {}, lowered.sizes)
    inputs = [{"x": random_input(whole, "x", seed)} for seed in range(3)]
    found = verify_parts(parts, Oracle(whole), lowered, manifest, inputs)
    assert (found["mismatches"] == 0) == (change is None) and found["samples"] == 3
