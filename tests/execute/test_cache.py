"""The cache of activations: the same arrays in memory, in a file and as codes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import CalibrationError
from qcompiler.execute.cache import ActivationCache
from qcompiler.formats import Int, QuantParams
from qcompiler.quantizer import fake_quantize
from tests.strategies import seeds


@given(seed=seeds, limit=st.integers(0, 1500), chunk=st.integers(1, 5))
def test_equal_on_both_sides_of_the_limit(seed: int, limit: int, chunk: int):
    """Two values, one by one and in chunks, read in any order, with repetitions, across the limit."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((13, 1, 3, 4)).astype(np.float32), rng.integers(0, 99, (13, 7))
    with ActivationCache(limit=limit) as cache:
        for i in range(13):
            cache.append("a", a[i])
        for i in range(0, 13, chunk):
            cache.extend("b", b[i : i + chunk])
        assert len(cache) == 13 and cache.names == ["a", "b"]
        assert cache.bytes_in_memory <= limit and cache.bytes_in_memory + cache.bytes_on_disk == a.nbytes + b.nbytes
        order = rng.integers(0, 13, 20)
        found = cache.batch(order)
        np.testing.assert_array_equal(found["a"], a[order])
        np.testing.assert_array_equal(found["b"], b[order])
        assert found["a"].dtype == np.float32 and found["b"].dtype == np.int64
        np.testing.assert_array_equal(cache.read("a"), a)
        assert cache.read("a", []).shape == (0, 1, 3, 4)
        found["a"][:] = 0  # a copy
        np.testing.assert_array_equal(cache.read("a", order), a[order])


@pytest.mark.parametrize("limit", [0, 1 << 20])
@pytest.mark.parametrize("fmt", [Int(8, signed=False), Int(16), Int(4)], ids=str)
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_codes_are_decoded_to_the_same_values(fmt: Int, limit: int, axis: int | None):
    rng = np.random.default_rng(fmt.bits)
    size = () if axis is None else ((3, 4)[axis],)
    params = QuantParams(fmt, rng.uniform(0.01, 1, size), rng.integers(fmt.min, fmt.max, size), axis)
    x = np.stack([fake_quantize(rng.standard_normal((3, 4)).astype(np.float32) * 9, params) for _ in range(6)])
    with ActivationCache(limit=limit, codes={"x": params}) as cache:
        for one in x:
            cache.append("x", one)
        got = cache.read("x", [5, 0, 3])
        np.testing.assert_array_equal(got, x[[5, 0, 3]])
        assert got.dtype == np.float32
        assert cache.bytes_in_memory + cache.bytes_on_disk == x.size * fmt.storage.itemsize
        with pytest.raises(CalibrationError, match="`x` does not lie on the grid"):
            cache.append("x", x[0] + np.float32(1e-3))


def test_memory_stays_bounded(tmp_path: Path):
    """50 samples of 400 kB with a limit of 2 MB: what Python holds never passes the limit and a few samples."""
    sample = np.zeros((100, 1000), np.float32)
    tracemalloc.start()
    try:
        with ActivationCache(limit=2_000_000, folder=tmp_path) as cache:
            for i in range(50):
                cache.append("x", sample + i)
            for i in range(0, 50, 2):
                assert cache.read("x", [i])[0, 0, 0] == i
            _, peak = tracemalloc.get_traced_memory()
            assert 1_600_000 <= cache.bytes_in_memory <= 2_000_000
        assert peak < 2_000_000 + 6 * sample.nbytes
    finally:
        tracemalloc.stop()
    assert not list(tmp_path.iterdir())


def test_files_go_with_the_cache(tmp_path: Path):
    cache = ActivationCache(limit=0, folder=tmp_path)
    cache.append("x", np.ones(3, np.float32))
    cache.append("y", np.ones(3, np.float32))
    assert len(list(tmp_path.rglob("*.bin"))) == 2
    with pytest.raises(RuntimeError), cache:
        raise RuntimeError
    assert not list(tmp_path.iterdir()) and cache.names == [] and len(cache) == 0
    cache.append("x", np.ones(3, np.float32))
    del cache
    assert not list(tmp_path.iterdir())


def test_clear_errors(tmp_path: Path):
    with ActivationCache() as cache:
        cache.append("x", np.zeros((1, 2), np.float32))
        cache.append("x", np.zeros((1, 2), np.float32))
        cache.append("y", np.zeros(2, np.float32))
        with pytest.raises(CalibrationError, match="different numbers of samples: {'x': 2, 'y': 1}"):
            len(cache)
        with pytest.raises(CalibrationError, match=r"`x` are \[1, 2\] float32, not \[2\] float32"):
            cache.append("x", np.zeros(2, np.float32))
        with pytest.raises(CalibrationError, match=r"not \[1, 2\] float64"):
            cache.append("x", np.zeros((1, 2)))
        for wrong in (2, -1):
            with pytest.raises(CalibrationError, match=f"`x` has 2 samples, no {wrong}"):
                cache.read("x", [0, wrong])
        with pytest.raises(CalibrationError, match="`z` has no samples; there are x, y"):
            cache.read("z")
    cache = ActivationCache(limit=0, folder=tmp_path)
    cache.append("x", np.zeros(2, np.float32))
    (file,) = tmp_path.rglob("*.bin")
    file.unlink()
    file.mkdir()  # the disk is full, the folder gone: whatever makes writing fail
    with pytest.raises(CalibrationError, match="activations cannot be written.*TMPDIR"):
        cache.append("x", np.zeros(2, np.float32))
    cache.close()
