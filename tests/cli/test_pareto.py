"""--pareto: whole bundles along the curve; --precision auto --max-drop: the cheapest that is good enough."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qcompiler import frontier
from qcompiler.bundle import Bundle
from qcompiler.cli import main

# Quick, since the figures do not matter here: no solver of weights, a score without probes.
RECIPE = """
[recipe]
base = "minmax"
[recipe.after]
decide = ["assign_bits"]
[pass.assign_bits]
score = "local"
compare = []
final_solver = false
"""
DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    with np.load(DIGITS / "digits.npz") as stored:
        np.savez(folder / "calib.npz", x=stored["x_calib"][:48])
        np.savez(folder / "test.npz", x=stored["x_test"][:120], y=stored["y_test"][:120])
    (folder / "quick.toml").write_text(RECIPE)
    return {name.partition(".")[0]: folder / name for name in ("calib.npz", "test.npz", "quick.toml")}


def arguments(data: dict[str, Path], output: Path, *more: str) -> list[str]:
    model = [str(DIGITS / "cnn.onnx"), "--dim", "N=1", "--calib", str(data["calib"]), "--recipe", str(data["quick"])]
    return [*model, "-o", str(output), "--json", *more]


def test_a_bundle_a_point(data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "curve"
    more = ["--pareto", "3", "--eval-data", str(data["test"]), "--labels", "y"]
    assert main(arguments(data, folder, *more)) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "pareto.json").read_text())["rows"] == found["rows"]
    sizes = [row["cost"]["size"] for row in found["rows"]]
    assert len(sizes) == 3 and sizes == sorted(set(sizes)) and found["cost"] == "size"
    scores = [row["score"] for row in found["rows"]]
    assert scores == sorted(scores, reverse=True) and all("drop" in row for row in found["rows"])
    for row in found["rows"]:
        bundle = Bundle.open(folder / row["bundle"])
        report = bundle.report()
        assert report["verification"]["bit_exact"]
        assert report["size"]["weight_bytes"] == row["cost"]["size"] == report["facts"]["assign_bits"]["total"]["size"]
        assert row["bundle"] in (folder / "pareto.html").read_text()
    # Each of them holds the scores, so other budgets need no data.
    assert main(["resolve", str(folder / found["rows"][0]["bundle"]), "--budget", "size=0.5x"]) == 0
    assert main(arguments(data, folder, *more)) == 2
    assert "exists already" in json.loads(capsys.readouterr().out.rpartition("\n{")[2].join(["{", ""]))["error"]


def test_the_curve_is_over_what_the_target_costs(
    data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--target", "c", "--pareto", "2", "--budget", "flash=1x", "--budget", "ram=1x"]
    assert main(arguments(data, tmp_path / "curve", *more)) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    # Weights are packed, so fewer bits take less flash: of what was built, too.
    assert len(rows) == 2 and rows[0]["cost"]["flash"] < rows[1]["cost"]["flash"]
    assert rows[0]["fit"]["flash_bytes"] < rows[1]["fit"]["flash_bytes"]


def test_the_cheapest_that_is_good_enough(
    data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontier, "SEARCHED", 4)
    goal = ["--precision", "auto", "--eval-data", str(data["test"]), "--labels", "y", "--max-drop"]
    sizes = {}
    for drop in ("30", "1"):
        assert main(arguments(data, tmp_path / drop, *goal, drop)) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["goals"][0]["met"] and found["goals"][0]["value"] <= float(drop)
        sizes[drop] = found["size"]["weight_bytes"]
    assert sizes["30"] < sizes["1"]
    # Nothing is better than float by 50 points: the best there is, and exit code 4.
    assert main(arguments(data, tmp_path / "never", *goal, "-50")) == 4
    found = json.loads(capsys.readouterr().out)
    assert not found["goals"][0]["met"] and found["size"]["weight_bytes"] >= sizes["1"]
    assert Bundle.open(tmp_path / "never").report()["verification"]["bit_exact"]


@pytest.mark.parametrize(
    ("more", "told"),
    [(["--pareto", "1"], "no curve"), (["--pareto", "3", "--min-sqnr", "9"], "goals are for one bundle"),
     (["--pareto", "3", "--budget", "size=1"], "needs at least"),
     (["--precision", "auto"], "what is to be kept to")],
)  # fmt: skip
def test_refusals(
    more: list[str], told: str, data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(data, tmp_path / "no", *more)) in (2, 3)
    assert told in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "no").exists()
