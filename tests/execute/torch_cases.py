"""One small model for every operator that the torch executor runs: header, body, constants, and what inputs may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qcompiler.graph.functions import define
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph


@dataclass(frozen=True)
class Case:
    """`differentiable`: gradients are those of the function (rounding has straight-through ones, choices none)."""

    header: str
    body: str
    constants: dict[str, Any] = field(default_factory=dict)
    low: float = -2.0
    high: float = 2.0
    differentiable: bool = True
    opset: int = 21

    def graph(self) -> Graph:
        inputs, outputs = self.header.split("=>")
        declared = [f"{_type(array)} {name}" for name, array in self.constants.items()]
        head = f'<ir_version: 10, opset_import: ["": {self.opset}, "qcompiler": 1]>'
        text = f"{head} g ({', '.join([inputs, *declared])}) => ({outputs}) {{ {self.body} }}"
        graph = load_graph(Graph.parse(text, **self.constants).model, lifted=False)
        for node in graph.nodes(domain="qcompiler"):
            define(graph, node.op_type)
        return graph

    def inputs(self, graph: Graph, seed: int) -> dict[str, np.ndarray]:
        """Random arrays, distinct and off integers and halves, at which some operators bend."""
        rng = np.random.default_rng(seed)
        found = {}
        for value in graph.inputs:
            shape, dtype = graph.shape(value), value.dtype.numpy()
            if dtype.kind == "f":
                x = rng.permutation(np.linspace(self.low, self.high, int(np.prod(shape)) + 2)[1:-1])
                x = x + 0.01 * rng.random(x.shape)
                found[value.name] = np.where(np.abs(2 * x - np.rint(2 * x)) < 0.02, x + 0.03, x).reshape(shape)
                found[value.name] = found[value.name].astype(np.float32)
            else:
                found[value.name] = rng.integers(0, 2 if dtype.kind == "b" else 3, shape).astype(dtype)
        return found


def _type(array: Any) -> str:
    kind = {"f": "float", "i": "int64", "b": "bool", "u": "uint8"}[np.asarray(array).dtype.kind]
    return f"{kind}[{','.join(map(str, np.shape(array)))}]" if np.ndim(array) else kind


def _f(*shape: int, seed: int = 0, low: float = -1.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, 1.0, shape).astype(np.float32)


def _i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _unary(body: str, low: float = -2.0, high: float = 2.0, differentiable: bool = True, opset: int = 21) -> Case:
    return Case("float[1,2,6] x => float[1,2,6] y", f"y = {body}", {}, low, high, differentiable, opset)


def _pair(op: str, **more: Any) -> Case:
    return Case("float[1,3,4] a, float[4] b => float[1,3,4] y", f"y = {op}(a, b)", **more)


def _compare(op: str) -> Case:
    body = f"t = {op}(a, b)  y = Cast<to = 1>(t)"
    return Case("float[1,3,4] a, float[4] b => float[1,3,4] y", body, differentiable=False)


def _logic(op: str) -> Case:
    body = f"s = Greater(a, b)  t = Less(a, c)  u = {op}(s, t)  y = Cast<to = 1>(u)"
    return Case("float[3,4] a, float[4] b, float[4] c => float[3,4] y", body, differentiable=False)


def _reduce(op: str, *axes: int, **more: Any) -> Case:
    shape = ",".join("1" if i in axes or i - 4 in axes else str(n) for i, n in enumerate((1, 2, 3, 4)))
    return Case(f"float[1,2,3,4] x => float[{shape}] y", f"y = {op}(x, axes)", {"axes": _i(*axes)}, **more)


_TABLE = np.random.default_rng(3).uniform(-1, 1, (5, 4)).astype(np.float32)
_AXIS_UNARY = ("Softmax", "LogSoftmax")
_PLAIN = (
    "Abs", "Atan", "Asinh", "Cos", "Cosh", "Erf", "Exp", "Identity", "Neg", "Sigmoid", "Sin", "Sinh", "Softplus",
    "Softsign", "Tanh", "Relu", "HardSwish", "HardSigmoid", "Mish", "Elu", "Celu", "Selu", "LeakyRelu", "Gelu",
    "ThresholdedRelu", "Dropout",
)  # fmt: skip
CASES: dict[str, Case] = {
    **{name: _unary(f"{name}(x)") for name in _PLAIN},
    **{name: _unary(f"{name}(x)", -0.9, 0.9) for name in ("Acos", "Asin", "Atanh", "Tan")},
    **{name: _unary(f"{name}(x)", 1.1, 3.0) for name in ("Acosh", "Log", "Sqrt", "Reciprocal")},
    **{name: _unary(f"{name}(x)", differentiable=False) for name in ("Ceil", "Floor", "Round", "Sign")},
    **{name: _unary(f"{name}<axis = 2>(x)") for name in _AXIS_UNARY},
    "Hardmax": _unary("Hardmax<axis = 1>(x)", differentiable=False),
    "Gelu tanh": _unary('Gelu<approximate = "tanh">(x)'),
    "HardSigmoid given": _unary("HardSigmoid<alpha = 0.3, beta = 0.4>(x)"),
    "Elu given": _unary("Elu<alpha = 0.5>(x)"),
    "Celu given": _unary("Celu<alpha = 0.5>(x)"),
    "Shrink": _unary("Shrink<lambd = 0.6, bias = 0.2>(x)"),
    "Swish": _unary("Swish<alpha = 1.5>(x)", opset=24),
    "qcompiler::Swish": _unary("qcompiler.Swish(x)"),
    "qcompiler::QuickGelu": _unary("qcompiler.QuickGelu(x)"),
    "Cast": Case("int64[3] k, float[3] x => float[3] y", "t = Cast<to = 1>(k)  y = Mul(x, t)"),
    "Cast of float": Case("float[3,4] x => int64[3,4] y", "y = Cast<to = 7>(x)", differentiable=False),
    "CastLike": Case("float[3] x, int64[1] k => float[3] y", "t = CastLike(k, x)  y = Add(x, t)"),
    "Clip": Case("float[2,6] x => float[2,6] y", "y = Clip(x, low, high)",
                 {"low": np.float32(-0.7), "high": np.float32(1.1)}),
    "Clip one side": Case("float[2,6] x => float[2,6] y", "y = Clip(x, , high)", {"high": np.float32(0.7)}),
    "Clip between activations": Case("float[2,6] x, float a => float[2,6] y", "y = Clip(x, a)"),
    **{name: _pair(name) for name in ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean")},
    "Div": _pair("Div", low=1.1),
    "Div of integers": Case("int64[3] a, int64[3] b => int64[3] y", "c = Add(b, one)  y = Div(a, c)",
                            {"one": _i(1)}, differentiable=False),
    "Pow": _pair("Pow", low=0.5),
    "Mod": Case("float[3,4] a => float[3,4] y", "y = Mod<fmod = 1>(a, b)", {"b": np.float32(0.77)}),
    "Mod of integers": Case("int64[4] a => int64[4] y", "s = Sub(a, b)  y = Mod(s, b)", {"b": _i(2)},
                            differentiable=False),
    "Add of a row and a column": Case("float[1,3] a, float[4,1] b => float[4,3] y", "y = Add(a, b)"),
    "Max of three": Case("float[3,4] a, float[4] b, float[1] c => float[3,4] y", "y = Max(a, b, c)"),
    "PRelu": Case("float[1,3,4] x => float[1,3,4] y", "y = PRelu(x, s)", {"s": _f(3, 1)}),
    "Where": Case("float[3,4] a, float[4] b => float[3,4] y", "t = Less(a, b)  y = Where(t, a, zero)",
                  {"zero": np.float32(0.5)}),
    **{name: _compare(name) for name in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")},
    **{name: _logic(name) for name in ("And", "Or", "Xor")},
    "Not": Case("float[3] a, float[3] b => float[3] y", "s = Less(a, b)  t = Not(s)  y = Cast<to = 1>(t)",
                differentiable=False),
    "QuantizeLinear": Case("float[3,4] x => uint8[3,4] y", "y = QuantizeLinear(x, s, z)",
                           {"s": np.float32(0.1), "z": np.uint8(100)}, differentiable=False),
    "DequantizeLinear": Case("uint8[3,4] x => float[3,4] y", "y = DequantizeLinear<axis = 1>(x, s, z)",
                             {"s": _f(4, low=0.1), "z": np.array([1, 2, 3, 4], np.uint8)}, differentiable=False),
    # products
    "Conv": Case("float[1,4,7,6] x => float[1,6,4,2] y",
                 "y = Conv<group = 2, strides = [2, 2], pads = [1, 0, 1, 1], dilations = [1, 2]>(x, w, b)",
                 {"w": _f(6, 2, 3, 3), "b": _f(6)}),
    "Conv without bias": Case("float[2,3,5,5] x => float[2,4,5,5] y", "y = Conv<pads = [1, 1, 1, 1]>(x, w)",
                              {"w": _f(4, 3, 3, 3)}),
    "Conv auto_pad": Case("float[1,3,6,5] x => float[1,4,3,3] y",
                          'y = Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)', {"w": _f(4, 3, 2, 2)}),
    "Conv of one axis": Case("float[1,3,8] x => float[1,2,6] y", "y = Conv(x, w, b)", {"w": _f(2, 3, 3), "b": _f(2)}),
    "Conv of three axes": Case("float[1,2,3,4,3] x => float[1,2,2,3,2] y", "y = Conv(x, w)", {"w": _f(2, 2, 2, 2, 2)}),
    "Conv with activations": Case("float[1,3,5,5] x, float[2,3,3,3] w => float[1,2,3,3] y", "y = Conv(x, w)"),
    "ConvTranspose": Case(
        "float[1,4,3,4] x => float[1,6,6,8] y",
        "y = ConvTranspose<group = 2, strides = [2, 2], pads = [1, 0, 0, 1], output_padding = [0, 0]>(x, w, b)",
        {"w": _f(4, 3, 3, 3), "b": _f(6)}),
    "ConvTranspose output_padding": Case(
        "float[1,2,3,3] x => float[1,2,6,6] y",
        "y = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]>(x, w)",
        {"w": _f(2, 2, 3, 3)}),
    "Gemm": Case("float[2,3] x => float[2,4] y", "y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, b)",
                 {"w": _f(4, 3), "b": _f(4)}),
    "Gemm transA": Case("float[3,2] x, float[3,4] w => float[2,4] y", "y = Gemm<transA = 1>(x, w)"),
    "MatMul": Case("float[1,3,4] x => float[1,3,5] y", "y = MatMul(x, w)", {"w": _f(4, 5)}),
    "MatMul of activations": Case("float[1,2,3,4] a, float[2,4,5] b => float[1,2,3,5] y", "y = MatMul(a, b)"),
    "MatMul of vectors": Case("float[4] a, float[4] b => float y", "y = MatMul(a, b)"),
    "MatMul of a vector": Case("float[4] a, float[2,4,3] b => float[2,3] y", "y = MatMul(a, b)"),
    "MatMul by a vector": Case("float[2,3,4] a => float[2,3] y", "y = MatMul(a, b)", {"b": _f(4)}),
    "MatMul of a constant": Case("float[1,4,3] x => float[1,5,3] y", "y = MatMul(w, x)", {"w": _f(5, 4)}),
    "MatMul by many": Case("float[3,4] x => float[2,3,5] y", "y = MatMul(x, w)", {"w": _f(2, 4, 5)}),
    "Einsum": Case("float[1,2,3] a, float[4,3] b => float[1,2,4] y", 'y = Einsum<equation = "bij,kj->bik">(a, b)'),
    "Einsum implicit": Case("float[2,3] a, float[3,4] b => float[2,4] y", 'y = Einsum<equation = "ij,jk">(a, b)'),
    # windows
    "MaxPool": Case("float[1,2,6,7] x => float[1,2,4,4] y",
                    "y = MaxPool<kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 1], ceil_mode = 1>(x)"),
    "MaxPool dilated": Case("float[1,2,6,7] x => float[1,2,4,5] y",
                            "y = MaxPool<kernel_shape = [2, 2], dilations = [2, 2]>(x)"),
    "AveragePool": Case("float[1,2,6,7] x => float[1,2,3,4] y",
                        "y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 1]>(x)"),
    "AveragePool counting pads": Case(
        "float[1,2,6,7] x => float[1,2,4,4] y",
        "y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1, "
        "count_include_pad = 1>(x)"),
    "AveragePool of one axis": Case("float[1,2,6] x => float[1,2,3] y",
                                    "y = AveragePool<kernel_shape = [2], strides = [2]>(x)"),
    "LpPool": Case("float[1,2,6,6] x => float[1,2,3,3] y", "y = LpPool<kernel_shape = [2, 2], strides = [2, 2]>(x)"),
    "GlobalAveragePool": Case("float[1,2,3,4] x => float[1,2,1,1] y", "y = GlobalAveragePool(x)"),
    "GlobalMaxPool": Case("float[1,2,3,4] x => float[1,2,1,1] y", "y = GlobalMaxPool(x)"),
    "GlobalLpPool": Case("float[1,2,3,4] x => float[1,2,1,1] y", "y = GlobalLpPool<p = 2>(x)"),
    "Resize": Case("float[1,2,3,4] x => float[1,2,6,8] y",
                   'y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", '
                   'nearest_mode = "floor">(x, , s)', {"s": np.array([1, 1, 2, 2], np.float32)}),
    "Resize linear": Case("float[1,2,3,4] x => float[1,2,6,7] y", 'y = Resize<mode = "linear">(x, , , n)',
                          {"n": _i(1, 2, 6, 7)}),
    "Resize cubic": Case("float[1,1,4,4] x => float[1,1,8,8] y", 'y = Resize<mode = "cubic">(x, , s)',
                         {"s": np.array([1, 1, 2, 2], np.float32)}),
    "GridSample": Case("float[1,2,4,5] x => float[1,2,3,3] y", "y = GridSample(x, g)", {"g": _f(1, 3, 3, 2)}),
    "DepthToSpace": Case("float[1,8,2,3] x => float[1,2,4,6] y", "y = DepthToSpace<blocksize = 2>(x)"),
    "DepthToSpace CRD": Case("float[1,8,2,3] x => float[1,2,4,6] y",
                             'y = DepthToSpace<blocksize = 2, mode = "CRD">(x)'),
    "SpaceToDepth": Case("float[1,2,4,6] x => float[1,8,2,3] y", "y = SpaceToDepth<blocksize = 2>(x)"),
    # normalizations
    "BatchNormalization": Case("float[1,3,2,2] x => float[1,3,2,2] y", "y = BatchNormalization(x, s, b, m, v)",
                               {"s": _f(3), "b": _f(3), "m": _f(3), "v": _f(3, low=0.5)}),
    "LayerNormalization": Case("float[1,3,4] x => float[1,3,4] y", "y = LayerNormalization(x, s, b)",
                               {"s": _f(4), "b": _f(4)}),
    "LayerNormalization of two axes": Case("float[2,3,4] x => float[2,3,4] y", "y = LayerNormalization<axis = 1>(x, s)",
                                           {"s": _f(3, 4)}),
    "RMSNormalization": Case("float[1,3,4] x => float[1,3,4] y", "y = RMSNormalization(x, s)", {"s": _f(4)}, opset=23),
    "qcompiler::RMSNormalization": Case("float[1,3,4] x => float[1,3,4] y",
                                        "y = qcompiler.RMSNormalization<axis = -1, epsilon = 0.00001>(x, s)",
                                        {"s": _f(4)}),
    "InstanceNormalization": Case("float[1,3,2,4] x => float[1,3,2,4] y", "y = InstanceNormalization(x, s, b)",
                                  {"s": _f(3), "b": _f(3)}),
    "GroupNormalization": Case("float[1,4,2,3] x => float[1,4,2,3] y",
                               "y = GroupNormalization<num_groups = 2>(x, s, b)", {"s": _f(4), "b": _f(4)}),
    "MeanVarianceNormalization": Case("float[1,2,3,3] x => float[1,2,3,3] y", "y = MeanVarianceNormalization(x)"),
    "LpNormalization": Case("float[2,3,4] x => float[2,3,4] y", "y = LpNormalization<axis = 1, p = 2>(x)"),
    "LRN": Case("float[1,5,2,2] x => float[1,5,2,2] y", "y = LRN<size = 3, alpha = 0.5, bias = 0.7>(x)"),
    # reductions
    "ReduceMean": _reduce("ReduceMean", 2, -1), "ReduceSum": _reduce("ReduceSum", 1),
    "ReduceMax": _reduce("ReduceMax", 3),
    "ReduceMin": _reduce("ReduceMin", 1, 2), "ReduceL1": _reduce("ReduceL1", 2), "ReduceL2": _reduce("ReduceL2", 3),
    "ReduceProd": _reduce("ReduceProd", 2, 3, low=0.5), "ReduceSumSquare": _reduce("ReduceSumSquare", 1),
    "ReduceLogSum": _reduce("ReduceLogSum", 3, low=0.5), "ReduceLogSumExp": _reduce("ReduceLogSumExp", 2),
    "ReduceMean of all": Case("float[1,2,3] x => float y", "y = ReduceMean<keepdims = 0>(x)"),
    "ArgMax": Case("float[2,5] x => int64[2,1] y", "y = ArgMax<axis = 1>(x)", differentiable=False),
    "ArgMin": Case("float[2,5] x => int64[5] y", "y = ArgMin<axis = 0, keepdims = 0, select_last_index = 1>(x)",
                   differentiable=False),
    "CumSum": Case("float[2,5] x => float[2,5] y", "y = CumSum<reverse = 1, exclusive = 1>(x, a)", {"a": _i(1)}),
    # movement
    "Reshape": Case("float[1,2,6] x => float[1,3,4] y", "y = Reshape(x, s)", {"s": _i(1, -1, 4)}),
    "Flatten": Case("float[1,2,6] x => float[2,6] y", "y = Flatten<axis = 2>(x)"),
    "Squeeze": Case("float[1,2,1,6] x => float[2,6] y", "y = Squeeze(x)"),
    "Unsqueeze": Case("float[2,6] x => float[1,2,1,6] y", "y = Unsqueeze(x, a)", {"a": _i(0, 2)}),
    "Transpose": Case("float[1,2,3] x => float[3,1,2] y", "y = Transpose<perm = [2, 0, 1]>(x)"),
    "Transpose reversed": Case("float[1,2,3] x => float[3,2,1] y", "y = Transpose(x)"),
    "Concat": Case("float[1,2,3] a, float[1,2,2] b => float[1,2,6] y", "y = Concat<axis = -1>(a, c, b)",
                   {"c": _f(1, 2, 1)}),
    "Split": Case("float[1,5] x => float[1,2] y, float[1,3] z", "y, z = Split<axis = 1>(x, n)", {"n": _i(2, 3)}),
    "Slice": Case("float[1,6,7] x => float[1,2,3] y", "y = Slice(x, b, e, a, s)",
                  {"b": _i(1, -1), "e": _i(5, -7), "a": _i(1, -1), "s": _i(2, -2)}),
    "Pad": Case("float[1,2,3] x => float[1,4,4] y", "y = Pad(x, p, v)",
                {"p": _i(0, 1, 2, 0, 1, -1), "v": np.float32(0.5)}),
    "Pad reflect": Case("float[1,4] x => float[1,9] y", 'y = Pad<mode = "reflect">(x, p, , a)',
                        {"p": _i(2, 3), "a": _i(-1)}),
    "Pad edge": Case("float[2,3] x => float[3,6] y", 'y = Pad<mode = "edge">(x, p)', {"p": _i(0, 2, 1, 1)}),
    "Pad wrap": Case("float[1,4] x => float[1,9] y", 'y = Pad<mode = "wrap">(x, p)', {"p": _i(0, 2, 0, 3)}),
    "Expand": Case("float[3,1] x => float[2,3,4] y", "y = Expand(x, s)", {"s": _i(2, 1, 4)}),
    "Tile": Case("float[2,3] x => float[4,9] y", "y = Tile(x, r)", {"r": _i(2, 3)}),
    "Gather": Case("float[2,5,3] x => float[2,2,2,3] y", "y = Gather<axis = 1>(x, i)",
                   {"i": np.array([[0, -1], [2, 2]])}),
    "Gather from a table": Case("int64[1,3] i => float[1,3,4] y", "y = Gather(t, i)", {"t": _TABLE}),
    "Gather by activations": Case("float[2,3,4] x, int64[2] i => float[2,2,4] y", "y = Gather<axis = 1>(x, i)"),
    "Gather from columns": Case("int64[2] i => float[5,2] y", "y = Gather<axis = 1>(t, i)", {"t": _TABLE}),
    "GatherElements": Case("float[3,4] x, int64[3,2] i => float[3,2] y", "y = GatherElements<axis = 1>(x, i)"),
    "GatherND": Case("float[3,4,2] x => float[2,2] y", "y = GatherND(x, i)", {"i": np.array([[0, 1], [2, -1]])}),
    "GatherND by activations": Case("float[3,4,2] x, int64[2,2] i => float[2,2] y", "y = GatherND(x, i)"),
    "ScatterElements": Case("float[3,4] x, float[1,2] u => float[3,4] y", "y = ScatterElements<axis = 1>(x, i, u)",
                            {"i": np.array([[3, 0]])}),
    "ScatterElements adds": Case("float[3,4] x, float[1,2] u => float[3,4] y",
                                 'y = ScatterElements<axis = 1, reduction = "add">(x, i, u)',
                                 {"i": np.array([[3, 3]])}),
    "ScatterND": Case("float[3,4] x, float[2,4] u => float[3,4] y", "y = ScatterND(x, i, u)",
                      {"i": np.array([[2], [0]])}),
    "TopK": Case("float[2,5] x => float[2,3] y, int64[2,3] z", "y, z = TopK<axis = 1>(x, k)", {"k": _i(3)},
                 differentiable=False),
    "Trilu": Case("float[1,4,4] x => float[1,4,4] y", "y = Trilu<upper = 0>(x, k)", {"k": np.int64(1)}),
}  # fmt: skip
