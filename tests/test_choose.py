"""The recipe `auto`: which parts run, and that the report says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import qcompiler
from qcompiler.choose import PARTS, choose_passes, facts_of
from qcompiler.graph.model import Graph
from qcompiler.recipe import load_recipe, pass_names

DIGITS = Path(__file__).parent.parent / "examples" / "digits"

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,4,5,5] x, float[{m},{c},3,3] w) => (float[1,{m},3,3] y) {{ y = Conv <group = {g}> (x, w) }}"""


def convolution(outputs: int, groups: int) -> Graph:
    inner = 4 // groups
    weight = np.ones((outputs, inner, 3, 3), np.float32)
    return Graph.parse(TEXT.format(m=outputs, c=inner, g=groups), w=weight)


def test_facts_are_read_off_the_graph() -> None:
    assert facts_of(convolution(4, 4), 4, 8).depthwise
    assert not facts_of(convolution(4, 2), 4, 8).depthwise
    assert not facts_of(convolution(4, 1), 4, 8).depthwise


def test_parts_follow_the_facts() -> None:
    auto = load_recipe("auto")
    low, reasons = choose_passes(auto, facts_of(convolution(4, 4), 4, 8))
    assert "solve_weights" in low.passes and "cross_layer_equalization" not in low.passes
    high, _ = choose_passes(auto, facts_of(convolution(4, 4), 8, 8))
    assert "solve_weights" not in high.passes and "cross_layer_equalization" in high.passes
    assert {name for name, _ in reasons} == set(PARTS) & set(low.passes)
    plain, _ = choose_passes(auto, facts_of(convolution(4, 1), 8, 8))
    assert plain.passes == load_recipe("default").passes


def test_parts_with_options_stay() -> None:
    plan = load_recipe("auto").override({"solve_weights.method": "gpfq"})
    kept, reasons = choose_passes(plan, facts_of(convolution(4, 1), 8, 8))
    assert "solve_weights" in kept.passes
    assert ("solve_weights", "asked for") in reasons


def test_quality_is_measured_on_samples_that_no_pass_saw() -> None:
    with np.load(DIGITS / "digits.npz") as data:
        x = data["x_calib"][:40]
    result = qcompiler.quantize(DIGITS / "cnn.onnx", {"x": x}, "fast", dims={"N": 1})
    seen, kept = list(result.context.samples), list(result.held_out)
    assert (len(seen), len(kept), len(result.samples)) == (35, 5, 40)
    assert all(np.array_equal(a["x"], b) for a, b in zip([*seen, *kept], x[:, None], strict=True))
    assert qcompiler.quantize(DIGITS / "cnn.onnx", {"x": x[:8]}, "fast", dims={"N": 1}).held_out is None
    assert qcompiler.quantize(DIGITS / "cnn.onnx", {"x": x}, "default", dims={"N": 1}).held_out is None


def test_parts_are_passes_of_the_recipe() -> None:
    assert set(PARTS) <= set(pass_names())
    assert set(PARTS) <= set(load_recipe("auto").passes)


def test_below_8_bits_auto_is_the_default_and_explains_itself(tmp_path: Path) -> None:
    with np.load(DIGITS / "digits.npz") as data:
        x = data["x_calib"][:24]
    about = {"calibration": {"x": x}, "dims": {"N": 1}}
    bundle = qcompiler.compile(
        DIGITS / "cnn.onnx", "cpu", output=tmp_path / "low", options={"precision": "w4a4"}, **about
    )
    report = bundle.report()
    assert report["recipe"] == "auto"
    assert any(note["pass"] == "auto" and note["where"] == "solve_weights" for note in report["notes"])
    steps = [row["pass"] for row in report["passes"]]
    assert steps[:3] == ["insert_qdq", "search_ranges", "solve_weights"]
    won = {row["pass"]: row["output_sqnr_db"] for row in report["passes"]}
    assert won["solve_weights"] > won["insert_qdq"]
    assert all("sqnr_db_rounded" in row for row in report["layers"])
    assert report["verification"]["bit_exact"]
    assert report["quality"]["held_out"] and report["quality"]["samples"] == report["calibration"]["held_out"] == 3
    result = qcompiler.quantize(DIGITS / "cnn.onnx", recipe=None, **about)
    assert result.recipe.name == "default"
