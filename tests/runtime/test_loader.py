"""The loader: right bits from any thread and thread count, a clear word on everything that does not fit."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from qcompiler.runtime import BundleLoadError, Session, load
from qcompiler.runtime.loader import cpu_flags


@pytest.fixture
def copy(digits_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_bundle, tmp_path / "copy"))


@pytest.fixture(scope="module")
def images(digits) -> np.ndarray:
    return digits.data["x_test"][:8]


def edit_manifest(bundle: Path, change) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def answers(session: Session, images: np.ndarray) -> np.ndarray:
    return np.concatenate([session.run({"x": image[None]})[0] for image in images])


def test_any_number_of_threads_gives_the_same_bits(digits_bundle: Path, images: np.ndarray):
    with load(digits_bundle) as session:
        one = answers(session, images)
        assert session.threads == 1
    for threads in (2, 3, 4):
        with load(digits_bundle, threads=threads) as session:
            assert answers(session, images).tobytes() == one.tobytes()


def test_the_self_test_passes_and_notices_one_bit(copy: Path):
    with load(copy) as session:
        session.self_test()
    with np.load(copy / "selftest.npz") as stored:
        arrays = dict(stored)
    arrays["out_0"].view(np.uint32).flat[0] ^= 1
    np.savez(copy / "selftest.npz", **arrays)
    with load(copy, check=False) as session, pytest.raises(BundleLoadError, match="self-test failed: output `logits`"):
        session.self_test()
    (copy / "selftest.npz").write_bytes(b"PK")
    with load(copy, check=False) as session, pytest.raises(BundleLoadError, match="cannot be read"):
        session.self_test()


ALONE = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("onnx", "onnx_ir", "onnxruntime", "torch", "tvm", "qcompiler", "scipy"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Refuse())
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import numpy as np
import loader

with loader.load(sys.argv[1], threads=2) as session:
    session.self_test()
    shape = session.inputs[0]["shape"]
    print(session.run({session.inputs[0]["name"]: np.zeros(shape, np.float32)})[0].shape)
"""


def test_the_bundles_own_loader_needs_numpy_alone(digits_bundle: Path, tmp_path: Path):
    packages = str(Path(np.__file__).resolve().parent.parent)
    command = [sys.executable, "-I", "-S", "-B", "-c", ALONE, str(digits_bundle), packages]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 10)"


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, r"the inputs are `x`; given: none"),
        ({"y": np.zeros((1, 1, 8, 8), np.float32)}, r"the inputs are `x`; given: `y`"),
        ({"x": np.zeros((1, 8, 8), np.float32)}, r"`x` has shape \(1, 8, 8\), not \(1, 1, 8, 8\)"),
        ({"x": np.zeros((1, 1, 8, 8))}, r"`x` is float64, not float32. Convert it with .astype\(np.float32\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(digits_bundle: Path, inputs, said):
    with load(digits_bundle) as session, pytest.raises(BundleLoadError, match=said):
        session.run(inputs)


def test_strided_arrays_and_repeated_runs_give_fresh_results(digits_bundle: Path, images: np.ndarray):
    with load(digits_bundle) as session:
        want = session.run({"x": images[:1]})[0]
        turned = np.asfortranarray(images[:1])
        first, second = session.run({"x": turned})[0], session.run({"x": images[1:2]})[0]
    assert first.tobytes() == want.tobytes() and first is not second and not np.array_equal(first, second)


def test_a_closed_session_says_so_and_closes_twice(digits_bundle: Path, images: np.ndarray):
    session = load(digits_bundle, threads=2)
    session.close()
    session.close()
    with pytest.raises(BundleLoadError, match="the session is closed"):
        session.run({"x": images[:1]})


def test_one_session_serves_python_threads_in_turn(digits_bundle: Path, images: np.ndarray):
    found: dict[int, list[bytes]] = {}
    with load(digits_bundle, threads=2) as session:
        want = [session.run({"x": image[None]})[0].tobytes() for image in images]

        def work(which: int) -> None:
            image = images[which][None]
            found[which] = [session.run({"x": image})[0].tobytes() for _ in range(50)]

        workers = [threading.Thread(target=work, args=(which,)) for which in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert all(set(found[which]) == {want[which]} for which in range(4))


def test_opening_and_closing_leaks_neither_threads_nor_memory(digits_bundle: Path, images: np.ndarray):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cycle(count: int) -> None:
        for i in range(count):
            session = load(digits_bundle, threads=3, check=False)
            session.run({"x": images[:1]})
            if i % 2:
                session.close()
            del session
        gc.collect()

    if not Path("/proc/self/statm").exists():
        pytest.skip("memory is read from /proc, which is missing")
    cycle(20)
    threads, before = len(os.listdir("/proc/self/task")), resident()
    cycle(200)
    assert len(os.listdir("/proc/self/task")) == threads
    assert resident() - before < 2 << 20
    assert str(digits_bundle) not in Path("/proc/self/maps").read_text()


def test_damage_of_every_file_is_found_and_named(copy: Path):
    names = sorted(json.loads((copy / "manifest.json").read_text())["files"])
    assert {"loader.py", "qdq.onnx", "integer.onnx", "recipe.toml", "selftest.npz"} < set(names)
    for name in names:
        whole = (copy / name).read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1
        for data in (bytes(damaged), whole[:-1], b""):
            (copy / name).write_bytes(data)
            with pytest.raises(BundleLoadError, match=f"`{name}` is damaged"):
                load(copy)
        (copy / name).unlink()
        with pytest.raises(BundleLoadError, match=f"`{name}` is missing"):
            load(copy)
        (copy / name).write_bytes(whole)
    load(copy).close()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"schema": 1}', '{"schema": "x", "files": {}}', "\x00"])
def test_a_damaged_manifest_is_named(copy: Path, text: str):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(BundleLoadError, match="manifest.json is damaged"):
        load(copy)


def test_manifests_of_other_bundles_are_refused(copy: Path, tmp_path: Path):
    with pytest.raises(BundleLoadError, match="not a bundle"):
        load(tmp_path)
    with pytest.raises(BundleLoadError, match="threads must be at least 1"):
        load(copy, threads=0)
    edit_manifest(copy, lambda m: m.pop("inputs"))
    with pytest.raises(BundleLoadError, match="damaged.*inputs"):
        load(copy)
    edit_manifest(copy, lambda m: m.update(schema=99))
    with pytest.raises(BundleLoadError, match="schema 99 is newer"):
        load(copy)
    edit_manifest(copy, lambda m: m.update(schema=1, target="fpga", cpu=None) or m.pop("cpu"))
    with pytest.raises(BundleLoadError, match="target `fpga`"):
        load(copy)


def test_a_processor_that_lacks_something_is_told_what(copy: Path):
    edit_manifest(copy, lambda m: m["cpu"]["variants"][0]["cpu_flags"].append("avx1024"))
    with pytest.raises(BundleLoadError, match="cannot run any variant.*lacks avx1024.*--cpu"):
        load(copy)


def test_the_last_variant_that_fits_is_taken(copy: Path):
    def more(manifest: dict) -> None:
        (variant,) = manifest["cpu"]["variants"]
        plain = variant | {"level": "plain", "cpu_flags": sorted(cpu_flags())[:1]}
        future = variant | {"level": "future", "cpu_flags": ["avx1024"]}
        manifest["cpu"]["variants"] = [plain, variant, future]

    edit_manifest(copy, more)
    with load(copy) as session:
        assert session.level not in ("plain", "future")


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", b"not a library"])
def test_a_library_that_does_not_load_is_named_even_unchecked(copy: Path, damage: bytes):
    library = next((copy / "lib").glob("*.so"))
    library.write_bytes(damage)
    with pytest.raises(BundleLoadError, match=f"{library.name}: the library cannot be loaded"):
        load(copy, check=False)


def test_truncated_weights_are_named_even_unchecked(copy: Path):
    weights = next((copy / "lib").glob("*.weights"))
    whole = weights.read_bytes()
    for size in (0, len(whole) // 2):
        weights.write_bytes(whole[:size])
        with pytest.raises(BundleLoadError, match=weights.name):
            load(copy, check=False)


def test_a_foreign_library_is_named(copy: Path):
    library = next((copy / "lib").glob("*.so"))
    empty = copy / "empty.c"
    empty.write_text("int nothing;\n")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    subprocess.run([compiler, "-shared", "-o", str(library), str(empty)], check=True)
    edit_manifest(
        copy, lambda m: m["files"].update({f"lib/{library.name}": hashlib.sha256(library.read_bytes()).hexdigest()})
    )
    with pytest.raises(BundleLoadError, match="not the library of a bundle"):
        load(copy)
