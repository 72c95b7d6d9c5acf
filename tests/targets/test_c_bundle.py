"""What a firmware bundle promises beside its bits: interface, weights as bytes, project files, compilers."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler import __version__
from qcompiler.bundle import Bundle, manifest_of, write_bundle
from qcompiler.driver import quantize
from qcompiler.errors import RecipeError
from qcompiler.formats import parse_format
from qcompiler.graph.model import Graph
from qcompiler.targets.c.build import build, check
from qcompiler.targets.c.header import literal
from qcompiler.targets.c.host import STRICT, HostSession, compile_sources, host_compiler
from qcompiler.targets.c.mcus import MCUS
from qcompiler.targets.shared.codegen import comment
from tests.conftest import Digits

Make = Callable[..., Bundle]


@pytest.fixture(scope="module")
def graph(digits: Digits, digits_data: Path) -> Graph:
    with np.load(digits_data / "calib.npz") as stored:
        result = quantize(digits.cnn, {"x": stored["x"]}, dims={"N": 1}, arithmetic="fixed")
    assert result.integer_graph is not None
    return result.integer_graph


@pytest.fixture(scope="module")
def make(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Bundles of the digits CNN by their options, each compiled once."""
    known: dict[str, Bundle] = {}

    def made(**options: str) -> Bundle:
        key = str(sorted(options.items()))
        if key not in known:
            lowered = build(graph, {"prefix": "digits", "vectors": "2", **options}, lambda stage, done, total: None)
            manifest = manifest_of("c", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
            path = tmp_path_factory.mktemp("bundle") / "c"
            known[key] = write_bundle(path, lowered.files, manifest, overwrite=False)
        return known[key]

    return made


def need(tool: str) -> str:
    """The tool, or a skip that names it."""
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool}")
    return tool


def library(bundle: Bundle, folder: Path) -> ctypes.CDLL:
    files = [f"src/{name}" for name in bundle.manifest["c"]["files"]]
    compile_sources(bundle.path, files, folder / "model.so", host_compiler())
    return ctypes.CDLL(str(folder / "model.so"))


def codes_for(bundle: Bundle, seed: int) -> np.ndarray:
    (x,) = bundle.manifest["inputs"]
    fmt = parse_format(x["format"])
    return np.random.default_rng(seed).integers(fmt.min, fmt.max + 1, x["shape"]).astype(fmt.storage)


class Tensor(ctypes.Structure):
    """qc_tensor of qc_tensor.h."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("shape", ctypes.POINTER(ctypes.c_int32)), ("rank", ctypes.c_int32),
        ("size", ctypes.c_uint32), ("bits", ctypes.c_int32), ("is_signed", ctypes.c_bool),
        ("zero_point", ctypes.c_int32), ("scale", ctypes.c_float),
    )  # fmt: skip


def test_quantization_is_data_and_macros(make: Make, tmp_path: Path) -> None:
    bundle = make()
    model = library(bundle, tmp_path)
    header = (bundle.path / "src" / "digits.h").read_text()
    for stem, specs in (("input", bundle.manifest["inputs"]), ("output", bundle.manifest["outputs"])):
        found = (Tensor * len(specs)).in_dll(model, f"qc_digits_{stem}s")
        for i, (tensor, spec) in enumerate(zip(found, specs, strict=True)):
            fmt = parse_format(spec["format"])
            assert tensor.shape[: tensor.rank] == spec["shape"] and tensor.size == np.prod(spec["shape"])
            assert (tensor.zero_point, tensor.bits, tensor.is_signed) == (spec["zero_point"], fmt.bits, fmt.min < 0)
            assert tensor.scale == np.float32(spec["scale"]) and tensor.name.decode()
            macros = dict(re.findall(rf"#define QC_DIGITS_{stem.upper()}{i}_(\w+) (.+)", header))
            assert int(macros["SIZE"]) == tensor.size and int(macros["ZERO_POINT"].strip("()")) == tensor.zero_point
            assert np.float32(float.fromhex(macros["SCALE"])) == tensor.scale
    numbers = [int(re.search(rf"VERSION_{part} (\d+)", header)[1]) for part in ("MAJOR", "MINOR", "PATCH")]
    assert __version__.startswith(".".join(map(str, numbers))) and f'VERSION "{__version__}"' in header


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a??/b", "ü", "*/ int x;", "/*", "a\nb"])
def test_names_out_of_the_model_are_harmless(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text(f"/* {comment(name)} */ const char *const a = {literal(name)};\n")
    command = [host_compiler(), *STRICT, "-c", "-o", str(tmp_path / "a.o"), str(tmp_path / "a.c")]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""


def test_init_says_what_is_wrong_with_an_arena(make: Make, tmp_path: Path) -> None:
    bundle = make(arena="caller")
    init = library(bundle, tmp_path).qc_digits_init
    size = int(bundle.manifest["size"]["arena_bytes"])
    memory = np.zeros(size // 8 + 2, np.int64)
    at = memory.ctypes.data
    answers = [init(ctypes.c_void_p(place), bytes_) for place, bytes_ in ((at, size), (None, size), (at + 4, size), (at, size - 1))]  # fmt: skip  # noqa: E501
    assert answers == [0, 1, 2, 3]
    assert library(make(), tmp_path).qc_digits_init() == 0


def test_calls_with_their_own_arenas_run_at_a_time(make: Make, tmp_path: Path) -> None:
    """Four threads, one arena each, start together and repeat: nobody sees another's values."""
    bundle = make(arena="caller")
    run = library(bundle, tmp_path).qc_digits_run
    (y,) = bundle.manifest["outputs"]
    session = HostSession(bundle.path, bundle.manifest)
    given = [codes_for(bundle, seed) for seed in range(4)]
    wanted = [session.run_codes([codes])[0] for codes in given]
    assert not all(np.array_equal(wanted[0], other) for other in wanted[1:])
    found = [np.zeros(y["shape"], parse_format(y["format"]).storage) for _ in given]
    barrier, wrong = threading.Barrier(4), []

    def work(i: int) -> None:
        arena = np.full(int(bundle.manifest["size"]["arena_bytes"]) // 8 + 1, -1 - i, np.int64)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (arena, given[i], found[i])]
        barrier.wait()
        for _ in range(50):
            found[i][...] = 0
            run(*pointers)
            if not np.array_equal(found[i], wanted[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("arena", ["static", "caller"])
def test_weights_as_bytes_give_the_same_bits(make: Make, arena: str) -> None:
    arrays, binary = make(arena=arena), make(arena=arena, weights="bin")
    size = (binary.path / "src" / "digits_weights.bin").stat().st_size
    assert size == binary.manifest["size"]["weight_bytes"] >= arrays.manifest["size"]["weight_bytes"]
    assert [b.manifest["c"]["weights"] for b in (arrays, binary)] == ["header", "bin"]
    assert "static const int8_t" not in (binary.path / "src" / "digits.c").read_text()
    assert {**arrays.manifest["size"], "weight_bytes": size} == binary.manifest["size"]
    codes = codes_for(arrays, 1)
    (want,), (got,) = (HostSession(b.path, b.manifest).run_codes([codes]) for b in (arrays, binary))
    np.testing.assert_array_equal(got, want)


def test_weights_of_another_model_are_noticed(make: Make, tmp_path: Path) -> None:
    binary = make(weights="bin")
    assert library(binary, tmp_path).qc_digits_init() == 0
    copy = tmp_path / "copy"
    shutil.copytree(binary.path, copy)
    weights = copy / "src" / "digits_weights.bin"
    weights.write_bytes(b"\0" * weights.stat().st_size)
    (tmp_path / "other").mkdir()
    assert library(Bundle(copy, binary.manifest), tmp_path / "other").qc_digits_init() == 4


def test_weights_go_where_the_build_says(make: Make, tmp_path: Path) -> None:
    """They are one section, and a build may name it."""
    bundle = make(weights="bin")
    source, size = bundle.path / "src" / "digits_weights.S", (bundle.path / "src" / "digits_weights.bin").stat().st_size
    for name, flags in ((".rodata.qc_digits_weights", []), (".extflash", ["-DQC_DIGITS_SECTION=.extflash"])):
        command = [host_compiler(), *flags, "-I", str(source.parent), "-c", "-o", str(tmp_path / "w.o"), str(source)]
        subprocess.run(command, check=True)
        text = subprocess.run(["objdump", "-h", str(tmp_path / "w.o")], capture_output=True, text=True).stdout
        (found,) = (int(line.split()[2], 16) for line in text.splitlines() if f" {name} " in line)
        assert found == size


@pytest.mark.parametrize("compiler", ["gcc", "clang", "arm-none-eabi-gcc", "riscv64-unknown-elf-gcc"])
@pytest.mark.parametrize("options", [{}, {"arena": "caller", "weights": "bin"}], ids=["plain", "caller-bin"])
def test_compilers_have_nothing_to_say(make: Make, compiler: str, options: Mapping[str, str], tmp_path: Path) -> None:
    bundle = make(**options)
    flags: tuple[str, ...] = {
        "arm-none-eabi-gcc": MCUS["cortex-m4"].flags,
        "riscv64-unknown-elf-gcc": MCUS["rv32imac"].flags,
    }.get(compiler, ())
    for name in bundle.manifest["c"]["files"]:
        command = [need(compiler), *flags, *STRICT, "-O2", "-I", str(bundle.path / "src"), "-c", "-o"]
        command += [str(tmp_path / "out.o"), str(bundle.path / "src" / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_cxx_programs_use_the_header(make: Make, tmp_path: Path) -> None:
    """A C++ program links with the C library and reads its data."""
    bundle = make()
    subprocess.run(["make"], cwd=bundle.path, check=True, capture_output=True)
    (tmp_path / "user.cpp").write_text(
        """#include "digits.h"
static uint8_t x[QC_DIGITS_INPUT0_SIZE], y[QC_DIGITS_OUTPUT0_SIZE * 2];
int main() {
  if (qc_digits_init() != QC_OK || qc_digits_inputs[0].size != QC_DIGITS_INPUT0_SIZE) return 1;
  qc_digits_run(reinterpret_cast<decltype(&x[0])>(x), reinterpret_cast<decltype(&y[0])>(y));
  return qc_digits_outputs[0].size == QC_DIGITS_OUTPUT0_SIZE ? 0 : 2;
}
""".replace("uint8_t x", f"{_type(bundle, 'inputs')} x").replace(", y[", f"; static {_type(bundle, 'outputs')} y[")
    )
    program = str(tmp_path / "user")
    command = [need("g++"), "-std=c++11", "-Wall", "-Wextra", "-Werror", "-I", str(bundle.path / "src"), "-o", program]
    subprocess.run([*command, str(tmp_path / "user.cpp"), str(bundle.path / "libdigits.a")], check=True)
    assert subprocess.run([program], check=False).returncode == 0


def _type(bundle: Bundle, values: str) -> str:
    return f"{parse_format(bundle.manifest[values][0]['format']).storage}_t"


@pytest.mark.parametrize("options", [{}, {"weights": "bin"}, {"mcu": "cortex-m33", "weights": "bin"}], ids=str)
def test_make_builds_the_library_and_proves_the_bits(make: Make, options: Mapping[str, str], tmp_path: Path) -> None:
    bundle = make(**options)
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    if "mcu" in options:
        need("arm-none-eabi-gcc")
    subprocess.run(["make"], cwd=copy, check=True, capture_output=True)
    tool = "arm-none-eabi-objdump" if "mcu" in options else "objdump"
    text = subprocess.run([tool, "-f", "libdigits.a"], cwd=copy, capture_output=True, text=True, check=True).stdout
    kind = "elf32-littlearm" if "mcu" in options else "elf64"
    assert text.count(f"file format {kind}") == len(bundle.manifest["c"]["files"])
    done = subprocess.run(["make", "selftest"], cwd=copy, capture_output=True, text=True, check=True)
    assert "bit-exact" in done.stdout
    before = {path.name for path in bundle.path.rglob("*")}
    subprocess.run(["make", "clean"], cwd=copy, check=True, capture_output=True)
    assert {path.name for path in copy.rglob("*")} <= before


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "bin"},
        {"mcu": "cortex-m4", "weights": "bin"},
        {"mcu": "rv32imac"},
        {"object": "rv32imac", "weights": "bin"},
    ],
    ids=str,
)
def test_cmake_builds_the_library(make: Make, options: Mapping[str, str], tmp_path: Path) -> None:
    """With the toolchain file of the core, and with an object in place of kernels."""
    need("cmake")
    bundle = make(**options)
    command = ["cmake", "-S", str(bundle.path), "-B", str(tmp_path / "build")]
    if core := options.get("mcu") or options.get("object"):
        need(MCUS[core].compiler)
        command += [f"-DCMAKE_TOOLCHAIN_FILE={bundle.path / f'{core}.cmake'}"]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(tmp_path / "build")], check=True, capture_output=True)
    listing = ["nm", str(tmp_path / "build" / "libqc_digits.a")]
    symbols = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    kernels = {call["kernel"] for call in bundle.manifest["c"]["calls"]}
    assert {"qc_digits_run", *kernels} <= {
        words[-1] for line in symbols.splitlines() if " T " in line and (words := line.split())
    }


_ZEPHYR = """cmake_minimum_required(VERSION 3.13)
project(app C ASM)
set(CONFIG_QC_DIGITS {enabled})
set(CONFIG_QC_DIGITS_FLOAT y)
macro(zephyr_library_named name)
  set(library ${{name}})
  add_library(${{name}} STATIC)
endmacro()
macro(zephyr_library_sources)
  target_sources(${{library}} PRIVATE ${{ARGN}})
endmacro()
macro(zephyr_library_sources_ifdef option)
  if(${{option}})
    target_sources(${{library}} PRIVATE ${{ARGN}})
  endif()
endmacro()
macro(zephyr_include_directories)
  include_directories(${{ARGN}})
endmacro()
add_subdirectory({module} module)
"""


@pytest.mark.parametrize("enabled", ["y", "n"])
def test_it_is_a_zephyr_module(make: Make, enabled: str, tmp_path: Path) -> None:
    """Its files by Zephyr's rules: the module names its folder, and CMake with Zephyr's functions builds a library."""
    need("cmake")
    bundle = make(weights="bin")
    module = (bundle.path / "zephyr" / "module.yml").read_text()
    assert {"cmake: zephyr", "kconfig: zephyr/Kconfig"} <= {line.strip() for line in module.splitlines()}
    options = re.findall(r"(?m)^config (\w+)$", (bundle.path / "zephyr" / "Kconfig").read_text())
    assert options == ["QC_DIGITS", "QC_DIGITS_FLOAT"]
    (tmp_path / "CMakeLists.txt").write_text(_ZEPHYR.format(module=bundle.path / "zephyr", enabled=enabled))
    subprocess.run(["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build")], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(tmp_path / "build")], check=True, capture_output=True)
    assert bool(list((tmp_path / "build").rglob("libqc_digits.a"))) == (enabled == "y")


def test_it_is_an_arduino_library(make: Make, tmp_path: Path) -> None:
    """By its specification, 1.5: properties that must be there, and src/ compiles as it stands, sketch included."""
    bundle = make(weights="bin")
    lines = (bundle.path / "library.properties").read_text().splitlines()
    properties = dict(line.partition("=")[::2] for line in lines)
    wanted = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"}
    assert (
        wanted <= set(properties) and all(properties.values()) and re.fullmatch(r"\d+\.\d+\.\d+", properties["version"])
    )
    source = bundle.path / "src"
    assert not [path for path in source.iterdir() if path.is_dir()]
    compiled = sorted(path for path in source.iterdir() if path.suffix in (".c", ".S"))
    (tmp_path / "sketch.cpp").write_text(
        f"#include <{properties['includes']}>\nint main() {{ return qc_digits_init(); }}\n"
    )
    objects = []
    for path in (*compiled, tmp_path / "sketch.cpp"):
        compiler = need("g++") if path.suffix == ".cpp" else host_compiler()
        objects.append(str(tmp_path / f"{path.stem}.o"))
        subprocess.run([compiler, "-Os", "-I", str(source), "-c", "-o", objects[-1], str(path)], check=True)
    subprocess.run(["g++", *objects, "-lm", "-o", str(tmp_path / "sketch")], check=True)
    assert subprocess.run([str(tmp_path / "sketch")], check=False).returncode == 0


@pytest.mark.parametrize("mcu", sorted(MCUS))
def test_sizes_are_measured_for_the_core(graph: Graph, mcu: str) -> None:
    need(MCUS[mcu].compiler)
    fits = [
        build(graph, {"prefix": "digits", **options}, lambda stage, done, total: None).facts["fit"]
        for options in ({}, {"mcu": mcu})
    ]
    assert fits[0]["core"] == "cortex-m4" and (fits[1]["core"], fits[1]["how"]) == (mcu, "measured")
    assert fits[1]["constant_bytes"] == fits[0]["constant_bytes"]
    assert 0.8 < fits[1]["code_bytes"] / fits[0]["code_bytes"] < 1.6


def test_options_are_written_the_same_twice(make: Make, graph: Graph) -> None:
    options = {"prefix": "digits", "vectors": "2", "arena": "caller", "weights": "bin", "mcu": "cortex-m7"}
    again = build(graph, options, lambda stage, done, total: None)
    bundle = make(**options)
    assert {path: (bundle.path / path).read_bytes() for path in again.files} == again.files


@pytest.mark.parametrize(
    "options",
    [{"weights": "text"}, {"mcu": "z80"}, {"mcu": "cortex-m4", "object": "cortex-m55"}, {"prefix": "qc_tensor"}],
    ids=str,
)
def test_what_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(options))):
        check(options)


def test_the_command_line_takes_them(digits: Digits, digits_data: Path, tmp_path: Path) -> None:
    from qcompiler.cli import main

    arguments = [str(digits.cnn), "--target", "c", "-o", str(tmp_path / "c"), "--dim", "N=1", "--quiet", "--json"]
    arguments += ["--calib", str(digits_data / "calib.npz"), "--mcu", "rv32imac", "--weights", "bin", "--prefix", "d"]
    assert main(arguments) == 0
    text = (tmp_path / "c" / "Makefile").read_text()
    assert "CROSS = riscv64-unknown-elf-" in text and "-march=rv32imac" in text
    assert Bundle.open(tmp_path / "c").manifest["c"]["mcu"] == "rv32imac"
    assert (tmp_path / "c" / "src" / "d_weights.bin").is_file() and (tmp_path / "c" / "rv32imac.cmake").is_file()
