"""Whether a model fits: sizes against a linked image, verdicts against limits, advice that is true."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import Bundle
from qcompiler.driver import compile, quantize
from qcompiler.errors import RecipeError
from qcompiler.graph.model import Graph
from qcompiler.report import render_html
from qcompiler.targets.c import footprint
from qcompiler.targets.c.build import build
from qcompiler.targets.c.fit import TIGHT, judge, parse_size
from qcompiler.targets.c.footprint import Footprint, Rates
from qcompiler.targets.c.machine import SCALAR
from qcompiler.targets.shared.boundary import strip_boundary
from qcompiler.targets.shared.lower import lower
from qcompiler.targets.shared.program import Program
from tests.conftest import Digits
from tests.mcu.boards import BOARDS, linked
from tests.quantized import float_graph

M4 = BOARDS["m4"]


@pytest.fixture(scope="module")
def bundle(digits: Digits, digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("fit") / "digits.c"
    return compile(digits.cnn, "c", digits_data / "calib.npz", output=path, dims={"N": 1})


@pytest.fixture(scope="module")
def program(bundle: Bundle) -> Program:
    return lower(strip_boundary(bundle.integer_graph()), SCALAR)


@pytest.mark.parametrize(
    ("text", "size"), [("256KiB", 262144), ("64kb", 64000), ("1.5 MiB", 1572864), ("65536", 65536), ("8K", 8192)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text, "--flash") == size


@pytest.mark.parametrize("text", ["", "much", "-4KiB", "0", "3 parsecs", "KiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--ram"):
        parse_size(text, "--ram")


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.5, "FITS"), (TIGHT - 0.01, "FITS"), (0.95, "TIGHT"), (1.0, "TIGHT"), (1.01, "TOO BIG")]
)
def test_the_worse_of_flash_and_ram_decides(program: Program, share: float, verdict: str) -> None:
    found = Footprint(code=2000, constants=8000, arena=900, stack=100, how="measured")
    for limits in ({"flash": round(10000 / share)}, {"flash": 10**6, "ram": round(1000 / share)}):
        fit = judge(found, program, limits)
        assert fit["verdict"] == verdict
        assert bool(fit["advice"]) == (verdict == "TOO BIG")
    assert judge(found, program, {})["verdict"] is None


def test_advice_names_the_largest_layer_and_the_peak(program: Program) -> None:
    found = Footprint(code=3000, constants=22304, arena=7168, stack=376, how="measured")
    flash, ram = judge(found, program, {"flash": 24000, "ram": 6000})["advice"]
    sizes = {node.name: program.graph.const(node.inputs[1]).size for node in program.graph.nodes("MatMul", "Conv")}
    largest = max(sizes, key=lambda name: sizes[name])
    assert f"`{largest}` is the largest layer" in flash and "It fits with weights of 4 bits" in flash
    assert "external flash (`--weights bin`), beside 2.9 KiB of code" in flash
    assert "RAM: 1.5 KiB too much" in ram and "fits with 22% fewer channels there, or pictures 88% as wide" in ram
    (code,) = judge(found, program, {"flash": 2000})["advice"]
    assert "the code alone" in code


def sizes(graph: Graph, **options: object) -> dict:
    """The report's entry `fit` of a build."""
    return build(graph, {"prefix": "net", "vectors": "1", **options}, lambda stage, done, total: None).facts["fit"]


def test_advice_to_use_fewer_bits_is_true(digits: Digits, digits_data: Path) -> None:
    """Whoever follows it fits: 8 bits -> 4 bits packed, 4 bits -> packed; a limit below that asks for less weights."""
    with np.load(digits_data / "calib.npz") as stored:
        samples = {"x": stored["x"]}
    wide, narrow = (
        quantize(digits.cnn, samples, dims={"N": 1}, arithmetic="fixed", options={"precision": precision}).integer_graph
        for precision in ("w8a8", "w4a8")
    )
    assert wide is not None and narrow is not None
    goal = sizes(narrow, pack=True)["flash_bytes"] + 600
    for graph, option in (
        (wide, "It fits with weights of 4 bits (`--precision w4a8 --pack`)"),
        (narrow, "with `--pack`"),
    ):
        fit = sizes(graph, flash=str(goal))
        assert fit["verdict"] == "TOO BIG" and option in fit["advice"][0]
    assert sizes(narrow, pack=True, flash=str(goal))["verdict"] != "TOO BIG"
    (least,) = sizes(narrow, pack=True, flash=str(goal - 9000))["advice"]
    assert "2 bits" in least and "less weights" in least and "--pack`, saving" not in least


def test_advice_to_go_in_bands_is_true() -> None:
    x = np.random.default_rng(2).standard_normal((8, 3, 32, 32)).astype(np.float32)
    weights = {f"w{i}": np.random.default_rng(i).standard_normal(s).astype(np.float32) for i, s in enumerate(
        [(48, 3, 1, 1), (48, 1, 3, 3), (8, 48, 1, 1)])}  # fmt: skip
    body = "a = Conv(x, w0) b = Relu(a) c = Conv<group = 48, pads = [1, 1, 1, 1]>(b, w1) d = Relu(c) y = Conv(d, w2)"
    model = float_graph("float[1,3,32,32] x => float[1,8,32,32] y", body, **weights).model
    graph = quantize(model, {"x": x}, arithmetic="fixed").integer_graph
    assert graph is not None
    small = sizes(graph, optimize_for="memory")["ram_bytes"]
    fit = sizes(graph, ram=str(small + 200))
    assert fit["verdict"] == "TOO BIG" and "It fits with `--optimize-for memory`" in fit["advice"][0]
    assert sizes(graph, ram=str(small + 200), optimize_for="memory")["verdict"] == "TIGHT"
    (both,) = sizes(graph, ram=str(small - 1000))["advice"]
    assert "`--optimize-for memory` saves" in both and "fewer channels" in both


def test_measured_sizes_are_those_of_a_linked_image(bundle: Bundle, tmp_path: Path) -> None:
    """An image with the model less one without it, and the stack that the emulated board painted over."""
    if reason := M4.missing():
        pytest.skip(reason)
    facts, size = bundle.manifest["c"], bundle.manifest["size"]
    found = footprint.measure(bundle.path, facts["files"], facts["prefix"], size["arena_bytes"], size["weight_bytes"])
    assert found is not None and found.how == "measured"
    image = linked(M4, bundle.path, facts, tmp_path)
    assert found.flash == pytest.approx(image.flash, rel=0.03)
    assert found.arena == pytest.approx(image.variables, rel=0.03)
    assert found.ram == pytest.approx(image.variables + image.stack, rel=0.03)
    assert image.stack <= found.stack <= image.stack + 16  # the last words of a frame may stay as they were


def test_the_estimate_is_close_to_the_measurement(bundle: Bundle) -> None:
    facts, size = bundle.manifest["c"], bundle.manifest["size"]
    found = footprint.measure(bundle.path, facts["files"], facts["prefix"], size["arena_bytes"], size["weight_bytes"])
    if found is None:
        pytest.skip(f"no {footprint.COMPILER}")
    guess = size["weight_bytes"] + size["code_bytes"], size["arena_bytes"] + size["stack_bytes"]
    assert guess == pytest.approx((found.flash, found.ram), rel=0.03)


def test_without_the_cross_compiler_the_report_gives_the_estimate(
    digits: Digits, digits_data: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "COMPILER", "no-such-gcc")
    again = compile(
        digits.cnn, "c", digits_data / "calib.npz", output=tmp_path / "c", dims={"N": 1},
        target_options={"flash": "24KiB", "ram": "64KiB"},
    )  # fmt: skip
    assert again.manifest == bundle.manifest, "the bundle must not depend on the tools of a machine"
    fit = again.report()["fit"]
    assert fit["how"] == "estimated" and fit["verdict"] == "TOO BIG" and len(fit["advice"]) == 1
    assert fit["flash_bytes"] == again.manifest["size"]["weight_bytes"] + again.manifest["size"]["code_bytes"]
    page = render_html(again.report())
    assert "Firmware: TOO BIG" in page and "largest layer" in page


def test_a_model_that_is_too_big_is_written_and_exits_with_4(
    digits: Digits, digits_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from qcompiler.cli import main

    arguments = [str(digits.cnn), "--target", "c", "-o", str(tmp_path / "c"), "--dim", "N=1", "--quiet", "--json"]
    assert main([*arguments, "--calib", str(digits_data / "calib.npz"), "--ram", "4KiB", "--flash", "1MiB"]) == 4
    fit = json.loads(capsys.readouterr().out)["fit"]
    assert fit["verdict"] == "TOO BIG" and fit["limits"] == {"flash": 1 << 20, "ram": 4096}
    assert (tmp_path / "c" / "src" / "model.c").is_file()


def test_stack_is_that_of_the_deepest_chain_of_calls(tmp_path: Path) -> None:
    """run -> kernel -> helper, and a kernel beside it with a larger frame that calls nobody."""
    if shutil.which(footprint.COMPILER) is None:
        pytest.skip(f"no {footprint.COMPILER}")
    (tmp_path / "src").mkdir()
    hold = "__attribute__((noinline)) {0} void {1}(int n) {{ volatile char a[{2}]; a[0] = (char)n; {3} }}\n"
    text = hold.format("static", "helper", 200, "(void)n;") + hold.format("static", "deep", 100, "helper(n + a[0]);")
    text += (
        hold.format("static", "wide", 250, "(void)n;") + "int qc_net_init(void); int qc_net_init(void) { return 0; }\n"
    )
    text += "void qc_net_run(int n); void qc_net_run(int n) { deep(n); wide(n); }\n"
    (tmp_path / "src" / "net.c").write_text(text)
    found = footprint.measure(tmp_path, ["net.c"], "net", 0, 0)
    assert found is not None and 300 <= found.stack < 360


def test_rates_ship_with_their_origin() -> None:
    rates = Rates.read()
    assert footprint.COMPILER in rates.origin and footprint.CORE in rates.origin
    counts = footprint.features("void f(void) { for (;;) { x = 1; } }")
    assert counts["loop"] == 1 and counts["statement"] == 3 and np.isfinite(list(rates.code.values())).all()


def test_a_compiler_that_fails_is_no_measurement(bundle: Bundle, tmp_path: Path) -> None:
    if shutil.which(footprint.COMPILER) is None:
        pytest.skip(f"no {footprint.COMPILER}")
    broken = tmp_path / "broken"
    shutil.copytree(bundle.path, broken)
    (broken / "src" / "model.c").write_text("int broken(")
    assert footprint.measure(broken, bundle.manifest["c"]["files"], "model", 0, 0) is None
