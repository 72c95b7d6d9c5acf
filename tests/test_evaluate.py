"""Metrics against figures worked out by hand; verification counts what differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import Bundle
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.evaluate import is_integer, load_labels, metric, predict, runner, sqnr, take, verify
from qcompiler.graph.io import load_graph

OUTPUTS = np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]], np.float32)


def test_top1_takes_classes_or_reference_outputs():
    assert metric("top1", OUTPUTS, np.array([1, 0, 0, 0])) == 0.75
    assert metric("top1", OUTPUTS, np.array([[1], [0], [0], [0]])) == 0.75
    assert metric("top1", OUTPUTS.reshape(4, 2, 1, 1), np.array([1, 0, 0, 0])) == 0.75
    assert metric("top1", OUTPUTS, OUTPUTS[:, ::-1]) == 0.0
    assert metric("top1", OUTPUTS[:1], np.array([1])) == 1.0
    assert metric("top1", np.array([[1], [0], [2], [0]]), np.array([1, 0, 0, 0])) == 0.75


def test_mse_psnr_cosine_sqnr_of_worked_cases():
    reference = OUTPUTS.copy()
    reference[0] += np.float32(0.1)
    assert metric("mse", OUTPUTS, reference) == pytest.approx(0.01 / 4, rel=1e-5)
    assert metric("psnr", OUTPUTS[:1], reference[:1]) == pytest.approx(20.0, abs=1e-4)  # 10 log10(1 / 0.1**2)
    assert metric("cosine", np.float32([[3, 4]]), np.float32([[4, 3]])) == pytest.approx(24 / 25)
    assert metric("sqnr", np.float32([[9, 0]]), np.float32([[10, 0]])) == pytest.approx(20.0)


def test_psnr_clips_outputs_to_the_range_of_images():
    assert metric("psnr", np.float32([[1.5, -0.5]]), np.float32([[1.0, 0.1]])) == pytest.approx(-10 * np.log10(0.005))


@pytest.mark.parametrize(("name", "best"), [("mse", 0), ("psnr", 200), ("cosine", 1), ("sqnr", 200), ("top1", 1)])
def test_no_error_is_the_best_finite_figure(name: str, best: float):
    assert metric(name, OUTPUTS, OUTPUTS) == pytest.approx(best)


def test_sqnr_of_silence_is_finite():
    assert sqnr(np.zeros((1, 2)), np.zeros((1, 2))) == 200
    assert np.isfinite(sqnr(np.zeros((1, 2)), np.ones((1, 2))))


def test_own_metrics_come_from_modules(tmp_path: Path, monkeypatch):
    (tmp_path / "own_metrics.py").write_text(
        "def largest(outputs, labels):\n    return outputs.max()\n"
        "def wrong(outputs, labels):\n    return labels['no']\n"
        "def endless(outputs, labels):\n    return float('inf')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert metric("own_metrics:largest", OUTPUTS, None) == pytest.approx(0.9)
    with pytest.raises(RecipeError, match="own_metrics:wrong: it failed"):
        metric("own_metrics:wrong", OUTPUTS, None)
    with pytest.raises(CalibrationError, match="gives inf"):
        metric("own_metrics:endless", OUTPUTS, None)


@pytest.mark.parametrize(
    ("name", "labels", "error", "said"),
    [
        ("top2", OUTPUTS, RecipeError, "`top2` is no metric. Choose from top1"),
        ("no_such_module_x:f", OUTPUTS, RecipeError, "cannot import it"),
        (":f", OUTPUTS, RecipeError, "cannot import it"),
        ("math:nothing", OUTPUTS, RecipeError, "cannot import it"),
        ("math:pi", OUTPUTS, RecipeError, "not a function"),
        ("mse", None, CalibrationError, "--labels KEY.*--against"),
        ("top1", np.zeros(3), CalibrationError, "3 labels for 4 samples"),
        ("top1", np.zeros((4, 3)), CalibrationError, r"labels have shape \(4, 3\), outputs \(4, 2\)"),
        ("mse", np.zeros((4, 3)), CalibrationError, r"labels have shape \(4, 3\), outputs \(4, 2\)"),
        ("mse", np.full((4, 2), np.nan), CalibrationError, "metric mse gives nan"),
    ],
)
def test_what_cannot_be_measured_is_said(name, labels, error, said):
    with pytest.raises(error, match=said):
        metric(name, OUTPUTS, labels)


def test_labels_come_from_a_key_or_a_file(tmp_path: Path):
    np.savez(tmp_path / "d.npz", x=OUTPUTS, y=[1, 2])
    np.save(tmp_path / "y.npy", [1, 2])
    for spec, data in (("y", tmp_path / "d.npz"), (str(tmp_path / "y.npy"), None)):
        np.testing.assert_array_equal(load_labels(spec, data), [1, 2])
    (tmp_path / "bad.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:100])
    (tmp_path / "bad.npy").write_bytes(b"no")
    for spec, data, said in (
        ("z", tmp_path / "d.npz", "no key `z`; it has `x`, `y`"),
        ("y", tmp_path / "none.npz", "need a .npz with that key"),
        ("y", "random", "need a .npz with that key"),
        ("y", tmp_path / "bad.npz", "not a readable .npz"),
        (str(tmp_path / "bad.npy"), None, "not a readable .npy"),
        (str(tmp_path / "none.npy"), None, "no such file"),
    ):
        with pytest.raises(CalibrationError, match=said):
            load_labels(spec, data)


def test_runner_is_chosen_by_what_the_graph_means(digits, digits_bundle: Path):
    bundle = Bundle.open(digits_bundle)
    float_graph, qdq, integer = load_graph(digits.cnn, dims={"N": 1}), bundle.qdq_graph(), bundle.integer_graph()
    assert [is_integer(graph) for graph in (float_graph, qdq, integer)] == [False, False, True]
    samples = [{"x": image[None]} for image in digits.data["x_test"][:20]]
    outputs = [predict(runner(source), samples) for source in (float_graph, qdq, integer, bundle)]
    assert outputs[2].tobytes() == outputs[3].tobytes()
    assert metric("sqnr", outputs[1], outputs[0]) > 20 and metric("sqnr", outputs[2], outputs[1]) > 30
    with pytest.raises(CalibrationError, match="no samples"):
        predict(runner(bundle), [])


def test_verification_counts_samples_and_names_the_first():
    def right(sample):
        return [sample["x"]]

    def wrong(sample):
        return [sample["x"] + (np.float32(1) if sample["x"][0, 0] > 1 else np.float32(0))]

    samples = [{"x": np.full((1, 3), i, np.float32)} for i in range(5)]
    good = verify(right, [right, right], ["1 thread", "2 threads"], samples)
    assert good.document() == {"bit_exact": True, "samples": 5, "mismatches": 0}
    bad = verify(right, [right, wrong], ["1 thread", "2 threads"], samples)
    assert (bad.samples, bad.mismatches, bad.bit_exact) == (5, 3, False)
    assert bad.first == "sample 2, output 0, 2 threads: 3 of 3 values differ"


def test_verification_tells_zeros_apart_and_accepts_equal_nan():
    zero, minus = [np.float32([0.0])], [np.float32([-0.0])]
    assert not verify(lambda s: zero, [lambda s: minus], ["a"], [{}]).bit_exact
    nan = [np.float32([np.nan])]
    assert verify(lambda s: nan, [lambda s: nan], ["a"], [{}]).bit_exact


def test_take_reads_no_further():
    assert list(take(iter(range(10)), 3)) == [0, 1, 2] and list(take(iter([1]), 3)) == [1]
