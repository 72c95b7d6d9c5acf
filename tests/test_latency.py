"""Latency: interleaved, comparable, never without a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import Bundle
from qcompiler.errors import RecipeError
from qcompiler.graph.qdq import strip_quantizers
from qcompiler.latency import Latency, measure, peer_calls


def test_contenders_take_turns_and_each_has_a_figure():
    calls: list[str] = []
    contenders = [(name, "int8", lambda name=name: calls.append(name)) for name in ("a", "b")]
    rows = measure(contenders, seconds=0.01, rounds=3)
    assert [(row.runtime, row.precision) for row in rows] == [("a", "int8"), ("b", "int8")]
    assert all(0 <= row.min_ms <= row.median_ms for row in rows)
    turns = "".join(calls).replace("aa", "a")
    while "aa" in turns or "bb" in turns:
        turns = turns.replace("aa", "a").replace("bb", "b")
    assert turns == "ab" * 4  # once to warm up, then three rounds


def test_a_slow_contender_still_runs_once_a_round():
    from time import sleep

    (row,) = measure([("slow", "float32", lambda: sleep(0.01))], seconds=0.0, rounds=2)
    assert row.min_ms >= 10 and set(row.document()) == {"runtime", "precision", "median_ms", "min_ms"}
    assert Latency(**row.document()) == row


def test_peers_give_the_graphs_own_answers(digits, digits_bundle: Path):
    qdq = Bundle.open(digits_bundle).qdq_graph()
    sample = {"x": digits.data["x_test"][:1]}
    peers = peer_calls(["onnxruntime"], strip_quantizers(qdq.clone()), qdq, sample, 1)
    assert [(name, precision) for name, precision, _ in peers] == [
        ("onnxruntime", "float32"),
        ("onnxruntime", "int8"),
    ]
    answers = [call()[0].argmax() for _, _, call in peers]
    assert answers == [np.int64(digits.data["y_test"][0])] * 2
    with pytest.raises(RecipeError, match="`tflite` is no peer. Choose from onnxruntime, openvino"):
        peer_calls(["tflite"], None, qdq, sample, 1)


def test_openvino_is_a_peer_where_it_is_installed(digits, digits_bundle: Path):
    pytest.importorskip("openvino", reason="openvino is not installed")
    qdq = Bundle.open(digits_bundle).qdq_graph()
    ((name, precision, call),) = peer_calls(["openvino"], None, qdq, {"x": digits.data["x_test"][:1]}, 1)
    assert (name, precision) == ("openvino", "int8") and call()[0].argmax() == digits.data["y_test"][0]
