"""Calibration data: what is accepted, and what is said when it is not."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibrate.data import load_samples
from qcompiler.calibrate.preprocess import Preprocess
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.graph.model import Graph

ONE = """<ir_version: 10, opset_import: ["": 21]> g (float[1,3,4,5] x) => (float[1,3,4,5] y) { y = Relu(x) }"""
TWO = """<ir_version: 10, opset_import: ["": 21]> g (float[1,3] a, float[1,3] b) => (float[1,3] y) { y = Add(a, b) }"""
BATCH = """<ir_version: 10, opset_import: ["": 21]> g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }"""
DATA = np.random.default_rng(0).standard_normal((6, 3, 4, 5)).astype(np.float32)


@pytest.fixture
def one() -> Graph:
    return Graph.parse(ONE)


def test_npz_and_npy_and_mapping_give_the_same_samples_every_time(one, tmp_path):
    np.savez(tmp_path / "d.npz", x=DATA)
    np.save(tmp_path / "d.npy", DATA)
    for spec in (tmp_path / "d.npz", str(tmp_path / "d.npy"), {"x": DATA}, list(DATA), [{"x": d} for d in DATA]):
        samples = load_samples(spec, one)
        for _ in range(2):
            np.testing.assert_array_equal(np.concatenate([s["x"] for s in samples]), DATA)
    assert len(load_samples({"x": DATA}, one, limit=4)) == 4 == len(list(load_samples({"x": DATA}, one, limit=4)))


def test_digest_follows_content_and_preprocessing(one):
    digests = {
        load_samples({"x": DATA}, one).digest,
        load_samples({"x": DATA + 1}, one).digest,
        load_samples({"x": DATA}, one, limit=2).digest,
        load_samples({"x": DATA}, one, Preprocess(layout="none", scale=2.0)).digest,
    }
    assert len(digests) == 4 and load_samples({"x": DATA}, one).digest in digests


def test_leading_dimension_groups_samples():
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    got = list(load_samples({"x": x}, Graph.parse(BATCH)))
    assert len(got) == 2
    np.testing.assert_array_equal(np.concatenate([s["x"] for s in got]), x[:4])
    with pytest.raises(CalibrationError, match="batch of 2"):
        list(load_samples({"x": x[:1]}, Graph.parse(BATCH)))


def test_images(one, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is missing")
    for i in range(2):
        image.fromarray(np.full((8, 10, 3), [i, 20, 30], np.uint8)).save(tmp_path / f"{1 - i}.png")
    how = Preprocess(resize=(4, 5), scale=1 / 10, mean=(0.0, 1.0, 1.0), std=(1.0, 1.0, 2.0), colour="BGR")
    samples = list(load_samples(tmp_path, one, how))
    np.testing.assert_allclose(samples[0]["x"][0, :, 0, 0], [1.0, 1.0, 0.1], rtol=1e-6)  # 0.png comes first: i == 1
    assert samples[0]["x"].shape == (1, 3, 4, 5)
    cropped = Preprocess(resize=8, crop=(4, 5))(np.zeros((8, 10, 3), np.uint8))
    assert cropped.shape == (3, 4, 5)


def test_function(one, tmp_path, monkeypatch):
    (tmp_path / "my_calibration.py").write_text(
        "import numpy as np\n"
        "def three(graph):\n"
        "    return (np.full(graph.shape(v), i, np.float32) for v in graph.inputs for i in range(3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    samples = load_samples("my_calibration:three", one)
    for _ in range(2):
        assert [float(s["x"].max()) for s in samples] == [0.0, 1.0, 2.0]
    assert samples.digest is None and len(samples) == 3


def test_random_is_seeded_and_says_so(one):
    first, again = (np.concatenate([s["x"] for s in load_samples("random", one, seed=3)]) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    uniform = np.concatenate([s["x"] for s in load_samples("random:uniform", one)])
    assert uniform.min() >= 0 and first.min() < 0
    assert load_samples("random:uniform", one).source == "random:uniform"


@pytest.mark.parametrize(
    ("data", "text", "expected"),
    [
        ({"y": DATA}, ONE, r"no data for the input `x`; it has `y`"),
        ({"x": DATA, "z": DATA}, ONE, r"no input `z`"),
        ({"x": DATA[:, :2]}, ONE, r"shape \[2, 4, 5\], the model expects \[1, 3, 4, 5\]"),
        ({"x": DATA[:0]}, ONE, "no samples"),
        ({"a": np.zeros((3, 3)), "b": np.zeros((2, 3))}, TWO, "different numbers of samples"),
        ([np.zeros((1, 3), np.float32)], TWO, "a sample is a dict"),
        ("nowhere.npz", ONE, "no such file"),
        ("nowhere", ONE, "no such file or directory"),
        ("no_such_module_x:f", ONE, "cannot import"),
        ("math:nothing", ONE, "has no `nothing`"),
        ({"x": np.where(np.arange(6)[:, None, None, None] == 3, np.nan, DATA)}, ONE, "sample 3: input `x` holds NaN"),
    ],
)
def test_what_does_not_fit_is_named(data, text, expected):
    with pytest.raises(CalibrationError, match=expected):
        list(load_samples(data, Graph.parse(text)))


def test_damaged_files(one, tmp_path):
    np.savez(tmp_path / "good.npz", x=DATA)
    whole = (tmp_path / "good.npz").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.npz").write_bytes(whole[:size])
        with pytest.raises(CalibrationError, match="not a readable"):
            load_samples(tmp_path / "cut.npz", one)
    (tmp_path / "text.csv").write_text("1,2")
    with pytest.raises(CalibrationError, match="not calibration data"):
        load_samples(tmp_path / "text.csv", one)


def test_generators_are_refused_and_keys_are_checked(one):
    with pytest.raises(CalibrationError, match="only once"):
        load_samples((d for d in DATA), one)
    with pytest.raises(RecipeError, match="no key `men`"):
        Preprocess.parse({"men": [1]})
    with pytest.raises(RecipeError, match="NCWH"):
        Preprocess(layout="NCWH")
