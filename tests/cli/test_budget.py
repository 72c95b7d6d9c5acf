"""--budget and `resolve`: bits chosen by the integer program, and chosen anew from a report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import qcompiler
from qcompiler.cli import main
from qcompiler.errors import BudgetError, RecipeError
from qcompiler.recipe import load_recipe

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with np.load(DIGITS / "digits.npz") as data:
        x = data["x_calib"][:32]
    path = tmp_path_factory.mktemp("budget") / "half.qcb"
    qcompiler.compile(DIGITS / "cnn.onnx", "cpu", {"x": x}, dims={"N": 1}, budget={"size": "0.5x"}, output=path)
    return path


def test_the_budget_holds_and_the_report_shows_the_choice(bundle: Path) -> None:
    report = json.loads((bundle / "report.json").read_text())
    found = report["facts"]["assign_bits"]
    assert found["total"]["size"] <= found["budgets"]["size"]
    assert report["size"]["weight_bytes"] == found["total"]["size"] < report["size"]["stored_bytes"]
    assert report["assignment"] == {item["name"]: item["chosen"] for item in found["items"]}
    assert len({item["chosen"] for item in found["items"]}) > 1
    assert any(note["where"] == "assign_bits" and "integer program" in note["text"] for note in report["notes"])
    assert report["verification"]["bit_exact"]
    assert load_recipe(bundle / "recipe.toml").options["assign_bits"]["budget_size"] == "0.5x"


def test_resolve_needs_no_data(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "less.toml"
    assert main(["resolve", str(bundle), "--budget", "size=0.4x", "-o", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    before = json.loads((bundle / "report.json").read_text())["facts"]["assign_bits"]
    assert found["total"]["size"] <= found["budgets"]["size"] < before["budgets"]["size"]
    assert found["score"] >= before["score"]
    choice = load_recipe(output).options["assign_bits"]["choice"]
    assert choice == [f"{item['name']}={item['chosen']}" for item in found["items"] if not item["pinned"]]


def test_what_cannot_be_met_is_said(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resolve", str(bundle), "--budget", "size=0.01x"]) == 3
    assert "needs at least" in capsys.readouterr().err
    assert main(["resolve", str(bundle), "--budget", "size=much"]) == 2


def test_budgets_are_checked_before_any_work() -> None:
    x = {"x": np.zeros((2, 1, 8, 8), np.float32)}
    with pytest.raises(RecipeError, match="no budget `weight`"):
        qcompiler.quantize(DIGITS / "cnn.onnx", x, dims={"N": 1}, budget={"weight": 1})
    for name in ("flash", "lut"):
        with pytest.raises(RecipeError, match=f"nothing says what `{name}` costs.*bops, latency, ram, size here"):
            qcompiler.quantize(DIGITS / "cnn.onnx", x, dims={"N": 1}, budget={name: 1})
    with pytest.raises(RecipeError, match="what is to be kept to"):
        qcompiler.quantize(DIGITS / "cnn.onnx", x, dims={"N": 1}, options={"precision": "auto"})


def test_a_bundle_without_scores_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(DIGITS / "digits.npz") as data:
        x = data["x_calib"][:8]
    path = tmp_path / "plain.qcb"
    qcompiler.compile(DIGITS / "cnn.onnx", "cpu", {"x": x}, "minmax", dims={"N": 1}, output=path)
    assert main(["resolve", str(path), "--budget", "size=0.5x"]) == 2
    assert "holds no scores" in capsys.readouterr().err


def test_firmware_budgets_hold_of_the_plan_and_refusals_name_a_way(tmp_path: Path) -> None:
    with np.load(DIGITS / "digits.npz") as data:
        x = data["x_calib"][:24]
    options = {"assign_bits.final_solver": False, "assign_bits.compare": ()}
    given = {"calibration": {"x": x}, "dims": {"N": 1}, "options": options, "output": tmp_path / "c"}
    bundle = qcompiler.compile(DIGITS / "cnn.onnx", "c", budget={"flash": "0.85x", "instructions": "1.5x"}, **given)
    report = bundle.report()
    found = report["facts"]["assign_bits"]
    assert found["planned"]["flash"] <= found["budgets"]["flash"]
    # The plan of the choice is the bundle that was built from it.
    size = bundle.manifest["size"]
    flash = size["weight_bytes"] + size["code_bytes"]
    assert found["planned"]["flash"] == pytest.approx(flash + 0.1 * size["code_bytes"], abs=1)
    assert found["total"]["flash"] == found["planned"]["flash"]
    ram = size["arena_bytes"] + size["stack_bytes"]
    assert found["planned"]["ram"] == pytest.approx(ram + 0.3 * size["stack_bytes"], abs=1)
    assert len({item["chosen"] for item in found["items"] if not item["pinned"]}) > 1
    with pytest.raises(BudgetError, match="whatever the widths.*--optimize-for memory"):
        qcompiler.compile(DIGITS / "cnn.onnx", "c", budget={"ram": 100}, **{**given, "output": tmp_path / "no"})
    assert not (tmp_path / "no").exists()
