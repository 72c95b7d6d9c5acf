"""Operators of transformers: the QDQ graph in onnxruntime against the oracle, what is fused, and what gets 16 bits."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler import widths
from qcompiler.assignment import softmax_mask
from qcompiler.calibrate.data import load_samples
from qcompiler.context import Context
from qcompiler.errors import UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.execute.ort import Session
from qcompiler.graph import functions, stages
from qcompiler.graph.qdq import BIAS_TOKEN, FORMAT_KEY, read_quantizer
from qcompiler.graph.stages import Stage
from qcompiler.passes import decide, insert_qdq, integerize, set_ranges
from qcompiler.target import Capabilities
from tests.quantized import differences, float_graph, integer, quantize


def rand(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


CAUSAL = np.triu(np.full((6, 6), -np.inf, np.float32), 1)
TOKENS = "float[1,6,16] x"
CASES = {
    "scores": ("float[1,2,6,8] a, float[1,2,8,6] b => float[1,2,6,6] y", "y = MatMul(a, b)", {}),
    "scaled scores": (
        "float[1,2,6,8] a, float[1,2,8,6] b => float[1,2,6,6] y", "h = MatMul(a, b) y = Mul(h, s)",
        {"s": np.float32(0.35)},
    ),
    "broadcast product": ("float[1,1,4,5] a, float[1,3,5,2] b => float[1,3,4,2] y", "y = MatMul(a, b)", {}),
    "stacked weights": ("float[3,4,5] a => float[3,4,2] y", "y = MatMul(a, w)", {"w": rand(3, 5, 2)}),
    "constant on the left": ("float[5,3] b => float[4,3] y", "y = MatMul(w, b)", {"w": rand(4, 5)}),
    "masked attention": (
        "float[1,2,6,8] q, float[1,2,8,6] k, float[1,2,6,8] v => float[1,2,6,8] y",
        "h = MatMul(q, k) c = Mul(h, s) m = Add(c, mask) p = Softmax(m) y = MatMul(p, v)",
        {"s": np.float32(0.35), "mask": CAUSAL},
    ),
    "layer norm": (f"{TOKENS} => float[1,6,16] y", "y = LayerNormalization(x, g, b)", {"g": rand(16), "b": rand(16)}),
    "layer norm without bias": (f"{TOKENS} => float[1,6,16] y", "y = LayerNormalization(x, g)", {"g": rand(16)}),
    "layer norm of two axes": (
        f"{TOKENS} => float[1,6,16] y", "y = LayerNormalization <axis=1> (x, g)", {"g": rand(6, 16)},
    ),
    "instance norm": (
        "float[1,3,4,5] x => float[1,3,4,5] y", "y = InstanceNormalization(x, g, b)", {"g": rand(3), "b": rand(3)},
    ),
    "length": (f"{TOKENS} => float[1,6,16] y", "y = LpNormalization(x)", {}),
    "wide gelu": (f"{TOKENS} => float[1,6,16] y", "a = Gelu(x) h = Add(x, a) y = LayerNormalization(h, g)",
                  {"g": rand(16)}),
    "select": (f"{TOKENS} => float[1,16] y", "y = Gather <axis=1> (x, i)", {"i": np.int64(-1)}),
    "several": (f"{TOKENS} => float[1,2,16] y", "y = Gather <axis=1> (x, i)", {"i": np.array([4, 0])}),
    "largest": (f"{TOKENS} => float[1,6,1] y", "y = ReduceMax(x, a)", {"a": np.array([-1])}),
    "smallest": (f"{TOKENS} => float[6,16] y", "y = ReduceMin <keepdims=0> (x, a)", {"a": np.array([0])}),
    "reduced length": (f"{TOKENS} => float[1,6,1] y", "y = ReduceL2(x, a)", {"a": np.array([-1])}),
    "sum": (f"{TOKENS} => float[1,1,16] y", "y = ReduceSum(x, a)", {"a": np.array([1])}),
    "tile": ("float[1,2,3] x => float[2,2,9] y", "y = Tile(x, r)", {"r": np.array([2, 1, 3])}),
    "where": ("float[2,6] a, float[2,6] b => float[2,6] y", "y = Where(c, a, b)", {"c": rand(1, 6) > 0}),
    "where with a number": ("float[2,6] a => float[2,6] y", "y = Where(c, a, n)",
                            {"c": rand(1, 6) > 0, "n": np.float32(0.5)}),
    "masked by where": (
        "float[1,2,6,8] q, float[1,2,8,6] k => float[1,2,6,6] y", "h = MatMul(q, k) m = Where(c, h, n) y = Softmax(m)",
        {"c": CAUSAL == 0, "n": np.float32(-1e9)},
    ),
    "quotient": ("float[4,6] a, float[4,1] b => float[4,6] y", "c = Exp(b) y = Div(a, c)", {}),
    "phases": ("float[1,4] x => float[1,8] y", "h = Mul(x, f) s = Sin(h) c = Cos(h) y = Concat <axis=1> (s, c)",
               {"f": np.float32([[1, 3, 9, 27]])}),
}  # fmt: skip


@pytest.mark.parametrize("arithmetic", ["float", "fixed"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_operator_means_what_its_qdq_form_means(case, arithmetic):
    header, body, constants = case
    qdq = quantize(float_graph(header, body, **constants))
    result = integer(qdq, arithmetic)
    stages.check(result, Stage.INTEGER)
    worst, share = differences(qdq, result)
    # Divisors and roots amplify a code that two float sums round apart; 16-bit codes show it.
    assert worst <= 2 and share < 0.03


def test_rms_norm_is_normalize():
    graph = float_graph("float[1,6,16] x => float[1,6,16] y", "y = Mul(x, g)", g=rand(16))
    node = graph.nodes("Mul")[0]
    functions.define(graph, "RMSNormalization")
    new = graph.add_node(
        "RMSNormalization", list(node.inputs), {"axis": -1, "epsilon": 1e-5}, before=node, domain="qcompiler",
        like=node.outputs[0],
    )  # fmt: skip
    graph.bypass(node, new.outputs[0])
    qdq = quantize(graph)
    result = integer(qdq)
    assert [n.op_type for n in result.nodes()] == ["QuantizeLinear", "Normalize", "DequantizeLinear"]
    worst, share = differences(qdq, result)
    assert worst <= 1 and share < 0.02


def test_scale_and_mask_of_attention_cost_no_operator():
    header, body, constants = CASES["masked attention"]
    result = integer(quantize(float_graph(header, body, **constants)))
    kinds = [node.op_type for node in result.nodes()]
    assert kinds.count("BatchMatMul") == 2 and kinds.count("Softmax") == 1 and "Mul" not in kinds and "Add" not in kinds


@pytest.mark.parametrize("value", [-1e4, -1e9, float(np.finfo(np.float32).min), -np.inf])
def test_masks_of_every_size_are_masks(value):
    mask = np.where(CAUSAL < 0, np.float32(value), np.float32(0))
    body = "m = Add(x, mask) y = Softmax(m)"
    graph = float_graph("float[1,2,6,6] x => float[1,2,6,6] y", body, mask=mask)
    found = softmax_mask(graph, graph.nodes("Softmax")[0])
    assert found is not None and found.cells is not None and (found.cells == (CAUSAL < 0)).all()


def test_a_bias_before_softmax_is_no_mask():
    graph = float_graph("float[1,6] x => float[1,6] y", "m = Add(x, b) y = Softmax(m)", b=rand(1, 6))
    assert softmax_mask(graph, graph.nodes("Softmax")[0]) is None


def test_a_mask_that_is_computed_hides():
    body = "n = Sub(one, m) big = Mul(n, far) h = Add(x, big) y = Softmax(h)"
    graph = float_graph(
        "float[2,3,8] x, float[2,1,8] m => float[2,3,8] y", body, one=np.float32(1), far=np.float32(-1e4)
    )
    mask = (np.arange(8) < np.array([[[5]], [[8]]])).astype(np.float32)
    x = rand(2, 3, 8)
    context = Context(samples=load_samples({"x": x, "m": mask}, graph))
    for module in (decide, set_ranges, insert_qdq):
        graph = module.run(graph, module.Options(), context)
    result = integerize.run(graph, integerize.Options(), Context())
    (got,) = Oracle(result).run({"x": x, "m": mask})
    (want,) = Session(graph).run({"x": x, "m": mask})
    assert np.abs(got - want).max() <= 1 / 256 and (got[0, :, 5:] == 0).all() and (got[0, :, :5] > 0).all()


def test_embedding_takes_the_codes_of_its_output():
    graph = float_graph("int64[1,5] ids => float[1,5,8] y", "y = Gather(w, ids)", w=rand(20, 8))
    samples = [{"ids": np.random.default_rng(i).integers(0, 20, (1, 5))} for i in range(20)]
    context = Context(samples=load_samples(samples, graph))
    for module in (decide, set_ranges, insert_qdq):
        graph = module.run(graph, module.Options(), context)
    result = integerize.run(graph, integerize.Options(), Context())
    stages.check(result, Stage.INTEGER)
    assert result.inputs[0].metadata_props["qcompiler.indices"] == "20"
    for sample in samples:
        np.testing.assert_array_equal(Oracle(result).run(sample)[0], Session(graph).run(sample)[0])


BLOCK = """
    n = LayerNormalization(x, g)  h = MatMul(n, w)  a = Add(h, b)
    r = Add(x, a)  m = LayerNormalization(r, g)
    u = MatMul(m, w)  v = MatMul(m, w2)  s = Sigmoid(u)  p = Mul(s, v)  y = MatMul(p, w)
"""


def block():
    constants = {"g": rand(16), "w": rand(16, 16), "w2": rand(16, 16, seed=1), "b": rand(16)}
    return float_graph("float[1,6,16] x => float[1,6,16] y", BLOCK, **constants)


def formats_of(qdq):
    nodes = [node for node in qdq.nodes("DequantizeLinear") if node.metadata_props[FORMAT_KEY] != BIAS_TOKEN]
    found = [read_quantizer(qdq, node) for node in nodes]
    return {one.source.name: one.params.format.token for one in found if one.codes is None}


def test_residual_streams_and_gates_get_16_bits():
    assert widths.wide_values(block()) == {"x": "uint16", "a": "uint16", "r": "uint16", "p": "int16"}
    found = formats_of(quantize(block()))
    assert (found["x"], found["r"], found["p"], found["m"]) == ("uint16", "uint16", "int16", "uint8")
    assert "uint16" not in formats_of(quantize(block(), wide=False)).values()


def test_targets_without_16_bits_keep_8():
    narrow = Capabilities((8,), (8,), ("fixed",), float_boundary=False)
    graph = block()
    context = Context(samples=load_samples({"x": rand(4, 6, 16)}, graph), capabilities=narrow)
    decide.run(graph, decide.Options(), context)
    assert context.assignment is not None
    assert all(spec.format.bits == 8 for spec in context.assignment.activations.values())


def test_right_operands_are_centred():
    header, body, constants = CASES["scores"]
    result = integer(quantize(float_graph(header, body, **constants)))
    assert result.nodes("BatchMatMul")[0].attributes["b_zero_point"].value == 0


@pytest.mark.parametrize(("body", "word"), [
    ("y = LpNormalization <p=1> (x)", "p = 1"),
    ("h = Cast <to=7> (x) y = Gather(w, h)", "computed"),
])  # fmt: skip
def test_refusals_name_the_reason(body, word):
    constants = {"w": rand(20)} if "Gather" in body else {}
    with pytest.raises(UnsupportedError, match=word):
        integer(quantize(float_graph("float[4,4] x => float[4,4] y", body, **constants)))


def test_runs_that_int32_cannot_hold_are_refused():
    n = 40_000
    graph = float_graph(f"float[1,{n}] x => float[1,{n}] y", "y = LayerNormalization(x, g)", g=np.ones(n, np.float32))
    with pytest.raises(UnsupportedError, match="too many for 16 bits"):
        integer(quantize(graph))
    assert integer(quantize(graph, wide=False)).nodes("Normalize")


POST_NORM = """
    h = MatMul(x, w)  a = Add(h, b)  n = LayerNormalization(a, g)
    [fc] f = MatMul(n, w)  r = Add(f, n)  y = LayerNormalization(r, g)
"""


def test_products_read_a_wide_value_through_a_second_quantizer():
    graph = float_graph("float[1,6,16] x => float[1,6,16] y", POST_NORM, g=rand(16), w=rand(16, 16), b=rand(16))
    qdq = quantize(graph)
    found = formats_of(qdq)
    assert found["n"] == "uint16" and found["n_dequantized"] == "uint8"
    result = integer(qdq)
    product = result.nodes("MatMul")[1]
    assert product.inputs[0].producer().op_type == "Requantize"
    worst, share = differences(qdq, result)
    assert worst <= 1 and share < 0.03
    kept = quantize(graph, exclude=("fc",), exclude_bits=16)
    assert "n_dequantized" not in formats_of(kept)


def test_rotations_get_16_bits():
    body = "a = Mul(x, c) b = Mul(z, d) s = Sub(a, b) y = Mul(s, k)"
    constants = {"c": rand(6, 16), "d": rand(6, 16), "k": rand(1, 1, 16)}
    graph = float_graph("float[1,6,16] x, float[1,6,16] z => float[1,6,16] y", body, **constants)
    found = formats_of(quantize(graph))
    assert (found["a"], found["b"], found["s"], found["y_float"]) == ("uint16", "uint16", "uint8", "uint8")
