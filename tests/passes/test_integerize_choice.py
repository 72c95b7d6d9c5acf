"""Choices, places, interpolation: the QDQ graph in onnxruntime against the oracle, and what leaves as integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.calibrate.data import load_samples
from qcompiler.context import Context
from qcompiler.driver import bundle_runner
from qcompiler.driver import compile as compile_model
from qcompiler.driver import quantize as quantize_model
from qcompiler.errors import UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.execute.ort import Session
from qcompiler.graph import stages
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import read_quantizer
from qcompiler.graph.stages import Stage
from qcompiler.passes import check_support, decide, insert_qdq, integerize, set_ranges
from tests.quantized import differences, float_graph, integer, quantize
from tests.reference import run_node


def rand(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


PAIR, IMAGE = "float[2,5,8] a, float[2,1,8] b => float[2,5,8] y", "float[1,4,6,5] x"
SIZES = {"r": np.zeros(0, np.float32), "f": np.zeros(0, np.float32)}
CASES = {
    "larger": (PAIR, "y = Max(a, b)", {}),
    "smaller": (PAIR, "y = Min(a, b)", {}),
    "larger than constants": ("float[2,8] a => float[2,8] y", "y = Max(a, c)", {"c": rand(8)}),
    "largest": (f"{IMAGE} => float[1,4] y", "y = ReduceMax <keepdims=0> (x, a)", {"a": np.array([2, 3])}),
    "smallest": (f"{IMAGE} => float[1,1,6,5] y", "y = ReduceMin (x, a)", {"a": np.array([1])}),
    "where greater": (PAIR, "c = Greater(a, b) y = Where(c, a, b)", {}),
    "where constant": (PAIR, "y = Where(c, a, b)", {"c": np.arange(8) % 3 == 0}),
    "where far": (PAIR, "c = LessOrEqual(a, z) n = Not(c) d = Less(b, a) e = Or(n, d) y = Where(e, a, z)",
                  {"z": np.float32(0.3)}),
    "truth as numbers": (PAIR, "c = Greater(a, h) d = Equal(a, b) e = Xor(c, d) f = Cast <to=1> (e) y = Mul(f, a)",
                         {"h": rand(8)}),
    "threshold": (PAIR, "c = Greater(a, h) f = Cast <to=1> (c) y = Add(f, b)", {"h": np.float32(0.2)}),
    "integer part": ("float[2,8] a => float[2,8] y", "i = Cast <to=7> (a) y = Cast <to=1> (i)", {}),
    "remainder": ("float[2,8] a => float[2,8] y", "y = Mod <fmod=1> (a, c)", {"c": np.float32(0.75)}),
    "prelu": (f"{IMAGE} => float[1,4,6,5] y", "y = PRelu(x, s)",
              {"s": np.float32([[[-0.2]], [[0.1]], [[0.5]], [[1.2]]])}),
    "best three": ("float[3,12] x => float[3,3] y", "y, i = TopK(x, k)", {"k": np.array([3])}),
    "linear": (f"{IMAGE} => float[1,4,13,7] y", 'y = Resize <mode="linear"> (x, r, f, n)',
               {**SIZES, "n": np.array([1, 4, 13, 7])}),
    "cubic": (f"{IMAGE} => float[1,4,12,10] y", 'y = Resize <mode="cubic"> (x, r, f)',
              {"r": np.zeros(0, np.float32), "f": np.float32([1, 1, 2, 2])}),
    "linear of signals": ("float[1,4,9] x => float[1,4,4] y",
                          'y = Resize <mode="linear", coordinate_transformation_mode="align_corners"> (x, r, f, n)',
                          {**SIZES, "n": np.array([1, 4, 4])}),
    "crop": (f"{IMAGE} => float[1,4,5,7] y", 'y = Resize <mode="linear", coordinate_transformation_mode='
             '"tf_crop_and_resize", extrapolation_value=0.25> (x, r, f, n)',
             {"r": np.float32([0, 0, -0.3, 0.2, 1, 1, 1.2, 0.8]), "f": SIZES["f"], "n": np.array([1, 4, 5, 7])}),
    "grid": (f"{IMAGE} => float[1,4,3,7] y", "y = GridSample(x, g)",
             {"g": np.random.default_rng(1).uniform(-1.2, 1.2, (1, 3, 7, 2)).astype(np.float32)}),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["w8a8", "w8a16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_operator_means_what_its_qdq_form_means(case, precision):
    header, body, constants = case
    qdq = quantize(float_graph(header, body, **constants), precision=precision)
    result = integer(qdq)
    stages.check(result, Stage.INTEGER)
    worst, share = differences(qdq, result)
    assert worst <= (1 if precision == "w8a8" else 2) and share < (0.02 if precision == "w8a8" else 0.5)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("size", [(63, 64), (40, 20), (9, 90)])
def test_two_axes_of_interpolation_are_within_half_a_step_and_little_more(mode, size):
    header = f"float[4,16,32,32] x => float[4,16,{size[0]},{size[1]}] y"
    body = f'y = Resize <mode="{mode}"> (x, r, f, n)'
    graph = float_graph(header, body, **SIZES, n=np.array([4, 16, *size]))
    qdq = quantize(graph)
    result = integer(qdq)
    values = Oracle(result).run_all({"x": rand(4, 16, 32, 32)})
    read, made = (read_quantizer(qdq, qdq.value(name).producer()).params for name in ("x_dequantized", "y"))
    x = (values["x_quantized"].astype(np.int64) - int(read.zero_point)).astype(np.float32) * read.scale
    (want,) = run_node("Resize", [x, None, None, np.array([4, 16, *size])], {"mode": mode})
    steps = np.clip(want / np.float64(made.scale) + int(made.zero_point), made.format.min, made.format.max)
    got = values[result.outputs[0].producer().inputs[0].name]
    assert np.abs(got - steps).max() < 0.52


def prepared(graph, samples):
    """The integer graph after calibration on `samples`."""
    context = Context(samples=load_samples(samples, graph))
    for module in (check_support, decide, set_ranges, insert_qdq):
        graph = module.run(graph, module.Options(), context)
    return graph, integerize.run(graph, integerize.Options(), Context())


NUMBERS = {
    "arg max": ("float[2,9] x => int64[2] y", "y = ArgMax <axis=1, keepdims=0> (x)", {}),
    "arg min as int32": ("float[2,9] x => int32[1,9] y", "p = ArgMin(x) y = Cast <to=6> (p)", {}),
    "places": ("float[2,9] x => int64[2,4] y", "v, y = TopK(x, k)", {"k": np.array([4])}),
    "truth": ("float[2,9] x => bool[2,9] y", "y = GreaterOrEqual(x, h)", {"h": np.float32(0.1)}),
    "class of a score": ("float[2,9] x => float[2,3] y", "p = ArgMax <axis=1, keepdims=0> (x) y = Gather(w, p)",
                         {"w": rand(9, 3)}),
}  # fmt: skip


@pytest.mark.parametrize("case", NUMBERS.values(), ids=NUMBERS)
def test_numbers_are_those_of_the_quantized_values(case):
    header, body, constants = case
    x = rand(16, 9)
    qdq, result = prepared(float_graph(header, body, **constants), {"x": x})
    stages.check(result, Stage.INTEGER)
    for part in (x[:2], x[6:8]):
        (got,), (want,) = Oracle(result).run({"x": part}), Session(qdq).run({"x": part})
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_ids_and_masks_choose():
    graph = float_graph(
        "int64[1,6] ids, bool[1,6] seen, float[1,6] x => float[1,6] y",
        "c = Equal(ids, z) n = Not(c) d = And(n, seen) y = Where(d, x, far)", z=np.int64(0), far=np.float32(-2),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    samples = {"ids": rng.integers(0, 3, (8, 6)), "seen": rng.random((8, 6)) < 0.6, "x": rand(8, 6)}
    qdq, result = prepared(graph, samples)
    sample = {name: array[:1] for name, array in samples.items()}
    np.testing.assert_array_equal(Oracle(result).run(sample)[0], Session(qdq).run(sample)[0])


MASKS = {
    "factor": "f = Cast <to=1> (m) g = Unsqueeze(f, axis) h = Sub(one, g) mask = Mul(h, far) t = Add(scores, mask)",
    "where": "c = Cast <to=9> (m) g = Unsqueeze(c, axis) t = Where(g, scores, far)",
    "equal": "c = Equal(m, zero) g = Unsqueeze(c, axis) t = Where(g, far, scores)",
}  # fmt: skip


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("far", [-1e9, float(np.finfo(np.float32).min)])
def test_attention_masks_that_enter_as_integers(mask, far):
    body = f"scores = MatMul(x, k) {mask} y = Softmax(t)"
    graph = float_graph("float[1,8,4] x, float[1,4,8] k, int64[1,8] m => float[1,8,8] y", body, axis=np.array([1]),
                        one=np.float32(1), far=np.float32(far), zero=np.int64(0))  # fmt: skip
    rng = np.random.default_rng(2)
    seen = (np.arange(8) < rng.integers(3, 9, (16, 1))).astype(np.int64)
    samples = {"x": rand(16, 8, 4), "k": rand(16, 4, 8), "m": seen}
    result = quantize_model(graph.model, samples, "minmax")
    for i in range(4):
        sample = {name: array[i : i + 1] for name, array in samples.items()}
        (got,), (want,) = Oracle(result.integer_graph).run(sample), Session(graph).run(sample)
        assert (got[..., seen[i] == 0] == 0).all() and np.abs(got - want).max() < 0.03


@pytest.mark.parametrize("target", ["cpu", "c"])
def test_integers_leave_a_bundle(target, tmp_path):
    graph = float_graph(
        "float[1,3,8,8] x => int64[1,16,16] place, bool[1,3,16,16] near, float[1,3,16,16] y",
        'y = Resize <mode="linear"> (x, r, f) place = ArgMax <axis=1, keepdims=0> (y) near = Greater(y, h)',
        r=np.zeros(0, np.float32), f=np.float32([1, 1, 2, 2]), h=np.float32(0.5),
    )  # fmt: skip
    x = rand(8, 3, 8, 8)
    bundle = compile_model(graph.model, target, {"x": x}, "minmax", output=tmp_path / "bundle")
    run, oracle = bundle_runner(bundle), Oracle(bundle.integer_graph())
    assert [spec["dtype"] for spec in bundle.manifest["outputs"]] == ["int64", "bool", "float32"]
    for i in range(4):
        for got, want in zip(run({"x": x[i : i + 1]}), oracle.run({"x": x[i : i + 1]}), strict=True):
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("opset", "operator"), [(7, "Upsample"), (9, "Upsample"), (10, "Resize")])
@pytest.mark.parametrize(("mode", "becomes"), [("nearest", "Resize"), ("linear", "Interpolate")])
def test_older_spellings_of_resize(opset, operator, mode, becomes):
    scales = "" if opset == 7 else ", float[4] s"
    given = "y = Upsample <scales=[1.0,1.0,2.0,2.0]," if opset == 7 else f"y = {operator} <"
    text = (
        f'<ir_version: 6, opset_import: ["": {opset}]> g (float[1,3,8,8] x{scales}) => (float[1,3,16,16] y) '
        f'{{ {given} mode="{mode}"> ({"x" if opset == 7 else "x, s"}) }}'
    )
    constants = {} if opset == 7 else {"s": np.float32([1, 1, 2, 2])}
    result = quantize_model(Graph.parse(text, **constants).model, {"x": rand(4, 3, 8, 8)}, "minmax")
    assert {node.op_type for node in result.integer_graph.nodes()[1:-1]} == {becomes}


REFUSED = {
    "integers": ("float[3] x, int64[3] a => int64[3] y", "c = Greater(x, x) y = Where(c, a, a)", "Where computes"),
    "computed indices": ("float[4,4] x, int64[2] a, int64[2] b => float[2,4] y", "i = Add(a, b) y = Gather(x, i)",
                         "that Add computes"),
    "count": ("float[9] x, int64[1] k => float[?] y", "y, i = TopK(x, k)", "data"),
    "slope": ("float[2,4] x, float[4] s => float[2,4] y", "y = PRelu(x, s)", "not constant"),
    "grid": ("float[1,1,4,4] x, float[1,2,2,2] g => float[1,1,2,2] y", "y = GridSample(x, g)", "not constant"),
    "transform": ("float[1,8,1] x => float[1,8,2] y", "y = DFT(x)", "DFT"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refusals_name_what_stands_in_the_way(case):
    header, body, why = case
    with pytest.raises(Exception, match=why) as caught:
        graph = float_graph(header.replace("?", "k"), body)
        samples = {
            str(v.name): rand(*graph.shape(v)) if v.dtype == ir.DataType.FLOAT else np.zeros(graph.shape(v), np.int64)
            for v in graph.inputs
        }
        prepared(graph, {name: array[None] for name, array in samples.items()})
    assert caught.type is UnsupportedError or caught.type.__name__ == "ModelError"
