"""The loader of cuda bundles, with the emulator as its driver: right bits, zero copies, a clear word on what fails."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.bundle import Bundle, manifest_of, self_test, write_bundle
from qcompiler.driver import quantize
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.model import Graph
from qcompiler.runtime import BundleLoadError
from qcompiler.runtime.cuda_driver import CudaError, Driver
from qcompiler.runtime.cuda_loader import CudaSession
from qcompiler.targets.cuda.build import build
from qcompiler.targets.cuda.emulate import compile_emulator, cxx_compiler
from tests.conformance.problems import Problems
from tests.graph.test_state import STEPS, decoder, sequences, steps

from qcompiler.errors import UnsupportedError  # isort: skip

try:
    cxx_compiler()
except UnsupportedError:
    pytest.skip("no C++ compiler for the emulator", allow_module_level=True)


def write(graph: Graph, folder: Path, sample: dict[str, np.ndarray], archs: str = "none") -> Bundle:
    lowered = build(graph, {"arch": archs}, lambda stage, done, total: None)
    files = dict(lowered.files)
    files["selftest.npz"] = self_test(sample, Oracle(graph).run(sample))
    manifest = manifest_of("cuda", "float", graph, files, lowered.manifest, lowered.sizes)
    return write_bundle(folder / "bundle", files, manifest, overwrite=False)


def emulator(bundle: Bundle, folder: Path, arch: int = 80) -> str:
    library = folder / f"emulated-{arch}.so"
    level = "sm_90a" if arch == 90 else "sm_75"
    compile_emulator((bundle.path / level / "kernels.cu").read_text(), library, arch, optimize="-O0")
    return str(library)


@pytest.fixture(scope="module")
def problem() -> tuple[Graph, dict[str, np.ndarray]]:
    p = Problems("float")
    p.conv("conv", (1, 16, 9, 11), 24, (3, 3), pads=(1, 1, 1, 1))
    p.add("sum", (2, 24), (2, 24))
    p.matmul("long", (1, 8192), 40)  # sums in parts, which have counters
    rng = np.random.default_rng(0)
    shapes = {str(value.name): p.graph.shape(value) for value in p.graph.inputs}
    return p.graph, {name: rng.integers(0, 256, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def made(problem: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, str]:
    folder = tmp_path_factory.mktemp("cuda")
    bundle = write(*problem[:1], folder, problem[1])
    return bundle, emulator(bundle, folder)


@pytest.fixture
def session(made: tuple[Bundle, str]) -> Iterator[CudaSession]:
    with CudaSession(made[0].path, driver=made[1]) as opened:
        yield opened


def test_runs_have_the_oracles_bits_and_the_self_test_notices_one(session: CudaSession, problem: Any) -> None:
    graph, sample = problem
    session.self_test()
    for _ in range(2):
        for want, got in zip(Oracle(graph).run(sample), session.run(sample), strict=True):
            assert want.tobytes() == got.tobytes()
    assert len(session._graphs) == 1
    session.launches[-1]["arguments"][0][-1] += 4  # writes beside its place
    session._graphs.clear()
    with pytest.raises(BundleLoadError, match="self-test failed: output"):
        session.self_test()


def test_counters_are_zero_between_runs(session: CudaSession, problem: Any) -> None:
    size = session._variant["counter_bytes"]
    assert size == 8 and sum(["counters", 0] in launch["arguments"] for launch in session.launches) == 1
    session.run(problem[1])
    assert ctypes.string_at(session._places["counters"], size) == bytes(size)


class OnCard:
    """An array as torch or cupy would show it; the emulator's card is this machine's memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        strides = None if array.flags.c_contiguous else array.strides
        data = (array.ctypes.data, False)
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": data, "strides": strides, "version": 3,
        }  # fmt: skip


def aligned(array: np.ndarray, beside: int = 0) -> np.ndarray:
    """A copy that begins `beside` bytes behind a multiple of 256."""
    memory = np.zeros(array.nbytes + 512, np.uint8)
    start = -memory.ctypes.data % 256 + beside
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def read(found: Any) -> np.ndarray:
    about = found.__cuda_array_interface__
    size = int(np.prod(about["shape"])) * np.dtype(about["typestr"]).itemsize
    data = ctypes.string_at(about["data"][0], size)
    return np.frombuffer(data, about["typestr"]).reshape(about["shape"])


@pytest.mark.parametrize("beside", [0, 4])
def test_arrays_on_the_card_are_read_where_they_lie(session: CudaSession, problem: Any, beside: int) -> None:
    graph, sample = problem
    arrays = {name: aligned(array, beside) for name, array in sample.items()}
    found = session.run_device({name: OnCard(array) for name, array in arrays.items()})
    for want, got in zip(Oracle(graph).run(sample), found, strict=True):
        assert want.tobytes() == read(got).tobytes()
    used = next(iter(session._graphs))
    # What is not at a multiple of 16 bytes is copied first.
    assert all((array.ctypes.data in used) == (beside == 0) for array in arrays.values())


def capsule(array: np.ndarray, device: int) -> Any:
    """A DLPack capsule of an array, as if it were on a device of this type."""
    from qcompiler.runtime.cuda_arrays import _DLTensor

    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    tensor = _DLTensor(array.ctypes.data, device, 0, array.ndim, 2, 32, 1, shape, None, 0)
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    made = make(ctypes.addressof(tensor), b"dltensor", None)
    return made, tensor, shape


class Exported:
    def __init__(self, array: np.ndarray, device: int = 2) -> None:
        self.made = capsule(array, device)
        self.array = array

    def __dlpack__(self) -> Any:
        return self.made[0]


def test_dlpack_is_taken_too(session: CudaSession, problem: Any) -> None:
    graph, sample = problem
    arrays = {name: Exported(aligned(array)) for name, array in sample.items()}
    for want, got in zip(Oracle(graph).run(sample), session.run_device(arrays), strict=True):
        assert want.tobytes() == read(got).tobytes()
    arrays["conv_x"] = Exported(sample["conv_x"], 1)
    with pytest.raises(BundleLoadError, match="not on a CUDA device"):
        session.run_device(arrays)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: a[..., :-1], "shape"),
        (lambda a: a.astype(np.float64), "float64, not float32"),
        (lambda a: np.asfortranarray(a), "not contiguous"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(session: CudaSession, problem: Any, change: Any, word: str) -> None:
    arrays = {name: OnCard(array) for name, array in problem[1].items()} | {
        "conv_x": OnCard(change(problem[1]["conv_x"]))
    }
    with pytest.raises(BundleLoadError, match=word):
        session.run_device(arrays)
    with pytest.raises(BundleLoadError, match="not on a CUDA device"):
        session.run_device(problem[1])
    with pytest.raises(BundleLoadError, match="no array on the card"):
        session.run_device({name: array.tolist() for name, array in problem[1].items()})
    with pytest.raises(BundleLoadError, match="the inputs are"):
        session.run({})


def test_no_driver_and_no_card_are_said(made: tuple[Bundle, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleLoadError, match="no CUDA driver is installed"):
        CudaSession(made[0].path, driver="/nowhere/libcuda.so.1")
    with pytest.raises(BundleLoadError, match="there is no CUDA device 3: this machine has 1"):
        CudaSession(made[0].path, driver=made[1], device=3)
    monkeypatch.setenv("QC_EMULATE_NO_DEVICE", "1")
    with pytest.raises(BundleLoadError, match="no CUDA-capable device"):
        CudaSession(made[0].path, driver=made[1])


def test_a_card_without_memory_says_how_much(made: tuple[Bundle, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QC_EMULATE_MEMORY", "20000")
    with pytest.raises(BundleLoadError, match="needs .* bytes, and emulator has .* free"):
        CudaSession(made[0].path, driver=made[1])


def test_a_card_that_no_variant_is_for(problem: Any, tmp_path: Path) -> None:
    lowered = build(problem[0], {"arch": "none"}, lambda stage, done, total: None)
    only = [variant for variant in lowered.manifest["variants"] if variant["level"] == "sm_90a"]
    facts = {**lowered.manifest, "variants": only}
    manifest = manifest_of("cuda", "float", problem[0], lowered.files, facts, lowered.sizes)
    bundle = write_bundle(tmp_path / "bundle", lowered.files, manifest, overwrite=False)
    with pytest.raises(BundleLoadError, match="emulator is sm_80, and the bundle is for sm_90a"):
        CudaSession(bundle.path, driver=emulator(bundle, tmp_path))
    with CudaSession(bundle.path, driver=emulator(bundle, tmp_path, 90)) as session:
        for want, got in zip(Oracle(problem[0]).run(problem[1]), session.run(problem[1]), strict=True):
            assert want.tobytes() == got.tobytes()


def test_a_closed_session_says_so(made: tuple[Bundle, str], problem: Any) -> None:
    session = CudaSession(made[0].path, driver=made[1])
    session.close()
    session.close()
    with pytest.raises(BundleLoadError, match="the session is closed"):
        session.run(problem[1])


def test_the_bundle_runs_alone(made: tuple[Bundle, str], problem: Any, tmp_path: Path) -> None:
    """In an interpreter that finds nothing of ours, by its own loader."""
    np.savez(tmp_path / "sample.npz", **problem[1])
    code = f"""
import sys
sys.path.insert(0, {str(made[0].path)!r})
import numpy as np
from loader import load
session = load({str(made[0].path)!r}, driver={made[1]!r})
session.self_test()
print(session.level if hasattr(session, "level") else session.code, any(m.startswith("qcompiler") for m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.split() == ["emulator", "False"], done.stderr


def test_states_are_kept_between_steps(tmp_path: Path) -> None:
    graph = quantize(decoder(STEPS - 1).model, {"x": sequences(8)}, target="cuda", state="auto").integer_graph
    assert graph is not None
    inputs = {str(v.name): np.zeros(graph.shape(v), v.dtype.numpy()) for v in graph.inputs}
    bundle = write(graph, tmp_path, inputs)
    (sequence,) = sequences(1, seed=4)
    with CudaSession(bundle.path, driver=emulator(bundle, tmp_path)) as session:
        wanted = steps(Oracle(graph).run, graph, sequence)
        for want, got in zip(wanted, steps(session.run, graph, sequence), strict=True):
            assert want.tobytes() == got.tobytes()
        for _ in range(2):
            session.reset()
            for t, (x, want) in enumerate(zip(sequence, wanted, strict=True)):
                (y,) = session.step({"x": x.reshape(1, 1, 8), "position": np.array([t])})
                assert want.tobytes() == y.tobytes()
        with pytest.raises(BundleLoadError, match="run_device is for bundles without state"):
            session.run_device({})


def test_a_driver_that_lacks_a_function_is_too_old(tmp_path: Path) -> None:
    (tmp_path / "old.c").write_text("int cuInit(unsigned flags) { return 0; }\n")
    library = tmp_path / "old.so"
    subprocess.run(
        [cxx_compiler(), "-x", "c", "-shared", "-fPIC", "old.c", "-o", str(library)], cwd=tmp_path, check=True
    )
    with pytest.raises(CudaError, match="too old"):
        Driver(str(library))


def test_damage_is_said(made: tuple[Bundle, str], tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(made[0].path, tmp_path / "copy"))
    (copy / "sm_75" / "weights.bin").write_bytes(b"")
    with pytest.raises(BundleLoadError, match="damaged"):
        CudaSession(copy, driver=made[1])
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["cuda"]["variants"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleLoadError, match="not a cuda bundle, or damaged"):
        CudaSession(copy, driver=made[1], check=False)
