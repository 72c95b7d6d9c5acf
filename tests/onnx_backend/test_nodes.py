"""ONNX's own node tests: each passes within the bound that its scales give, or is refused by a clear error.

The cases that spell operators out as functions (`_expanded`) are left to `python -m benchmarks.onnx_backend`, which
runs all of them in both widths.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.onnx_backend.cases import ask, cases

OURS = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "Attention",
    "AveragePool", "BatchNormalization", "Ceil", "Celu", "Clip", "Compress", "Concat", "Conv", "ConvTranspose", "Cos",
    "Cosh", "CumSum", "DepthToSpace", "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten",
    "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
    "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax",
    "Identity", "InstanceNormalization", "LRN", "LSTM", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax",
    "LpPool", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mish", "Mul", "Neg", "Or", "PRelu", "Pad",
    "RMSNormalization", "RNN", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize",
    "ReverseSequence", "RotaryEmbedding", "Round", "ScatterElements", "ScatterND", "Selu", "Shrink", "Sigmoid",
    "Sign", "Sin", "Sinh", "Slice", "Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum",
    "Swish", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Unsqueeze", "Where", "Xor",
})  # fmt: skip
"""Operators with an integer form: at least one of their cases must pass."""
OTHERS = 12
"""Every so many cases of other operators are asked too: they must be refused, not break."""


@pytest.fixture(scope="module")
def outcomes():
    """What became of every case that is asked here."""
    found, skipped = [], 0
    for i, (name, model, inputs) in enumerate(cases()):
        single = len(model.graph.node) == 1
        if (single and model.graph.node[0].op_type in OURS) or i % OTHERS == 0:
            found.append(ask(name, model, inputs, "w8a8"))
        else:
            skipped += 1
    count = Counter(outcome.kind for outcome in found)
    counts = ", ".join(f"{count[kind]} {kind}" for kind in ("passed", "refused", "failed"))
    print(f"\nonnx node tests: {len(found)} run, {counts}")
    return found


def test_every_case_is_within_its_bound_or_clearly_refused(outcomes):
    failed = [f"{outcome.name}: {outcome.why}" for outcome in outcomes if outcome.kind == "failed"]
    assert not failed, "\n".join(failed)
    assert len(outcomes) > 800 and sum(outcome.kind == "passed" for outcome in outcomes) > 600


def test_every_operator_of_ours_passes_somewhere(outcomes):
    assert {outcome.operator for outcome in outcomes if outcome.kind == "passed"} >= OURS


def test_refusals_say_what_and_where(outcomes):
    for outcome in outcomes:
        if outcome.kind == "refused":
            assert outcome.why.partition(":")[0] in ("UnsupportedError", "ModelError", "CalibrationError"), outcome
            assert len(outcome.why) > 60, outcome
