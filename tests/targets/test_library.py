"""Every operator that can be in a float island: TVM's kernel against onnxruntime's, on the same 16-bit codes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.calibrate.data import load_samples
from qcompiler.context import Context
from qcompiler.errors import UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.io import load_graph
from qcompiler.graph.islands import ISLAND_KEY, OPERATORS, can_be_island, is_island
from qcompiler.graph.model import Graph
from qcompiler.passes import check_support, decide, insert_qdq, integerize, recognize_norms, set_ranges
from qcompiler.targets.cpu.build import build
from qcompiler.targets.cpu.capabilities import CAPABILITIES
from qcompiler.targets.shared.library import refuses
from tests.quantized import float_graph

UNARY = (
    "Asinh Atan Cos Cosh Elu Erf Exp Gelu Mish Neg Selu Shrink Sigmoid Sin Sinh Softplus Softsign Tan Tanh "
    "Softmax LogSoftmax Hardmax Trilu"
)
"""Of any x."""
POSITIVE = "Log Reciprocal Sqrt"
REDUCTIONS = "ReduceL1 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare"
BINARY = "Add Sub Mul Max Min Mean Sum"
CHOICES = "Equal Greater GreaterOrEqual Less LessOrEqual"
LOGIC = "And Or Xor"
BODIES = {
    **{name: f"{name}_y = {name} (x)" for name in UNARY.split()},
    **{name: f"{name}_y = {name} (p)" for name in POSITIVE.split()},
    **{name: f"{name}_y = {name} (p, axes)" for name in REDUCTIONS.split()},
    **{name: f"{name}_y = {name} (x, z)" for name in BINARY.split()},
    **{name: f"{name}_c = {name} (x, z) {name}_y = Where ({name}_c, x, z)" for name in CHOICES.split()},
    **{
        name: f"{name}_a = Less (x, z) {name}_b = Greater (x, ones) {name}_c = {name} ({name}_a, {name}_b) "
        f"{name}_y = Where ({name}_c, x, z)"
        for name in LOGIC.split()
    },
    "Not": "Not_a = Less (x, z) Not_c = Not (Not_a) Not_y = Where (Not_c, x, z)",
    "Where": "Where_y = Where (some, x, z)",
    "Acos": "Acos_y = Acos (u)",
    "Asin": "Asin_y = Asin (u)",
    "Atanh": "Atanh_y = Atanh (u)",
    "Acosh": "Acosh_y = Acosh (p)",
    "Div": "Div_y = Div (x, p)",
    "Mod": "Mod_y = Mod <fmod = 1> (x, p)",
    "Pow": "Pow_y = Pow (p, x)",
    "Conv": "Conv_y = Conv <pads = [1, 1, 1, 1]> (v, k)",
    "ConvTranspose": "ConvTranspose_y = ConvTranspose <strides = [2, 2]> (v, k)",
    "Gemm": "Gemm_y = Gemm <transB = 1, alpha = 0.5> (m, m)",
    "MatMul": "MatMul_y = MatMul (x, q)",
    "PRelu": "PRelu_y = PRelu (x, z)",
    "CumSum": "CumSum_y = CumSum (x, last)",
    "Einsum": 'Einsum_y = Einsum <equation = "bij,bkj->bik"> (x, z)',
    "GatherElements": "GatherElements_y = GatherElements <axis = 2> (x, places)",
    "LayerNormalization": "LayerNormalization_y = LayerNormalization (x, scales)",
    "RMSNormalization": "RMSNormalization_y = RMSNormalization (x, scales)",
    "InstanceNormalization": "InstanceNormalization_y = InstanceNormalization (v, four, four)",
    "GroupNormalization": "GroupNormalization_y = GroupNormalization <num_groups = 2> (v, four, four)",
    "GridSample": "GridSample_y = GridSample <align_corners = 0> (v, g)",
    "LRN": "LRN_y = LRN <size = 3> (v)",
    "LpPool": "LpPool_y = LpPool <kernel_shape = [2, 2], strides = [2, 2]> (v)",
    "Resize": 'Resize_y = Resize <mode = "cubic"> (v, , , sizes)',
}

VARIANTS = (
    "CumSum <reverse = 1> (x, last)",
    "CumSum <exclusive = 1> (x, last)",
    "CumSum <reverse = 1, exclusive = 1> (x, first)",
    'Einsum <equation = "bij->jib"> (x)',
    "Elu <alpha = 0.3> (x)",
    "GatherElements <axis = -1> (x, negative)",
    'Gelu <approximate = "tanh"> (x)',
    *(
        f'GridSample <mode = "{mode}", padding_mode = "{padding}", align_corners = {corners}> (v, g)'
        for mode, padding, corners in (
            ("linear", "border", 1),
            ("linear", "reflection", 0),
            ("nearest", "zeros", 0),
            ("cubic", "border", 0),
            ("cubic", "reflection", 1),
        )
    ),
    "Hardmax <axis = 1> (x)",
    "LRN <size = 3, alpha = 0.5, beta = 0.6, bias = 2.0> (v)",
    "LayerNormalization <axis = 1, epsilon = 0.1> (x, plane, plane)",
    "LogSoftmax <axis = 0> (x)",
    "LpPool <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 0], p = 1> (v)",
    'LpPool <kernel_shape = [3, 2], strides = [2, 2], auto_pad = "SAME_UPPER"> (v)',
    "LpPool <kernel_shape = [2, 2], dilations = [2, 2]> (v)",
    "Max (x, z, row)",
    "Mean (x, row, z)",
    "Mul (x, row)",
    "ReduceMean (x)",
    "ReduceSum (x, both)",
    *(
        f'Resize <mode = "{mode}", coordinate_transformation_mode = "{where}"> (v, , times)'
        for mode, where in (
            ("linear", "half_pixel"),
            ("linear", "align_corners"),
            ("linear", "pytorch_half_pixel"),
            ("cubic", "asymmetric"),
            ("nearest", "asymmetric"),
        )
    ),
    'Resize <mode = "cubic", cubic_coeff_a = -0.5> (v, , , sizes)',
    'Resize <mode = "nearest", nearest_mode = "ceil"> (v, , , sizes)',
    "Selu <alpha = 1.1, gamma = 0.7> (x)",
    "Shrink <lambd = 0.3, bias = 0.2> (x)",
    "Softmax <axis = 1> (x)",
    "Trilu <upper = 0> (x, first)",
)
"""Attributes that change what an operator does."""
BODIES |= {f"{text.split()[0]}_{i}": f"{text.split()[0]}_{i}_y = {text}" for i, text in enumerate(VARIANTS)}

CONSTANTS = {
    "ones": np.ones((2, 3, 8), np.float32),
    "some": np.arange(48).reshape(2, 3, 8) % 3 > 0,
    "places": np.arange(30).reshape(2, 3, 5) * 7 % 8,
    "scales": np.linspace(0.5, 1.5, 8, dtype=np.float32),
    "four": np.linspace(-0.5, 1.5, 4, dtype=np.float32),
    "axes": np.array([-1]),
    "both": np.array([0, 2]),
    "first": np.array(1),
    "negative": np.arange(30).reshape(2, 3, 5) * 7 % 8 - 3,
    "plane": np.linspace(0.5, 1.5, 24, dtype=np.float32).reshape(3, 8),
    "row": np.linspace(0.5, 1.5, 3, dtype=np.float32).reshape(3, 1),
    "times": np.array([1, 1, 2, 1.5], np.float32),
    "last": np.array(-1),
    "sizes": np.array([1, 4, 9, 8]),
}
INPUTS = {
    "x": ((2, 3, 8), -2, 2),
    "z": ((2, 3, 8), -2, 2),
    "p": ((2, 3, 8), 1.1, 2),
    "u": ((2, 3, 8), -0.9, 0.9),
    "v": ((1, 4, 6, 6), -2, 2),
    "k": ((4, 4, 3, 3), -1, 1),
    "m": ((5, 6), -2, 2),
    "q": ((2, 8, 5), -2, 2),
    "g": ((1, 3, 5, 2), -1, 1),
}
"""Shape and range of each input: v is an image and g places in it."""
TYPES = {"f": "float", "i": "int64", "b": "bool"}
STEPS = 1
"""Codes of 16 bits that two float32 kernels may differ by: roundings of the same value on either side of a half."""


def _network() -> Graph:
    """One output an operator."""
    inputs = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, (shape, *_) in INPUTS.items())
    declared = [f"{TYPES[a.dtype.kind]}[{','.join(map(str, a.shape))}] {name}" for name, a in CONSTANTS.items()]
    shapes = {name: "a,b,c,d" if "(v" in body else "a,b,c" for name, body in BODIES.items()}
    shapes |= {"GroupNormalization": "1,4,6,6", "Gemm": "a,b"}  # onnx does not infer the first
    outputs = [f"float[{shapes[name]}] {name}_y" for name in sorted(BODIES)]
    text = (
        f'<ir_version: 10, opset_import: ["": 23]> g ({inputs}, {", ".join(declared).replace("[]", "")}) => '
        f"({', '.join(outputs)}) {{ {' '.join(body for _, body in sorted(BODIES.items()))} }}"
    )
    graph = load_graph(Graph.parse(text, **CONSTANTS).model)
    graph = recognize_norms.run(graph, recognize_norms.Options(), Context())
    for node in graph.nodes():  # whatever has an integer form, too
        assert can_be_island(graph, node) == "", node
        node.metadata_props[ISLAND_KEY] = "is tried"
    return graph


def _sample(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(low, high, shape).astype(np.float32) for name, (shape, low, high) in INPUTS.items()}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, dict[str, float]]:
    """The INTEGER graph, and per operator the largest difference in steps, over 3 samples and 1 and 2 threads."""
    graph = _network()
    samples = [_sample(seed) for seed in range(6)]
    context = Context(samples=load_samples(samples, graph))
    for module, options in (
        (decide, decide.Options(precision="w8a16")),
        (set_ranges, set_ranges.Options(method="minmax")),
        (insert_qdq, insert_qdq.Options()),
        (integerize, integerize.Options()),
    ):
        graph = module.run(graph, options, context)
    lowered = build(graph, {}, lambda stage, done, total: None)
    manifest = manifest_of("cpu", "float", graph, lowered.files, lowered.manifest, lowered.sizes)
    bundle = write_bundle(tmp_path_factory.mktemp("library") / "bundle", lowered.files, manifest, overwrite=False)
    oracle, worst = Oracle(graph), dict.fromkeys(sorted(BODIES), 0.0)
    steps = [float(value.producer().inputs[1].const_value.numpy()) for value in graph.outputs]
    for threads in (1, 2):
        with bundle.load(threads=threads) as session:
            for sample in samples[:3]:
                pairs = zip(worst, oracle.run(sample), session.run(sample), steps, strict=True)
                for name, want, got, step in pairs:
                    assert want.shape == got.shape and np.abs(want).max() > 10 * step, name
                    worst[name] = max(worst[name], float(np.abs(want - got).max() / step))
    return graph, worst


def test_every_operator_of_islands_is_tried():
    assert {name.split("_")[0] for name in BODIES} == OPERATORS


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('Resize <mode = "linear", antialias = 1> (v, , , sizes)', "with antialias = 1 cannot"),
        ("LpPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (v)", "with ceil_mode = 1 cannot"),
        ("ConvTranspose <strides = [2, 2], output_shape = [12, 12]> (v, k)", "with output_shape = .* cannot"),
        ("ReduceSumSquare <noop_with_empty_axes = 1> (v)", "with noop_with_empty_axes = 1 cannot"),
        (
            'Resize <mode = "linear", coordinate_transformation_mode = "half_pixel_symmetric"> (v, , , sizes)',
            "TVM's operator library says ValueError: Unsupported coordinate",
        ),
    ],
)
def test_what_the_library_does_not_do_is_refused_before_calibration(text: str, why: str):
    inputs = "float[1,4,6,6] v, float[4,4,3,3] k"
    graph = float_graph(f"{inputs} => float[a,b,c,d] y", f"y = {text}", sizes=CONSTANTS["sizes"])
    for node in graph.nodes():
        assert not can_be_island(graph, node)
        assert re.search(why, refuses(graph, node))
        node.metadata_props[ISLAND_KEY] = "is tried"
    context = Context(capabilities=CAPABILITIES)
    with pytest.raises(UnsupportedError, match=f"{why}.*Replace"):
        check_support.run(graph, check_support.Options(nonlinear="float"), context)


@pytest.mark.parametrize("name", sorted(BODIES))
def test_the_library_agrees_with_onnxruntime(compared: tuple[Graph, dict[str, float]], name: str):
    graph, worst = compared
    assert any(is_island(node) and node.op_type == name.split("_")[0] for node in graph.nodes())
    assert worst[name] <= STEPS + 0.01
