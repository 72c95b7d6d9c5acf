"""Bundles of the c target, from the command line's functions down to their bits."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import Bundle
from qcompiler.driver import bundle_runner, compile
from qcompiler.errors import BundleError, QCompilerError, RecipeError, UnsupportedError
from qcompiler.formats import QuantParams, parse_format
from qcompiler.quantizer import quantize
from qcompiler.targets.c.host import STRICT, HostSession, compile_sources, host_compiler
from tests.conftest import Digits

OPTIONS = {"prefix": "digits", "arena": "caller"}


@pytest.fixture(scope="module")
def bundle(digits: Digits, digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("c") / "digits.c"
    return compile(digits.cnn, "c", digits_data / "calib.npz", output=path, dims={"N": 1}, target_options=OPTIONS)


def test_firmware_and_desk_give_the_same_bits(
    bundle: Bundle, digits: Digits, digits_data: Path, tmp_path: Path
) -> None:
    cpu = compile(
        digits.cnn, "cpu", digits_data / "calib.npz", output=tmp_path / "cpu", dims={"N": 1}, arithmetic="fixed"
    )
    assert bundle.manifest["arithmetic"] == "fixed"
    assert (cpu.path / "integer.onnx").read_bytes() == (bundle.path / "integer.onnx").read_bytes()
    runs = [bundle_runner(bundle), bundle_runner(cpu)]
    for x in digits.data["x_test"][:40]:
        firmware, desk = (run({"x": x[None]})[0] for run in runs)
        assert firmware.tobytes() == desk.tobytes()


def test_the_report_says_that_it_is_bit_exact(bundle: Bundle) -> None:
    report = bundle.report()
    assert report["verification"]["bit_exact"]
    assert report["quality"]["top1_agreement"] > 0.95


def test_two_compiles_give_the_same_bytes(bundle: Bundle, digits: Digits, digits_data: Path, tmp_path: Path) -> None:
    again = compile(
        digits.cnn, "c", digits_data / "calib.npz", output=tmp_path / "c", dims={"N": 1}, target_options=OPTIONS
    )
    assert again.manifest == bundle.manifest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prefix", "Big Model"),
        ("prefix", "9lives"),
        ("arena", "heap"),
        ("flash", "much"),
        ("object", "z80"),
        ("cpu", "x"),
    ],
)
def test_options_are_checked_before_any_work(name: str, value: str, digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=name):
        compile(digits.cnn, "c", "no such file.npz", output=tmp_path / "c", target_options={name: value})
    assert not (tmp_path / "c").exists()


def test_float_requantization_is_refused(digits: Digits, digits_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no float requantization"):
        compile(digits.cnn, "c", digits_data / "calib.npz", output=tmp_path / "c", arithmetic="float")


def test_without_a_compiler_it_compiles_and_says_why_it_cannot_verify(
    digits: Digits, digits_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    bundle = compile(digits.cnn, "c", digits_data / "calib.npz", output=tmp_path / "c", dims={"N": 1})
    assert bundle.report()["verification"] is None
    with pytest.raises(UnsupportedError, match="no C compiler was found") as error:
        bundle_runner(bundle)
    assert error.value.exit_code == 3


def test_a_damaged_source_is_named(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    (copy / "src" / "digits.c").write_text("int broken(")
    with pytest.raises(BundleError, match=r"digits\.c"):
        Bundle.open(copy)
    with pytest.raises(QCompilerError, match="does not compile"):
        bundle_runner(Bundle(copy, bundle.manifest))


def test_two_models_live_in_one_image(bundle: Bundle, digits: Digits, digits_data: Path, tmp_path: Path) -> None:
    """Prefixes keep every symbol apart: linked into one library, both still give their own answers."""
    other = compile(
        digits.cnn, "c", digits_data / "calib.npz", output=tmp_path / "small", dims={"N": 1},
        options={"precision": "w4a8"}, target_options={"prefix": "small", "arena": "caller"},
    )  # fmt: skip
    sources = [str(b.path / "src" / name) for b in (bundle, other) for name in b.manifest["c"]["files"]]
    includes = [f"-I{b.path / 'src'}" for b in (bundle, other)]
    command = [host_compiler(), "-std=c99", "-O1", "-shared", "-fPIC", *includes, "-o", str(tmp_path / "both.so")]
    subprocess.run([*command, *sources], check=True)
    both = ctypes.CDLL(str(tmp_path / "both.so"))
    for b in (bundle, other):
        (x,), (y,) = b.manifest["inputs"], b.manifest["outputs"]
        codes = np.random.default_rng(1).integers(0, 256, x["shape"]).astype(parse_format(x["format"]).storage)
        answer = np.zeros(y["shape"], parse_format(y["format"]).storage)
        arena = np.zeros(b.manifest["size"]["arena_bytes"] // 8 + 1, np.int64)
        run = getattr(both, f"qc_{b.manifest['c']['prefix']}_run")
        run(*(ctypes.c_void_p(array.ctypes.data) for array in (arena, codes, answer)))
        np.testing.assert_array_equal(answer, HostSession(b.path, b.manifest).run_codes([codes])[0])


def test_the_float_wrappers_quantize_as_the_definition_does(bundle: Bundle, digits: Digits, tmp_path: Path) -> None:
    library = tmp_path / "wrappers.so"
    subprocess.run(
        [host_compiler(), "-std=c99", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wconversion", "-Werror",
         "-o", str(library), str(bundle.path / "src" / "digits_float.c"), "-lm"],
        check=True,
    )  # fmt: skip
    spec = bundle.manifest["inputs"][0]
    params = QuantParams(parse_format(spec["format"]), np.float32(spec["scale"]), np.int64(spec["zero_point"]))
    x = np.random.default_rng(0).normal(0, 400 * spec["scale"], spec["shape"]).astype(np.float32)
    x.ravel()[:4] = [np.inf, -np.inf, 1e30, (0.5 + 1) * spec["scale"]]
    got = np.zeros(spec["shape"], params.format.storage)
    wrapper = ctypes.CDLL(str(library)).qc_digits_quantize_input0
    wrapper(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(got.ctypes.data))
    np.testing.assert_array_equal(got, quantize(x, params))


def test_constants_go_where_the_build_says(bundle: Bundle, tmp_path: Path) -> None:
    """A section for external flash holds every weight."""
    place = '__attribute__((section("extflash")))'
    flags = (*STRICT, "-O2", f"-DQC_DIGITS_CONSTANTS={place}")
    for name in ("plain.so", "placed.so"):
        files = [f"src/{file}" for file in bundle.manifest["c"]["files"]]
        compile_sources(bundle.path, files, tmp_path / name, host_compiler(), flags if name == "placed.so" else STRICT)
    sections = subprocess.run(
        ["objdump", "-h", str(tmp_path / "placed.so")], capture_output=True, text=True, check=True
    ).stdout
    (size,) = (int(line.split()[2], 16) for line in sections.splitlines() if " extflash " in line)
    weights = bundle.manifest["size"]["weight_bytes"]
    assert weights <= size <= 1.1 * weights  # the rest aligns arrays
    assert (
        " extflash "
        not in subprocess.run(
            ["objdump", "-h", str(tmp_path / "plain.so")], capture_output=True, text=True, check=True
        ).stdout
    )
