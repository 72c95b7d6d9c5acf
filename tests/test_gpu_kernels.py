"""What `benchmarks.gpu` launches on a card by itself, on the emulator: it has to be right at the first try."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.gpu import Kernels
from benchmarks.gpu_kernels import pair_entry, product_entry
from benchmarks.gpu_prepare import any_tile
from benchmarks.gpu_shapes import draw
from qcompiler.errors import UnsupportedError
from qcompiler.runtime.cuda_driver import Driver
from qcompiler.targets.cuda.build import plan
from qcompiler.targets.cuda.emit import text_of
from qcompiler.targets.cuda.emulate import compile_emulator, cxx_compiler
from qcompiler.targets.cuda.machine import LEVELS
from qcompiler.targets.cuda.pack import pack_weights
from qcompiler.targets.cuda.tir.tile import Tile

try:
    cxx_compiler()
except UnsupportedError:
    pytest.skip("no C++ compiler for the emulator", allow_module_level=True)

THIN = Tile(16, 64, 16, 16, 4, 128)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    folder = tmp_path_factory.mktemp("kernels")
    entries, specs = [], {}
    for name, (spec, entry) in {
        "qc_whole": product_entry(THIN, 3, 128, inner=1024),
        "qc_split": product_entry(THIN, 20, 128, inner=1280, parts=3),
        "qc_split4": product_entry(THIN, 20, 128, 4, inner=1280, parts=2),
        "qc_narrow": product_entry(Tile(32, 64, 32, 16, 4), 40, 64, 4, inner=256, narrow=True),
        "qc_keys": pair_entry(Tile(32, 32, 16, 16, 4), 2, 48, 80, 32, keys=True),
        "qc_turned": pair_entry(Tile(32, 64, 32, 16, 4), 2, 48, 80, 64, keys=False),
    }.items():
        specs[name] = spec
        entries.append({"kernel": name, **entry})
    (folder / "kernels.json").write_text(json.dumps({"cubin": "none", "kernels": entries}))
    (folder / "none").write_bytes(b"-")
    compile_emulator(text_of(specs, LEVELS["sm_75"]), folder / "cuda.so", 80, optimize="-O0")
    return Kernels(folder, Driver(str(folder / "cuda.so")), 0)


@pytest.mark.parametrize("place", range(4))
def test_products_have_the_bits_that_the_card_is_asked_for(kernels: Kernels, place: int) -> None:
    entry = kernels.document["kernels"][place]
    rng = np.random.default_rng(place)
    m, n, k, top = entry["rows"], entry["side"], entry["inner"], 1 << entry["bits"] - 1
    x = rng.integers(0, 16 if entry["narrow"] else 256, (m, k)).astype(np.uint8)
    w = rng.integers(-top, top, (n, k)).astype(np.int8)
    bias, scale = rng.integers(-99, 99, n).astype(np.int32), np.full(n, 4e-3 / top, np.float32)
    packed = pack_weights(w[None], Tile(16, entry["channels"], 16, 16, 4, entry["step"]), entry["bits"])
    y, rest = np.zeros((m, n), np.uint8), np.zeros(64, np.int32)
    sums, counters = np.full(max(1, entry["sums"]), -1, np.int32), np.zeros(64, np.int32)
    given = [x, y, packed, bias, scale, rest, rest, *([sums, counters] if entry["sums"] else [])]
    assert len(given) == len(entry["pointers"])
    launch = kernels.launch(entry, [array.ctypes.data for array in given])
    acc = x.astype(np.int64) @ w.T.astype(np.int64) + bias
    want = np.clip(np.rint(acc.astype(np.float32) * scale), 0, 255).astype(np.uint8)
    for _ in range(2):
        y[...] = 0
        launch()
        np.testing.assert_array_equal(y, want)
        assert not counters.any()


@pytest.mark.parametrize("place", [4, 5])
def test_pairs_have_the_bits_that_the_card_is_asked_for(kernels: Kernels, place: int) -> None:
    entry = kernels.document["kernels"][place]
    rng = np.random.default_rng(place)
    batch, m, k, n = (entry[name] for name in ("batch", "rows", "inner", "columns"))
    a = rng.integers(0, 256, (batch, m, k)).astype(np.uint8)
    b = rng.integers(0, 256, (batch, n, k) if entry["keys"] else (batch, k, n)).astype(np.uint8)
    y, scale = np.zeros((batch, m, n), np.uint8), np.full(1, 1e-3, np.float32)
    zeros = np.zeros(entry["zero_bytes"], np.uint8)
    kernels.launch(entry, [array.ctypes.data for array in (a, b, y, scale, zeros)])()
    left, right = (v.astype(np.int64) - zero for v, zero in zip((a, b), entry["zeros"], strict=True))
    acc = left @ (right.swapaxes(1, 2) if entry["keys"] else right)
    np.testing.assert_array_equal(y, np.clip(np.rint(acc.astype(np.float32) * scale), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("level", list(LEVELS))
def test_drawn_shapes_try_what_a_level_has(level: str) -> None:
    with any_tile():
        calls = plan(draw("float").graph, level, lambda stage, done, total: None).calls
    specs = {call.spec for call in calls}
    assert any(getattr(spec, "split", False) for spec in specs)
    assert any(getattr(spec, "narrow", False) for spec in specs) == (level == "sm_75")
    pairs = [spec for spec in specs if "BatchedProduct" in type(spec).__name__]
    assert any(spec.b.words for spec in pairs) and any(spec.b.grain for spec in pairs)  # type: ignore[attr-defined]
