"""A graph run part by part gives the values of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.calibrate.statistics import with_outputs
from qcompiler.execute import prefix
from qcompiler.execute.ort import Session
from qcompiler.execute.prefix import Prefix
from qcompiler.graph.model import Graph
from tests.quantized import quantize

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,4] x, float[4,6] a, float[6,6] b, float[6] c) => (float[1,6] y) {
    h = MatMul (x, a)
    r = Relu (h)
    m = MatMul (r, b)
    s = Add (m, r)
    y = Mul (s, c)
}"""


def graph() -> Graph:
    rng = np.random.default_rng(0)
    return Graph.parse(
        TEXT, **{k: rng.normal(size=v).astype(np.float32) for k, v in zip("abc", [(4, 6), (6, 6), (6,)], strict=True)}
    )


def samples(count: int = 11, shape: tuple[int, ...] = (1, 4), name: str = "x") -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{name: rng.normal(size=shape).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("limit", [1 << 20, 0])
def test_parts_equal_the_whole(limit: int) -> None:
    model, data = graph(), samples()
    names = ["x", "r", "m", "y"]
    whole = Session(with_outputs(model, names[1:]))
    want = [[sample["x"], *whole.run(sample, names[1:])] for sample in data]
    with Prefix(model, data, limit=limit) as part:
        for i, name in enumerate(names):
            got = [arrays[0] for arrays in part.walk([name])]
            assert all(np.array_equal(a, row[i]) for a, row in zip(got, want, strict=True))


def test_what_a_pass_changed_counts_from_then_on() -> None:
    model, data = graph(), samples()
    with Prefix(model, data) as part:
        before = [arrays[0] for arrays in part.walk(["r"])]
        model.set_const(model.value("b"), np.zeros((6, 6), np.float32))
        model.set_const(model.value("a"), np.zeros((4, 6), np.float32))  # has run: counts no more
        after = [arrays[0] for arrays in part.walk(["s"])]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert any(a.any() for a in after)


def test_a_look_ahead_counts_for_nothing() -> None:
    model, data = graph(), samples()
    with Prefix(model, data) as part:
        list(part.walk(["r"]))
        kept = set(part._kept)
        before = [arrays[0] for arrays in part.walk(["s"], advance=False)]
        assert set(part._kept) == kept
        model.set_const(model.value("b"), np.zeros((6, 6), np.float32))
        after = [arrays[0] for arrays in part.walk(["s"])]
    want = [Session(with_outputs(model, ["s"])).run(sample)[0] for sample in data]
    assert all(np.array_equal(a, b) for a, b in zip(after, want, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_only_what_is_needed_is_kept() -> None:
    model = graph()
    with Prefix(model, samples()) as part:
        list(part.walk(["m"]))
        assert set(part._kept) == {"r", "m"}
        list(part.walk(["y"]))
        assert not part._kept


def test_files_of_kept_values_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix.tempfile, "tempdir", str(tmp_path))
    with Prefix(graph(), samples(), limit=0) as part:
        list(part.walk(["m"]))
        assert len(list(tmp_path.rglob("*"))) > 1
    assert not list(tmp_path.iterdir())


def test_quantized_values_are_kept_as_codes() -> None:
    model = quantize(graph())
    name = str(next(node for node in model.nodes("Mul")).inputs[0].name)
    data = samples(5)
    want = [Session(with_outputs(model, [name])).run(sample)[0] for sample in data]
    with Prefix(model, data) as part:
        list(part.walk([str(model.nodes("Add")[0].outputs[0].name)]))
        assert part._kept and all(array.dtype == np.uint8 for name, array in part._kept.items() if "codes" in name)
        got = [arrays[0] for arrays in part.walk([name])]
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
