"""Cost models of the targets: true of built bundles, nodes add up to the whole, tables say what is wrong."""

from __future__ import annotations

import dataclasses
import json
from math import exp, log
from pathlib import Path

import numpy as np
import pytest

from qcompiler.cli import main
from qcompiler.cost import Cost, Widths, Work, additive
from qcompiler.driver import Result, quantize
from qcompiler.errors import QCompilerError, RecipeError, UnsupportedError
from qcompiler.targets import get_target
from qcompiler.targets.c.build import build as build_c
from qcompiler.targets.c.cost import CCost
from qcompiler.targets.cpu.build import build
from qcompiler.targets.cpu.calibrate import CLASSES, calibrate, works
from qcompiler.targets.cpu.cost import SHIPPED, CpuCost, cost_model, own_table
from qcompiler.targets.cpu.isa import LEVELS
from qcompiler.targets.cpu.loads import Load, load_of
from qcompiler.targets.cpu.locality import BLOCK, far_bytes
from qcompiler.targets.cpu.table import Surface, Table
from qcompiler.targets.shared.lower import lower
from qcompiler.targets.shared.pack import SLACK
from qcompiler.targets.shared.sample import SAMPLED, Sample
from tests.conftest import Digits

LEVEL = "x86-64-v4-vnni"
CONV = Work(
    "conv", "Conv", ((1, 16, 8, 8),), (1, 24, 8, 8), (24, 16, 3, 3), (("pads", (1, 1, 1, 1)),), 24 * 144 * 64
)
DENSE = Work("dense", "MatMul", ((1, 64),), (1, 10), (64, 10), (), 640)


def quiet(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def results(digits: Digits) -> dict[tuple[str, str], Result]:
    """The digits CNN by precision and arithmetic."""
    data = {"x": digits.data["x_calib"][:16]}
    return {
        (precision, arithmetic): quantize(
            digits.cnn, data, "default", dims={"N": 1}, arithmetic=arithmetic, options={"precision": precision}
        )
        for precision, arithmetic in (("w8a8", "float"), ("w8a16", "float"), ("w8a8", "fixed"), ("w4a8", "fixed"))
    }


@pytest.fixture(scope="module")
def shipped() -> CpuCost:
    return CpuCost(Table.read(SHIPPED / f"{LEVEL}-1.json"))


# -- cpu -------------------------------------------------------------------------------------------------------------


def test_cpu_bytes_are_those_of_the_bundle(results, shipped) -> None:
    result = results["w8a8", "float"]
    whole, sizes = shipped.whole(result.integer_graph), build(result.integer_graph, {"cpu": LEVEL}, quiet).sizes
    assert (whole.weight_bytes, whole.peak_bytes) == (sizes["weight_bytes"], sizes["arena_bytes"])
    assert whole.resources["unpriced"] == 0


def test_cpu_nodes_add_up_to_the_whole(results, shipped) -> None:
    result = results["w8a8", "float"]
    whole = shipped.whole(result.integer_graph)
    total = additive(shipped, result.context.float_graph, result.context.assignment)
    assert total.weight_bytes + SLACK == whole.weight_bytes
    kernels = whole.latency - shipped.table.inference_ns / 1e6
    assert total.latency == pytest.approx(kernels, rel=0.1)
    assert sum(shipped.nodes(result.integer_graph).values()) == pytest.approx(kernels)


def test_wide_activations_cost_more_everywhere(results, shipped) -> None:
    for work in (CONV, DENSE):
        narrow, wide = (shipped.cost(work, Widths(8, (bits,), bits)) for bits in (8, 16))
        assert wide.latency > narrow.latency and wide.peak_bytes > narrow.peak_bytes
        assert wide.weight_bytes >= narrow.weight_bytes
    pair = [shipped.whole(results[p, "float"].integer_graph) for p in ("w8a8", "w8a16")]
    assert pair[1].latency > pair[0].latency and pair[1].peak_bytes > pair[0].peak_bytes


def test_fewer_weight_bits_are_faster_without_vnni() -> None:
    model = CpuCost(Table.read(SHIPPED / "x86-64-v3-1.json"))
    big = Work("conv", "Conv", ((1, 64, 16, 16),), (1, 64, 16, 16), (64, 64, 3, 3), (("pads", (1, 1, 1, 1)),), 9437184)
    times = {bits: model.cost(big, Widths(bits, (8,), 8)).latency for bits in (8, 7, 6, 5, 4)}
    assert times[8] > times[7] and times[8] > times[4], times


@pytest.mark.parametrize("target", ["cpu", "c"])
def test_more_weight_bits_never_take_fewer_bytes(shipped, target: str) -> None:
    for model in (shipped,) if target == "cpu" else (CCost(), CCost(packed=True)):
        for work in (CONV, DENSE):
            sizes = [model.cost(work, Widths(bits, (8,), 8)).weight_bytes for bits in range(2, 9)]
            assert sizes == sorted(sizes), sizes


def test_every_sampled_kind_has_a_price(shipped) -> None:
    x = (1, 16, 6, 6)
    window = (("kernel_shape", (2, 2)), ("strides", (2, 2)))
    works = [
        CONV, DENSE, Work("matmul", "MatMul", ((2, 9, 8), (2, 8, 9)), (2, 9, 9)), Work("add", "Add", (x, x), x),
        Work("mul", "Mul", (x, (1, 16, 1, 1)), x), Work("activation", "Sigmoid", (x,), x),
        Work("softmax", "Softmax", ((4, 30),), (4, 30)), Work("norm", "LayerNormalization", ((4, 30),), (4, 30)),
        Work("pool", "AveragePool", (x,), (1, 16, 3, 3), (), window),
        Work("mean", "GlobalAveragePool", (x,), (1, 16, 1, 1)), Work("move", "Concat", (x,), x),
    ]  # fmt: skip
    assert {work.kind for work in works} == set(SAMPLED)
    for work in works:
        for bits in (4, 8, 16):
            widths = Widths(8 if work.weight else None, (bits,) * len(work.inputs), bits)
            assert shipped.cost(work, widths).latency > 0, work
            assert CCost().cost(work, widths).resources["instructions"] >= 0
    free, other = Work("free", "Reshape", (), x), Work("other", "Mystery", (), x)
    assert shipped.cost(free, Widths(None, (), 8)) == Cost()
    assert shipped.cost(other, Widths(None, (), 8)).resources == {"unpriced": 1}
    with pytest.raises(UnsupportedError, match="kind `other` \\(Mystery\\)"):
        Sample().add(other, Widths(None, (), 8))


# -- tables ----------------------------------------------------------------------------------------------------------


def test_a_surface_follows_a_power_law_between_samples_and_no_rate_is_better_than_theirs() -> None:
    grid = [(m, p, 0.3 * m**0.9 * p) for m in (16, 64, 256) for p in (1, 16, 256, 4096)]
    surface = Surface(np.array(grid, float))
    for m, p in ((16, 16), (100, 50), (32, 1000), (256, 20000)):
        assert surface.at((m, p)) == pytest.approx(0.3 * m**0.9 * p, rel=0.03)
    assert surface.at((1024, 4096)) == pytest.approx(4 * 0.3 * 256**0.9 * 4096, rel=0.01)


def test_a_surface_bends_where_its_samples_do() -> None:
    grid = [(n, 50 + 0.5 * n) for n in (1, 4, 16, 64, 256, 1024, 4096, 16384)]
    surface = Surface(np.array(grid, float))
    for n in (2, 10, 100, 700, 8000):
        assert log(surface.at((n,)) / (50 + 0.5 * n)) == pytest.approx(0, abs=0.1)
    assert surface.at((1,)) < surface.at((1 << 20,))


def test_one_sample_scales_with_size() -> None:
    surface = Surface(np.array([[8.0, 4.0, 100.0]]))
    assert surface.at((8, 4)) == pytest.approx(100, rel=0.01)
    assert 150 < surface.at((16, 4)) <= 200.5


def stored(**changes: object) -> str:
    document = {
        "schema": 1, "target": "cpu", "device": "d", "date": "2026-01-01", "level": LEVEL, "threads": 1,
        "inference_ns": 5.0, "kernels": {"add/1": [[2, 64, 10.0]]},
    }  # fmt: skip
    return json.dumps({**document, **changes})


@pytest.mark.parametrize(
    "text",
    ["{", "[]", stored(schema=9), stored(target="c"), stored(kernels={"add/1": [[1, 2], [1, 2, 3]]}),
     stored(kernels={"add/1": [[2, 64, -1.0]]}), stored(threads="many"), '{"schema": 1, "target": "cpu"}'],
)  # fmt: skip
def test_a_damaged_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"t\.json: it is no table.*calibrate-costs"):
        Table.read(path)


def test_a_missing_table_and_an_unknown_kernel(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no table of kernel times"):
        cost_model(table=tmp_path / "none.json")
    path = tmp_path / "t.json"
    path.write_text(stored())
    table = Table.read(path)
    assert table.nanoseconds(Load("add/1", (2, 64), 3)) == pytest.approx(30, rel=0.05)
    with pytest.raises(UnsupportedError, match="no kernel `softmax/1` \\(node `sm`\\).*calibrate-costs"):
        table.nanoseconds(Load("softmax/1", (2, 64)), "sm")
    with pytest.raises(QCompilerError, match="another rank"):
        table.nanoseconds(Load("add/1", (2,)))
    with pytest.raises(UnsupportedError, match="no kernel"):
        CpuCost(table).cost(CONV, Widths(8, (8,), 8))


def test_a_table_is_the_same_after_writing_and_reading(tmp_path: Path, shipped) -> None:
    path = tmp_path / "t.json"
    path.write_text(shipped.table.text())
    assert Table.read(path).document() == shipped.table.document()
    assert path.read_text() == (SHIPPED / f"{LEVEL}-1.json").read_text()


def test_the_own_table_is_used_before_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path))
    model, note = cost_model(LEVEL)
    assert "another machine" in note and model.table.device in note
    path = own_table(LEVEL, 1)
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_text(stored())
    model, note = cost_model(LEVEL)
    assert model.table.device == "d" and "this machine's table" in note
    monkeypatch.setattr("qcompiler.targets.cpu.cost.SHIPPED", tmp_path)
    with pytest.raises(QCompilerError, match="no table of kernel times for x86-64-v3-vnni"):
        cost_model("x86-64-v3-vnni")


def test_codes_of_two_widths_are_priced_by_an_old_tables_wider_ones(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(stored(kernels={"softmax/2": [[2, 64, 100.0]], "softmax/1": [[2, 64, 10.0]]}))
    table = Table.read(path)
    assert table.nanoseconds(Load("softmax/2-1", (2, 64))) == pytest.approx(100, rel=0.05)
    assert table.nanoseconds(Load("softmax/1-1/strided", (2, 64))) == pytest.approx(10, rel=0.05)


def test_operands_beyond_the_near_cache_cost_more(results, shipped) -> None:
    """The digits CNN: with room for all of it nothing is far, without any room all operands are."""
    graph = results["w8a8", "float"].integer_graph
    program = lower(graph, LEVELS[LEVEL])
    assert far_bytes(program, 1 << 30) == far_bytes(program, 0) == [0] * len(program.calls)
    weights = len(program.constants.blob())
    some, all_of_it = sum(far_bytes(program, weights)), sum(far_bytes(program, BLOCK))
    assert 0 < some <= all_of_it and all_of_it >= weights - BLOCK
    near, far = (
        CpuCost(dataclasses.replace(shipped.table, near_bytes=size, far_ns=1.0)).whole(graph).latency
        for size in (1 << 30, BLOCK)
    )
    assert far - near == pytest.approx(all_of_it / 1e6)


def test_a_transpose_has_to_move_elements() -> None:
    work = Work("move", "Transpose", ((1, 8, 4, 16),), (1, 4, 8, 16), (), (("perm", (0, 2, 1, 3)),))
    sample = Sample()
    sample.add(work, Widths(None, (8,), 8))
    loads = [load_of(call, LEVELS[LEVEL]) for call in lower(sample.graph, LEVELS[LEVEL]).calls]
    assert Load("convert/1", (32, 16)) in loads


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_samples_of_every_class_lower_and_are_the_same_each_time(level: str) -> None:
    drawn = works(level, tuple(CLASSES), 0.05)
    assert drawn == works(level, tuple(CLASSES), 0.05)
    assert {name for name, *_ in drawn} == set(CLASSES)
    sample = Sample()
    for _, work, widths, _ in drawn[::5]:
        if work.macs < 2_000_000:
            sample.add(work, widths)
    program = lower(sample.graph, LEVELS[level])
    assert all(min(load_of(call, LEVELS[level]).size) >= 1 for call in program.calls)


def test_calibration_of_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "own.json"
    command = ["calibrate-costs", "--cpu", "x86-64-v3", "--classes", "softmax", "--scale", "0.2", "-o", str(path)]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["table"] == str(path) and told["kernels"]["softmax/2-1"] >= 2
    model, note = get_target("cpu").cost({"table": str(path)})
    assert str(path) in note and model.table.level == "x86-64-v3"
    short, long = (Work("softmax", "Softmax", ((4, n),), (4, n)) for n in (10, 700))
    assert 0 < model.cost(short, Widths(None, (8,), 8)).latency < model.cost(long, Widths(None, (8,), 8)).latency
    with pytest.raises(UnsupportedError, match="no kernel"):
        model.cost(DENSE, Widths(8, (8,), 8))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--classes", "dense"], "not kept"), (["--target", "c"], "need no measurement"), (["--scale", "0"], "no share"),
     (["--classes", "fish", "-o", "x.json"], "no class"), (["--cpu", "z80"], "no instruction set"),
     (["--threads", "-1"], "threads"), (["-o", "/nowhere/at/all.json"], "no such folder")],
)  # fmt: skip
def test_calibration_refuses(options: list[str], message: str, capsys) -> None:
    assert main(["calibrate-costs", *options]) == 2
    assert message in capsys.readouterr().err


def test_calibrate_checks_its_classes() -> None:
    with pytest.raises(RecipeError, match="`x` is no class.*conv3x3"):
        calibrate(LEVEL, 1, ["x"], device="d")


# -- c ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "packed"), [("w8a8", False), ("w4a8", True)])
def test_c_is_what_build_says(results, precision: str, packed: bool) -> None:
    graph = results[precision, "fixed"].integer_graph
    model, note = get_target("c").cost({"pack": packed})
    whole, quick = model.whole(graph), model.whole(graph, code=False)
    lowered = build_c(graph, {"pack": packed}, quiet)
    sizes = lowered.sizes
    assert (whole.weight_bytes, whole.peak_bytes) == (sizes["weight_bytes"], sizes["arena_bytes"])
    assert whole.resources["code_bytes"] == sizes["code_bytes"]
    assert whole.resources["flash_bytes"] == sizes["weight_bytes"] + sizes["code_bytes"]
    assert whole.resources["ram_bytes"] == sizes["arena_bytes"] + sizes["stack_bytes"]
    assert whole.resources["instructions"] == lowered.facts["fit"]["instructions"]
    assert (quick.weight_bytes, quick.peak_bytes) == (whole.weight_bytes, whole.peak_bytes)
    assert "estimated" in note


@pytest.mark.parametrize(("precision", "packed"), [("w8a8", False), ("w4a8", False), ("w4a8", True)])
def test_c_nodes_add_up_to_the_whole(results, precision: str, packed: bool) -> None:
    result, model = results[precision, "fixed"], CCost(packed)
    whole = model.whole(result.integer_graph, code=False)
    total = additive(model, result.context.float_graph, result.context.assignment)
    assert total.weight_bytes == pytest.approx(whole.weight_bytes, rel=0.02)
    assert total.resources["instructions"] == pytest.approx(whole.resources["instructions"], rel=0.03)


def test_packing_saves_flash_only_where_it_packs() -> None:
    plain, packed = CCost(), CCost(packed=True)
    big = Work("conv", "Conv", ((1, 32, 8, 8),), (1, 32, 8, 8), (32, 32, 3, 3), (("pads", (1, 1, 1, 1)),), 589824)
    for bits in (2, 3, 4, 5, 8):
        before, after = (model.cost(big, Widths(bits, (8,), 8)).weight_bytes for model in (plain, packed))
        stored_bits = bits if bits < 5 else 8
        assert before - after == pytest.approx(9216 * (8 - stored_bits) / 8, abs=300 if bits < 5 else 0)


def test_exponential_of_a_constant_load_is_the_floor() -> None:
    tiny = Table("d", "2026-01-01", LEVEL, 1, 1.0, {"fill/1": [[1, 1, exp(-3)]]})
    assert tiny.nanoseconds(Load("fill/1", (1, 1))) == 2.0
