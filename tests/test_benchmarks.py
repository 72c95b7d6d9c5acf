"""Benchmarks: data is read as the assets' manifest says, and the verdicts are not decoration."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed (extra `bench`)")

from benchmarks import accuracy, c_models, determinism, fpga, fpga_mixed, latency, mcu  # noqa: E402
from benchmarks.assets import GOALS, ROOT, Case, cases  # noqa: E402
from qcompiler.errors import UnsupportedError  # noqa: E402


@pytest.fixture
def digits_case() -> Case:
    def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
        with np.load(ROOT / "examples" / "digits" / "digits.npz") as stored:
            return stored[f"x_{split}"], stored[f"y_{split}"]

    entry = {"metric": "top1", "arrays": arrays}
    return Case("digits", ROOT / "examples" / "digits" / "cnn.onnx", entry, ("loss", 0.005))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")))
def test_every_benchmark_can_be_imported(name: str) -> None:
    try:
        importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("benchmarks", "examples", "qcompiler"):
            raise
        pytest.skip(f"{error.name} is not installed")


def test_float_accuracy_is_that_of_the_manifest(assets: Path) -> None:
    from qcompiler.evaluate import predict, runner
    from qcompiler.graph.io import load_graph

    entries = {e["name"]: e for e in json.loads((assets / "manifest.json").read_text())["evaluations"]}
    for name in ("mlperf_tiny_kws", "mlperf_tiny_resnet8", "mlperf_tiny_ad"):
        case = Case(name, assets / entries[name]["model"], entries[name], GOALS[name])
        graph = load_graph(case.model, shapes=case.shapes)
        outputs = predict(runner(graph), ({case.input: case.test[i : i + 1]} for i in range(len(case.test))))
        assert case.score(outputs, outputs) == pytest.approx(entries[name]["value"], abs=entries[name]["tolerance"])


def test_cases_are_picked_by_part_of_the_name(assets: Path) -> None:
    assert [case.name for case in cases("kws,tiny_ad")] == ["mlperf_tiny_kws", "mlperf_tiny_ad"]


@pytest.mark.slow
def test_accuracy_row_measures_and_judges(digits_case: Case) -> None:
    found = accuracy.row(digits_case, "w8a8", "default", 100)
    assert found["samples"] == 100 and accuracy.state(found) == "ok" and found["same"] >= 0.99
    assert found["loss"] == pytest.approx(found["float"] - found["bundle"])
    impossible = Case(digits_case.name, digits_case.model, digits_case.entry, ("least", 1.01))
    assert accuracy.state(accuracy.row(impossible, "w8a8", "default", 20)) == "LOSS"
    assert accuracy.state({**found, "same": 0.99}).startswith("SAME")


def test_latency_table_relates_to_onnxruntime_float32() -> None:
    def row(runtime: str, precision: str, ms: float) -> dict[str, Any]:
        times = {"median_ms": ms, "min_ms": ms, "error_db": None}
        return {"network": "n", "threads": 1, "runtime": runtime, "precision": precision, **times}

    lines = latency.lines([row("qcompiler", "w8a8", 0.5), row("onnxruntime", "float32", 2.0)])
    assert [line[6] for line in lines] == ["4.00x", "1.00x"]


def test_determinism_sees_one_byte_and_a_missing_file_but_not_the_report(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        (folder / "lib").mkdir(parents=True)
        (folder / "lib" / "x.so").write_bytes(b"same")
        (folder / "report.json").write_text(folder.name)
    assert determinism.differences(first, second) == []
    (second / "lib" / "x.so").write_bytes(b"sane")
    (first / "manifest.json").write_text("{}")
    assert determinism.differences(first, second) == ["lib/x.so", "manifest.json"]


def test_instructions_are_divided_by_the_macs_of_their_kind() -> None:
    from tests.conformance.suite import build_suite

    graph = build_suite("fixed").graph
    nodes = {str(node.name): node for node in graph.nodes()}
    kinds = {name: mcu.kind_of(graph, node) for name, node in nodes.items()}
    assert set(kinds.values()) == {*mcu.KINDS, ""}
    work = {name: mcu.node_macs(graph, node) for name, node in nodes.items()}
    found = mcu.per_mac(graph, [(name, 3 * macs) for name, macs in work.items() if kinds[name] == "depthwise"])
    assert found["depthwise"] == 3.0 and found["3x3"] == 0.0
    assert 0 < found["all"] < 3


def test_a_network_as_firmware_is_measured_and_judged(digits_case: Case) -> None:
    def make() -> tuple[Any, list[dict[str, np.ndarray]]]:
        case = Case("digits cnn", digits_case.model, digits_case.entry)
        return c_models.case_of(case, 2)

    found = c_models.measure("digits cnn", make, "", 1)
    assert found["exact"] and not c_models.bad(found) and c_models.line(found)[1] == "yes, 2 samples"
    assert all(c_models.bad({**found, **change}) for change in ({"exact": False}, {"board": False}))

    def refuse() -> Any:
        raise UnsupportedError("no lowering", where="net.onnx")

    refused = c_models.measure("net", refuse, "", 1)
    assert c_models.line(refused)[1] == "refused" and not c_models.bad(refused)
    assert c_models.bad(c_models.measure("net", lambda: 1 / 0, "", 1))  # type: ignore[arg-type, return-value]


def test_lines_of_circuits_say_how_far_the_bill_is_off() -> None:
    bill = {"layers": [{"macs": 800, "pe": 2, "simd": 4}, {"macs": 100, "pe": 1, "simd": 1}, {"node": "wires"}]}
    assert fpga.lanes_busy(bill, 110) == pytest.approx(800 / 880)
    row = {
        "network": "n", "precision": "w4a8", "part": "ecp5-25k", "fps": 1000.0, "cycles_bill": 100, "cycles": 101,
        "bill": {"lut": 110, "ff": 90, "bram": 1, "dsp": 0}, "yosys": {"lut": 100, "ff": 100, "bram": 1, "dsp": 0},
        "lanes_busy": 0.984, "exact": False,
    }  # fmt: skip
    cells = dict(zip(fpga.HEADERS, fpga.line(row), strict=True))
    assert cells["LUTs"] == "110, 100 (+10.0%)" and cells["exact"] == "NO" and cells["lanes busy"] == "98.4%"


@pytest.mark.slow
def test_mixed_circuits_are_held_against_uniform_ones_of_their_size(digits_case: Case) -> None:
    options = {"fps": 5000, "dsp": 0, "part": "xc7z020"}
    rows = list(fpga_mixed.rows(digits_case, 0, options, ["int3", "e2m1", "int8"], ["e2m1"]))
    assert [row["bits"] for row in rows] == ["int3", "e2m1", "int8", "mixed", "mixed", "mixed"]
    assert all(row["lut"] <= row["budget"] for row in rows[3:])
    assert rows[3]["best_sqnr"] == rows[0]["sqnr"] and rows[0]["lut"] < rows[1]["lut"] < rows[2]["lut"]
    assert rows[3]["best_uniform"] == rows[0]["accuracy"]
    assert not fpga_mixed.held({**rows[3], "sqnr": rows[3]["best_sqnr"] - 0.1})
