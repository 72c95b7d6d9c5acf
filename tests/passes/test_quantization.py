"""decide, set_ranges, insert_qdq, bias_correction: from a float graph to a QDQ graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qcompiler.assignment import activations, clip_bounds, shared_groups
from qcompiler.calibrate.data import load_samples
from qcompiler.calibrate.statistics import with_outputs
from qcompiler.context import Context
from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.execute.ort import Session
from qcompiler.formats import QuantParams
from qcompiler.graph import qdq
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.passes import bias_correction, decide, insert_qdq, set_ranges
from qcompiler.target import Capabilities

TEXT = """<ir_version: 10, opset_import: ["": 21]>
g (float[1,3,8,8] x, float[4,3,3,3] w1, float[4] b1, float[4,1,3,3] w2, float[4] w3_bias, float[4,4,1,1] w3,
   float six, float[16,5] w4, int64[2] shape) => (float[1,5] y) {
  [c1] h1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
  [r1] a1 = Relu(h1)
  [c2] h2 = Conv <group = 4, pads = [1,1,1,1]> (a1, w2)
  [k2] a2 = Clip(h2, , six)
  [c3] h3 = Conv (a2, w3, w3_bias)
  [s3] a3 = Sigmoid(h3)
  [add] sum = Add(a3, a1)
  [pool] p = MaxPool <kernel_shape = [4,4], strides = [4,4]> (sum)
  [flat] f = Reshape(p, shape)
  [fc] y = Gemm(f, w4)
}"""


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("QCOMPILER_CACHE", "off")


def network(seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    shapes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 1, 3, 3), "w3_bias": (4,), "w3": (4, 4, 1, 1), "w4": (16, 5)}
    constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    text = TEXT.replace("Clip(h2, , six)", "Clip(h2, zero, six)").replace("float six", "float zero, float six")
    graph = Graph.parse(text, zero=np.float32(0), six=np.float32(6), shape=np.int64([1, 16]), **constants)
    return load_graph(graph.to_proto())


def activation_params(graph: Graph) -> dict[str, QuantParams]:
    found = [qdq.quantizer_of(graph, node.outputs[0]) for node in graph.nodes("DequantizeLinear")]
    return {one.source.name: one.params for one in found if one is not None and one.codes is None}


def context_of(graph: Graph, n: int = 16) -> Context:
    x = np.random.default_rng(9).standard_normal((n, 3, 8, 8)).astype(np.float32)
    return Context(samples=load_samples({"x": x}, graph))


def decided(**options) -> Context:
    graph = network()
    context = context_of(graph)
    decide.run(graph, decide.Options(**options), context)
    return context


def formats(context: Context) -> dict[str, str]:
    return context.assignment.describe()


def quantized(graph: Graph | None = None, method: str = "auto", **options) -> tuple[Graph, Context]:
    graph = graph or network()
    context = context_of(graph)
    decide.run(graph, decide.Options(**options), context)
    set_ranges.run(graph, set_ranges.Options(method=method), context)
    return insert_qdq.run(graph, insert_qdq.Options(), context), context


# -- which values -------------------------------------------------------------------------------------------------


def test_a_fused_clip_leaves_no_quantizer_before_it():
    assert activations(network()) == ["x", "a1", "a2", "h3", "a3", "sum", "p", "f", "y"]
    assert "h1" in activations(network(), saturating=False)


def test_data_movement_shares_parameters():
    assert shared_groups(network()) == [["sum", "p", "f"]]
    graph, _ = quantized()
    read = activation_params(graph)
    assert read["sum"] == read["p"] == read["f"] != read["a3"]


def test_clips_whose_group_has_other_bounds_keep_their_own_quantizer():
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[1,2] x, float[2,2] w, float[2,2] v) => (float[1,4] y) {
      h = Gemm(x, w)  a = Relu(h)  b = Gemm(x, v)  y = Concat <axis = 1> (a, b) }"""
    graph = Graph.parse(text, w=np.eye(2, dtype=np.float32), v=np.eye(2, dtype=np.float32))
    assert "h" in activations(graph)  # the range of a leaves Relu's bounds, so saturation is not Relu
    same = text.replace("b = Gemm(x, v)", "c = Gemm(x, v)  b = Relu(c)")
    weights = {name: np.eye(2, dtype=np.float32) for name in "wv"}
    assert "h" not in activations(Graph.parse(same, **weights))


@pytest.mark.parametrize(
    ("low", "high", "bounds"), [(-1.0, 1.0, (-1.0, 1.0)), (1.0, 2.0, None), (0.0, 6.0, (0.0, 6.0)), (-2.0, -1.0, None)]
)
def test_only_bounds_around_zero_are_saturation(low, high, bounds):
    graph = Graph.parse(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[1] x, float l, float h) => (float[1] y) { y = Clip(x, l, h) }""",
        l=np.float32(low), h=np.float32(high),
    )  # fmt: skip
    assert clip_bounds(graph, graph.nodes("Clip")[0]) == bounds


# -- which formats -----------------------------------------------------------------------------------------------


def test_first_and_last_layer_stay_at_8_bits():
    got = formats(decided(precision="w4a4"))
    assert (got["w1"], got["x"], got["w4"], got["f"]) == ("int8n", "uint8", "int8n", "uint8")
    assert (got["w2"], got["w3"], got["a2"], got["y"]) == ("int4", "int4", "uint4", "uint8")
    assert got["sum"] == got["p"] == "uint8"  # they share with f, the widest wins
    narrow = decided(precision="w4a4", keep_first_last=False, inner_bits=4)
    assert set(formats(narrow).values()) == {"int4", "uint4"}


def test_the_last_rule_wins_and_excluded_nodes_win_over_rules():
    rules = ({"op_type": "Conv", "weight": "int4"}, {"match": "^c3$", "weight": "int5", "activation": "uint6"})
    got = formats(decided(rules=rules))
    assert (got["w1"], got["w2"], got["w3"], got["w4"]) == ("int4", "int4", "int5", "int8n")
    assert (got["h3"], got["a1"], got["x"]) == ("uint6", "uint8", "uint8")
    got = formats(decided(rules=rules, exclude=("c3",)))
    assert (got["w2"], got["w3"], got["h3"]) == ("int4", "int8n", "uint8")
    got = formats(decided(exclude=("c3",), exclude_bits=16))
    assert (got["h3"], got["a2"], got["a1"], got["w3"]) == ("uint16", "uint16", "uint8", "int8n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "8bit"}, "looks like w8a8"),
        ({"precision": "w9a8"}, "looks like w8a8"),
        ({"rules": ({"weight": "int4"},)}, "matches nothing"),
        ({"rules": ({"match": "c", "wieght": "int4"},)}, "no key `wieght`"),
        ({"rules": ({"match": "c", "weight": "float8"},)}, "not a number format"),
        ({"exclude": ("(",)}, "not a regular expression"),
    ],
)
def test_wrong_rules_are_named(options, message):
    with pytest.raises(RecipeError, match=message):
        decided(**options)


def test_bits_that_the_target_lacks_are_refused():
    graph = network()
    context = context_of(graph)
    context.capabilities = Capabilities((4, 8), (8,), ("float",), True)
    decide.run(graph, decide.Options(precision="w4a8"), context)
    with pytest.raises(UnsupportedError, match="no 5-bit weights.*offers 4, 8 bits"):
        decide.run(graph, decide.Options(precision="w5a8"), context)


# -- the QDQ graph -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w3a3", "w7a8", "w8a16", "w2a4"])
def test_the_graph_is_valid_keeps_names_and_is_near_the_float_graph(precision):
    float_graph = network()
    graph, _ = quantized(precision=precision)
    onnx.checker.check_model(graph.to_proto(), full_check=True)
    assert [n.name for n in graph.nodes("Conv", "Gemm", "Relu", "Add")] == ["c1", "r1", "c2", "c3", "add", "fc"]
    assert [v.name for v in graph.outputs] == ["y"]
    assert {"x", "h1", "a1", "sum"} <= {v.name for v in graph.values()}
    x = next(iter(context_of(float_graph).samples))["x"]
    want, got = float_graph.run(x=x), graph.run(x=x)
    error = np.linalg.norm(want - got) / np.linalg.norm(want)
    assert error < {"w8a8": 0.03, "w7a8": 0.04, "w8a16": 0.02, "w4a8": 0.3}.get(precision, 1.0)


def test_saturation_performs_the_clip():
    graph, _ = quantized(method="minmax")
    ranges = activation_params(graph)
    assert ranges["a1"].zero_point == ranges["a2"].zero_point == 0
    assert float(ranges["a2"].scale) * 255 <= 6.0 * (1 + 1e-6)


def test_every_layer_has_a_bias_with_the_scale_of_its_accumulator():
    graph, _ = quantized()
    for node in graph.nodes("Conv", "Gemm"):
        codes, scale = qdq.read_bias(graph, node.inputs[2].producer())
        x, w = (qdq.quantizer_of(graph, value).params for value in node.inputs[:2])
        np.testing.assert_array_equal(scale, x.scale * w.scale)
        assert codes.dtype == np.int32
        if node.name == "c2":
            assert not codes.any()


def test_a_bias_far_larger_than_its_weights_still_fits():
    graph = network()
    w = graph.const(graph.value("w1")).copy()
    w[2], w[3] = 1e-20, 0.0
    graph.set_const(graph.value("w1"), w)
    graph, _ = quantized(graph)
    codes, scale = qdq.read_bias(graph, graph.nodes("Conv")[0].inputs[2].producer())
    np.testing.assert_allclose(codes * scale, network().const(network().value("b1")), atol=1e-3)
    assert np.abs(codes.astype(np.int64)).max() <= 2**29


def test_wide_activations_leave_biases_float():
    graph, _ = quantized(precision="w8a16")
    assert all(graph.const(node.inputs[2]).dtype == np.float32 for node in graph.nodes("Conv", "Gemm"))


def test_softmax_has_the_fixed_range_of_probabilities():
    graph = Graph.parse(
        """<ir_version: 10, opset_import: ["": 21]> g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Softmax(x) }"""
    )
    graph, _ = quantized(graph)
    read = qdq.quantizer_of(graph, graph.outputs[0])
    assert (float(read.params.scale), int(read.params.zero_point)) == (1 / 256, 0)


def test_many_unlikely_classes_share_a_smaller_range():
    """Of 2,000 nearly equal probabilities a step of 1/256 would leave nothing but zeros."""
    graph = Graph.parse(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[1,3,8,8] x, float[192,2000] w, int64[2] s) => (float[1,2000] y)
        { f = Reshape(x, s)  h = MatMul(f, w)  y = Softmax(h) }""",
        w=(np.random.default_rng(0).standard_normal((192, 2000)) * 1e-3).astype(np.float32),
        s=np.array([1, 192]),
    )
    graph, _ = quantized(graph)
    params = qdq.quantizer_of(graph, graph.outputs[0]).params
    assert np.log2(params.scale) % 1 == 0 and 1 / 2000 < params.scale * 256 <= 1 / 64


def test_matmul_and_add_are_one_layer():
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[1,3,8,8] x, float[8,5] w, float[5] b) => (float[1,3,8,5] y) { h = MatMul(x, w)  y = Add(b, h) }"""
    rng = np.random.default_rng(0)
    graph = Graph.parse(text, w=rng.standard_normal((8, 5)).astype(np.float32), b=np.ones(5, np.float32))
    assert activations(graph) == ["x", "y"]
    graph, _ = quantized(graph)
    assert qdq.read_bias(graph, graph.nodes("Add")[0].inputs[0].producer()) is not None


def test_formats_and_ranges_must_be_there():
    with pytest.raises(RecipeError, match="decide"):
        set_ranges.run(network(), set_ranges.Options(), Context())
    with pytest.raises(RecipeError, match="set_ranges"):
        insert_qdq.run(network(), insert_qdq.Options(), Context())


# -- bias correction ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w3a4"])
def test_bias_correction_does_not_raise_the_output_error(precision):
    graph, context = quantized(precision=precision)
    before = bias_correction.output_error(graph, context.float_graph, context, 16)
    bias_correction.run(graph, bias_correction.Options(), context)
    after = bias_correction.output_error(graph, context.float_graph, context, 16)
    assert after <= before
    assert context.facts["bias_correction"]["kept"] == (after < before)


def test_bias_correction_restores_the_means_that_coarse_weights_shift():
    graph, context = quantized(precision="w4a8", keep_first_last=False)
    layers = bias_correction.find_layers(graph)
    assert [layer.output for layer in layers] == ["h1", "h2", "h3", "y_float"]
    assert [layer.seen for layer in layers] == ["a1", "a2", "h3", "y_float"]
    names = [("a1", None, 1), ("a2", None, 1), ("h3", None, 1), ("y", None, -1)]
    wanted = bias_correction.means(context.float_graph, names, context, 16)
    before = bias_correction.means(graph, [(layer.seen, None, layer.axis) for layer in layers], context, 16)
    bias_correction.run(graph, bias_correction.Options(), context)
    after = bias_correction.means(graph, [(layer.seen, None, layer.axis) for layer in layers], context, 16)
    assert context.facts["bias_correction"]["kept"]
    for (want, _), (b, _), (a, _) in zip(wanted, before, after, strict=True):
        assert np.abs(a - want).sum() < 0.5 * np.abs(b - want).sum()


def test_means_count_what_a_clip_leaves():
    graph, context = network(), context_of(network())
    wanted = [("a2", "h2", 1), ("h3", None, 1)]
    (mean, active), (plain, one) = bias_correction.means(graph, wanted, context, 16)
    session = Session(with_outputs(graph, ["h2", "a2", "h3"]))
    runs = [session.run(sample, ["h2", "a2", "h3"]) for sample in context.samples]
    h2, a2, h3 = (np.concatenate([run[i] for run in runs]) for i in range(3))
    np.testing.assert_allclose(mean, a2.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(active, (h2 == a2).mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(plain, h3.mean(axis=(0, 2, 3)), rtol=1e-4)
    assert (one == 1).all()


def test_bias_correction_needs_the_float_graph():
    graph, context = quantized()
    context.float_graph = None
    with pytest.raises(RecipeError, match="insert_qdq"):
        bias_correction.run(graph, bias_correction.Options(), context)


def test_per_tensor_weights_share_one_scale() -> None:
    graph = network()
    context = context_of(graph)
    graph = decide.run(graph, decide.Options(per_tensor=True), context)
    graph = insert_qdq.run(set_ranges.run(graph, set_ranges.Options(), context), insert_qdq.Options(), context)
    found = [qdq.quantizer_of(graph, node.outputs[0]) for node in graph.nodes("DequantizeLinear")]
    weights = [one.params for one in found if one is not None and one.codes is not None]
    assert len(weights) == 4
    assert all(params.scale.shape == () and params.axis is None for params in weights)


def test_an_exclusion_that_matches_nothing_is_refused() -> None:
    graph = network()
    with pytest.raises(RecipeError, match="`hed` matches no node"):
        decide.run(graph, decide.Options(exclude=("hed",)), context_of(graph))


def test_layers_that_share_weights_and_bias_get_nodes_of_their_own() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[1,3,4,4] x, float[3,3,1,1] w, float[3] b) => (float[1,3,4,4] y) { h = Conv(x, w, b)  y = Conv(h, w, b) }"""
    rng = np.random.default_rng(1)
    constants = {"w": rng.normal(size=(3, 3, 1, 1)).astype(np.float32), "b": rng.normal(size=3).astype(np.float32)}
    graph = load_graph(Graph.parse(text, **constants).to_proto())
    context = Context(samples=load_samples({"x": rng.normal(size=(8, 3, 4, 4)).astype(np.float32)}, graph))
    graph = decide.run(graph, decide.Options(), context)
    graph = insert_qdq.run(set_ranges.run(graph, set_ranges.Options(), context), insert_qdq.Options(), context)
    names = [node.name for node in graph.nodes()]
    assert len(set(names)) == len(names)
    assert Session(graph).run({"x": np.ones((1, 3, 4, 4), np.float32)})[0].shape == (1, 3, 4, 4)


def test_below_8_bits_only_operands_of_products_are_narrow():
    graph = network()
    context = Context()
    decide.run(graph, decide.Options(precision="w4a4", keep_first_last=False), context)
    found = context.assignment
    bits = {name: spec.format.bits for name, spec in found.activations.items()}
    assert bits["x"] == 4 and bits["a2"] == 4  # read by convolutions alone
    assert bits["h3"] == 8 and bits["a3"] == 8 and bits["y"] == 8  # read by a table, an addition, nobody
    assert bits["a1"] == 8 and found.narrowed["a1"].format.bits == 4  # by a convolution and an addition
    assert bits["sum"] == bits["p"] == bits["f"] == 4  # moved to a product
    assert set(found.narrowed) == {"a1"}
    decide.run(graph, decide.Options(precision="w4a4", inner_bits=4, keep_first_last=False), context)
    assert {spec.format.bits for spec in context.assignment.activations.values()} == {4}
    assert not context.assignment.narrowed


def test_last_layer_reads_8_bits_without_a_second_quantizer():
    graph = network()
    context = Context()
    decide.run(graph, decide.Options(precision="w4a4"), context)
    assert context.assignment.activations["f"].format.bits == 8
    assert "f" not in context.assignment.narrowed


def test_excluded_nodes_read_no_narrow_copy():
    graph = network()
    context = Context()
    decide.run(graph, decide.Options(precision="w4a4", keep_first_last=False, exclude=("c2",)), context)
    assert context.assignment.activations["a1"].format.bits == 8
    assert "a1" not in context.assignment.narrowed
