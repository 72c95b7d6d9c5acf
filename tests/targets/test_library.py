"""Every operator that can be in a float island: TVM's kernel against onnxruntime's, on the same 16-bit codes."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.calibrate.data import load_samples
from qcompiler.context import Context
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.io import load_graph
from qcompiler.graph.islands import ISLAND_KEY, OPERATORS, can_be_island, is_island
from qcompiler.graph.model import Graph
from qcompiler.passes import decide, insert_qdq, integerize, recognize_norms, set_ranges
from qcompiler.targets.cpu.build import build

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


CONSTANTS = {
    "ones": np.ones((2, 3, 8), np.float32),
    "some": np.arange(48).reshape(2, 3, 8) % 3 > 0,
    "places": np.arange(30).reshape(2, 3, 5) * 7 % 8,
    "scales": np.linspace(0.5, 1.5, 8, dtype=np.float32),
    "four": np.linspace(-0.5, 1.5, 4, dtype=np.float32),
    "axes": np.array([-1]),
    "last": np.array(-1),
    "sizes": np.array([1, 4, 9, 8]),
}
TYPES = {"f": "float", "i": "int64", "b": "bool"}
STEPS = 1
"""Codes of 16 bits that two float32 kernels may differ by: roundings of the same value on either side of a half."""


def _network() -> Graph:
    """One output an operator, x and z any, p positive, u within -1..1, v an image, g places in it."""
    inputs = "float[2,3,8] x, float[2,3,8] z, float[2,3,8] p, float[2,3,8] u, float[1,4,6,6] v, float[1,3,5,2] g"
    declared = [f"{TYPES[a.dtype.kind]}[{','.join(map(str, a.shape))}] {name}" for name, a in CONSTANTS.items()]
    shapes = {name: "a,b,c,d" if "(v" in body else "a,b,c" for name, body in BODIES.items()}
    shapes["GroupNormalization"] = "1,4,6,6"  # onnx does not infer it
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
    low = {"x": -2, "z": -2, "p": 1.1, "u": -0.9, "v": -2, "g": -1}
    shapes = {"v": (1, 4, 6, 6), "g": (1, 3, 5, 2)}
    return {
        name: rng.uniform(start, 0.9 if name == "u" else 1 if name == "g" else 2, shapes.get(name, (2, 3, 8))).astype(
            np.float32
        )
        for name, start in low.items()
    }


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
    assert set(BODIES) == OPERATORS


@pytest.mark.parametrize("name", sorted(BODIES))
def test_the_library_agrees_with_onnxruntime(compared: tuple[Graph, dict[str, float]], name: str):
    graph, worst = compared
    assert any(is_island(node) and node.op_type == name for node in graph.nodes())
    assert worst[name] <= STEPS + 0.01
