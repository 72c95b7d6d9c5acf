"""spell_out: the same function in onnxruntime, without the operators that have no integer form of their own."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.context import Context
from qcompiler.passes import canonicalize, spell_out
from qcompiler.widths import WIDE_KEY


def rand(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


IMAGE, VOLUME = "float[2,6,4,8] x", "float[1,4,5,6,7] x"
CASES = {
    "space to depth": (f"{IMAGE} => float[2,24,2,4] y", "y = SpaceToDepth <blocksize=2> (x)", {}),
    "gather elements": ("float[3,4] x => float[3,2] y", "y = GatherElements <axis=1> (x, i)",
                        {"i": np.array([[0, -1], [2, 2], [3, 0]])}),
    "gather nd": ("float[3,4,5] x => float[2,5] y", "y = GatherND(x, i)", {"i": np.array([[0, 1], [-1, 3]])}),
    "gather nd of batches": ("float[2,4,5] x => float[2,5] y", "y = GatherND <batch_dims=1> (x, i)",
                             {"i": np.array([[1], [3]])}),
    "scatter elements": ("float[3,4] x, float[2,4] u => float[3,4] y", "y = ScatterElements <axis=0> (x, i, u)",
                         {"i": np.array([[0, 1, 2, 0], [2, 0, 1, -2]])}),
    "scatter nd": ("float[4,5] x, float[2,5] u => float[4,5] y", "y = ScatterND(x, i, u)",
                   {"i": np.array([[3], [1]])}),
    "compress": ("float[3,4] x => float[3,2] y", "y = Compress <axis=1> (x, c)",
                 {"c": np.array([True, False, False, True])}),
    "reverse": ("float[4,2] x => float[4,2] y", "y = ReverseSequence(x, n)", {"n": np.array([3, 4])}),
    "log softmax": ("float[3,9] x => float[3,9] y", "y = LogSoftmax(x)", {}),
    "log softmax inside": (f"{IMAGE} => float[2,6,4,8] y", "y = LogSoftmax <axis=1> (x)", {}),
    "hardmax": ("float[3,9] x => float[3,9] y", "y = Hardmax(x)", {}),
    "hardmax inside": (f"{IMAGE} => float[2,6,4,8] y", "y = Hardmax <axis=1> (x)", {}),
    "cumulative": ("float[2,5,3] x => float[2,5,3] y", "y = CumSum(x, a)", {"a": np.int64(1)}),
    "cumulative from the end": ("float[2,5] x => float[2,5] y", "y = CumSum <exclusive=1, reverse=1> (x, a)",
                                {"a": np.int64(-1)}),
    "mean": ("float[2,5] x, float[2,5] z, float[5] w => float[2,5] y", "y = Mean(x, z, w)", {}),
    "length one": (f"{IMAGE} => float[2,6,4,8] y", "y = LpNormalization <axis=1, p=1> (x)", {}),
    "mean and variance": (f"{IMAGE} => float[2,6,4,8] y", "y = MeanVarianceNormalization(x)", {}),
    "lrn": (f"{IMAGE} => float[2,6,4,8] y", "y = LRN <size=3, alpha=0.5, beta=0.6, bias=1.5> (x)", {}),
    "lrn wide": (f"{IMAGE} => float[2,6,4,8] y", "y = LRN <size=5, alpha=0.5> (x)", {}),
    "lp pool": (f"{IMAGE} => float[2,6,2,4] y",
                "y = LpPool <kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,0]> (x)", {}),
    "lp pool of one": (f"{IMAGE} => float[2,6,3,7] y", "y = LpPool <kernel_shape=[2,2], p=1> (x)", {}),
    "lp pool of three": ("float[1,2,9] x => float[1,2,7] y", "y = LpPool <kernel_shape=[3], p=3> (x)", {}),
    "global lp pool": (f"{IMAGE} => float[2,6,1,1] y", "y = GlobalLpPool(x)", {}),
    "conv 3d": (f"{VOLUME} => float[1,6,3,6,4] y",
                "y = Conv <pads=[1,1,1,0,1,1], strides=[2,1,2], dilations=[1,1,1]> (x, w, b)",
                {"w": rand(6, 4, 2, 3, 3), "b": rand(6)}),
    "conv 3d grouped": (f"{VOLUME} => float[1,6,3,6,7] y",
                        "y = Conv <group=2, pads=[1,1,1,1,1,1], dilations=[2,1,1]> (x, w)",
                        {"w": rand(6, 2, 3, 3, 3)}),
    "conv transpose 3d": (
        "float[1,4,3,4,5] x => float[1,6,7,8,10] y",
        "y = ConvTranspose <group=2, strides=[2,2,2], pads=[1,1,1,0,1,1], output_padding=[0,1,1]> (x, w, b)",
        {"w": rand(4, 3, 4, 3, 3), "b": rand(6)}),
    "conv transpose 3d dilated": ("float[2,3,4,4,3] x => float[2,2,6,5,4] y",
                                  "y = ConvTranspose <dilations=[2,1,1], pads=[1,0,0,1,0,0]> (x, w)",
                                  {"w": rand(3, 2, 3, 2, 2)}),
    "max pool 3d": (f"{VOLUME} => float[1,4,3,3,3] y",
                    "y = MaxPool <kernel_shape=[2,3,2], strides=[2,2,2], pads=[1,1,0,0,1,0]> (x)", {}),
    "global max pool 3d": (f"{VOLUME} => float[1,4,1,1,1] y", "y = GlobalMaxPool(x)", {}),
    "average pool 3d": (f"{VOLUME} => float[1,4,3,3,4] y",
                        "y = AveragePool <kernel_shape=[2,3,2], strides=[2,2,2], pads=[1,1,1,0,1,0]> (x)", {}),
    "largest of three": ("float[2,5] x, float[2,1] z, float[5] w => float[2,5] y", "y = Max(x, z, w)", {}),
    "between activations": ("float[2,5] x, float[5] z => float[2,5] y",
                            "lo = ReduceMin <keepdims=0> (z) y = Clip(x, lo)", {}),
    "lower triangle": ("float[2,4,5] x => float[2,4,5] y", "y = Trilu <upper=0> (x, k)", {"k": np.int64(1)}),
    "masked scores": ("float[1,3,4] x => float[1,3,4] y", "h = Where(c, x, far) y = Softmax(h)",
                      {"c": np.tril(np.ones((3, 4), bool)), "far": np.float32(-1e9)}),
    "outer product": ("float[3] x, float[4] z => float[3,4] y", 'y = Einsum <equation="i,j->ij"> (x, z)', {}),
    "attention scores": ("float[2,3,4,5] x, float[2,3,6,5] z => float[2,4,3,6] y",
                         'y = Einsum <equation="bhqd,bhkd->bqhk"> (x, z)', {}),
    "contraction": ("float[2,3,4] x, float[4,5,3] z => float[2,5] y", 'y = Einsum <equation="abc,cdb->ad"> (x, z)', {}),
    "summed before": ("float[2,3] x, float[4,2] z => float[4] y", 'y = Einsum <equation="ij,ki->k"> (x, z)', {}),
    "any dimensions": ("float[2,3,4] x, float[2,4,5] z => float[2,3,5] y",
                       'y = Einsum <equation="...ij,...jk->...ik"> (x, z)', {}),
}  # fmt: skip
SET_23 = {
    "heads": ("float[1,4,3,8] q, float[1,4,5,8] k, float[1,4,5,6] v => float[1,4,3,6] y", "y = Attention(q, k, v)", {}),
    "causal, grouped, flat": (
        "float[1,4,32] q, float[1,4,16] k, float[1,4,16] v => float[1,4,32] y",
        "y = Attention <is_causal=1, q_num_heads=4, kv_num_heads=2> (q, k, v)", {}),
    "mask": ("float[1,2,3,8] q, float[1,2,3,8] k, float[1,2,3,8] v => float[1,2,3,8] y",
             "y = Attention <scale=0.5> (q, k, v, m)", {"m": np.array([[1, 0, 1], [0, 1, 1], [1, 1, 1]], bool)}),
    "capped": ("float[1,2,3,8] q, float[1,2,3,8] k, float[1,2,3,8] v => float[1,2,3,8] y",
               "y = Attention <softcap=2.0> (q, k, v)", {}),
    "rotated": ("float[1,2,3,8] x => float[1,2,3,8] y", "y = RotaryEmbedding(x, c, s)",
                {"c": rand(1, 3, 4), "s": rand(1, 3, 4)}),
    "rotated in pairs": ("float[1,3,16] x => float[1,3,16] y",
                         "y = RotaryEmbedding <interleaved=1, num_heads=2, rotary_embedding_dim=4> (x, c, s, p)",
                         {"c": rand(9, 2), "s": rand(9, 2), "p": np.array([[2, 3, 4]])}),
}  # fmt: skip
KEPT = {
    "AveragePool", "Conv", "ConvTranspose", "Einsum", "GlobalMaxPool", "LpNormalization", "Max", "MaxPool", "Min",
    "Where",
}  # fmt: skip
REDUCTIONS = ("ReduceL1", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_function_stays_and_operator_goes(make, unchanged, case):
    header, body, constants = case
    graph = make(header, body, **constants)
    after, _ = unchanged(graph, canonicalize, spell_out)
    gone = set(spell_out.RULES) - KEPT
    assert not [node.op_type for node in after.nodes() if node.op_type in gone and not node.domain]
    windows = after.nodes("Conv", "ConvTranspose", "MaxPool", "AveragePool")
    assert all(len(node.outputs[0].shape) <= 4 for node in windows)


@pytest.mark.parametrize("case", SET_23.values(), ids=SET_23)
def test_attention_is_products_and_softmax(make, unchanged, case):
    header, body, constants = case
    after, _ = unchanged(make(header, body, opset=23, **constants), spell_out)
    assert not after.nodes("Attention", "RotaryEmbedding")


def test_a_row_that_sees_nothing_stays(make):
    header = "float[1,2,3,8] q, float[1,2,3,8] k, float[1,2,3,8] v => float[1,2,3,8] y"
    graph = make(header, "y = Attention(q, k, v, m)", opset=23, m=np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0]], bool))
    assert spell_out.run(graph, spell_out.Options(), Context()).nodes("Attention")


def test_length_moves_its_axis(make, unchanged):
    after, _ = unchanged(make("float[2,6,4] x => float[2,6,4] y", "y = LpNormalization <axis=1> (x)"), spell_out)
    assert [node.op_type for node in after.nodes()] == ["Transpose", "LpNormalization", "Transpose"]


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_stay_what_they_are(make, unchanged, op, keep):
    shape = "2,1,4" if keep else "2,4"
    graph = make(f"float[2,3,4] x => float[{shape}] y", f"y = {op} <keepdims={keep}> (x, a)", a=np.array([1]))
    after, _ = unchanged(graph, spell_out)
    assert not after.nodes(*REDUCTIONS)


def test_squares_between_get_16_bits(make):
    graph = spell_out.run(make("float[2,8] x => float[2,1] y", "y = ReduceLogSum(x, a)", a=np.array([1])),
                          spell_out.Options(), Context())  # fmt: skip
    (square,) = graph.nodes("ReduceSum")
    assert square.outputs[0].metadata_props[WIDE_KEY] == "uint16"


@pytest.mark.parametrize(
    ("header", "body", "constants"),
    [
        ("float[3,4] x, int64[3,2] i => float[3,2] y", "y = GatherElements <axis=1> (x, i)", {}),
        ("float[3,4] x, float[2,4] u => float[3,4] y", 'y = ScatterElements <reduction="add"> (x, i, u)',
         {"i": np.zeros((2, 4), np.int64)}),
        ("float[4,30] x => float[4,1] y", "y = ReduceProd(x, a)", {"a": np.array([1])}),
        ("float[3,3] x => float[3] y", 'y = Einsum <equation="ii->i"> (x)', {}),
    ],
    ids=["computed indices", "sums of equals", "many factors", "diagonal"],
)  # fmt: skip
def test_what_cannot_be_spelled_stays(make, header, body, constants):
    graph = make(header, body, **constants)
    before = [node.op_type for node in graph.nodes()]
    after = spell_out.run(graph, spell_out.Options(), Context())
    assert [node.op_type for node in after.nodes()] == before
