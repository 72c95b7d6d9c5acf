"""Graphs in torch: whole networks, parts of them, what learns, and what is refused."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.calibrate.statistics import with_outputs
from qcompiler.errors import CalibrationError, ModelError, UnsupportedError
from qcompiler.execute.ort import Session
from qcompiler.formats import Int, QuantParams
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import quantizer_of, write_fake_quantize
from qcompiler.graph.state import bind_state
from qcompiler.quantizer import fake_quantize
from tests import quantized
from tests.quantized import float_graph, random_input

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'qcompiler[learn]'")

CONV = """c = Conv<pads = [1,1,1,1]>(x, w, b)  r = Relu(c)  d = Conv(r, v)  s = Add(d, x)
          m = GlobalAveragePool(s)  y = Flatten(m)"""
HEADER = "float[1,4,6,6] x => float[1,4] y"


def constants(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 4, 3, 3), "b": (4,), "v": (4, 4, 1, 1)}
    return {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def network() -> Graph:
    return float_graph(HEADER, CONV, **constants())


def compare(graph: Graph, samples: list[dict[str, np.ndarray]]) -> None:
    """Outputs within 1e-5 of the largest magnitude of onnxruntime's."""
    from qcompiler.execute.torch import TorchGraph

    session, module = Session(graph), TorchGraph(graph)
    want = [session.run(sample) for sample in samples]
    with torch.no_grad():
        got = module({name: np.stack([sample[name] for sample in samples]) for name in samples[0]})
    for i, output in enumerate(graph.outputs):
        expected = np.stack([arrays[i] for arrays in want])
        assert got[output.name].shape == expected.shape
        largest = max(float(np.abs(expected).max()), 1e-30)
        assert np.abs(got[output.name].numpy() - expected).max() <= 1e-5 * largest


def inputs_of(graph: Graph, count: int, high: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    samples = []
    for _ in range(count):
        sample = {}
        for value in graph.inputs:
            shape, is_float = graph.shape(value), value.dtype == ir.DataType.FLOAT
            array = rng.standard_normal(shape) if is_float else rng.integers(0, high, shape)
            sample[str(value.name)] = array.astype(value.dtype.numpy())
        samples.append(sample)
    return samples


FLOAT_PASSES = (
    "unroll_recurrent", "canonicalize", "recognize_norms", "recognize_functions", "recognize_magnitudes",
    "recognize_activations", "cancel_transposes", "merge_pad", "fold_batchnorm", "spell_out", "keep_quantizers",
)  # fmt: skip
MODELS = {
    "ddpm_digits": {"N": 1}, "espcn_x2": {}, "mlperf_tiny_ad": {"N": 1}, "mlperf_tiny_kws": {"N": 1},
    "mlperf_tiny_resnet8": {"N": 1}, "mlperf_tiny_vww": {"N": 1}, "mobilenet_v1_025_224": {"N": 1},
    "mobilenet_v2_100_224": {"N": 1}, "mobilenetv2_cifar10_jpeg": {"N": 1}, "resnet20_cifar10": {"N": 1},
    "resnet20_cifar10_jpeg": {"N": 1}, "stories260k_decode": {"past": 31}, "stories260k_prefill": {"N": 1},
    "vit_digits": {"N": 1}, "vit_hybrid_cifar10_jpeg": {"N": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_real_networks_equal_onnxruntime_before_and_after_the_float_passes(assets: Path, name: str):
    from importlib import import_module

    from qcompiler.context import Context

    graph = load_graph(assets / "models" / f"{name}.onnx", dims=MODELS[name])
    samples = inputs_of(graph, 2, 16)
    compare(graph, samples)
    for one in FLOAT_PASSES:
        module = import_module(f"qcompiler.passes.{one}")
        graph = module.run(graph, module.Options(), Context())
    compare(graph, samples)


def test_caches_run_by_their_function_bodies(assets: Path):
    graph = bind_state(load_graph(assets / "models" / "stories260k_decode.onnx", dims={"past": 15}), "auto")
    assert {node.op_type for node in graph.nodes(domain="qcompiler")} == {"CacheWrite", "CacheSoftmax"}
    compare(graph, inputs_of(graph, 3, 40))


def test_samples_do_not_see_each_other_whatever_moves_the_batch():
    """Shapes of Reshape and Transpose that mix the batch of 1 with other axes; n samples at once and one by one."""
    from qcompiler.execute.torch import TorchGraph

    graph = float_graph(
        "float[1,4,6] x => float[6,2] y",
        """a = Reshape(x, s)  b = Transpose<perm = [2,0,1]>(a)  c = Softmax<axis = 0>(b)  d = Concat<axis = 1>(c, k)
           e = MatMul(d, w)  f = ReduceSum<keepdims = 0>(e, one)  y = Slice(f, z, two, one)""",
        s=np.array([2, 2, 6]), k=np.ones((6, 1, 2), np.float32), w=constants()["v"].reshape(4, 4)[:2],
        one=np.array([1]), z=np.array([0]), two=np.array([2]),
    )  # fmt: skip
    module, x = TorchGraph(graph), torch.randn(7, 1, 4, 6)
    together = module({"x": x})["y"]
    apart = torch.cat([module({"x": one[None]})["y"] for one in x])
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-6)
    compare(graph, inputs_of(graph, 3, 2))


# -- parts, parameters -----------------------------------------------------------------------------------------


def test_parts_run_between_given_and_wanted_values():
    from qcompiler.execute.torch import TorchGraph

    graph = network()
    module, x = TorchGraph(graph), random_input(graph, "x", 3)[None]
    whole = module({"x": x}, ["c", "r", "s", "y"])
    part = module({"r": whole["r"], "x": x}, ["s"])
    torch.testing.assert_close(part["s"], whole["s"])
    assert module({"s": whole["s"] * 2})["y"].equal(whole["y"] * 2)
    assert module({"x": x}, ["x", "w"])["w"].shape == (1, 4, 4, 3, 3)


def test_weights_learn_and_can_be_given():
    from qcompiler.execute.torch import TorchGraph

    graph = network()
    module = TorchGraph(graph, trainable=["w", "b"])
    assert set(module.weights) == {"w", "b"} and len(list(module.parameters())) == 2
    x = np.stack([random_input(graph, "x", seed) for seed in range(3)])
    module({"x": x})["y"].square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in module.weights.values())
    assert set(TorchGraph(graph, trainable=lambda name: name != "b").weights) == {"w", "v"}
    doubled = module({"x": x, "w": 2 * module.weights["w"][None]}, ["c"])["c"]
    bias = module.weights["b"].reshape(4, 1, 1)
    torch.testing.assert_close(doubled - bias, 2 * (module({"x": x}, ["c"])["c"] - bias))
    # one weight a sample: what sampling methods need
    each = torch.stack([module.weights["w"] * factor for factor in (1.0, 2.0, 3.0)])
    rows = module({"x": x, "w": each}, ["c"])["c"]
    torch.testing.assert_close(rows[1], doubled[1])
    assert module.double().dtype == torch.float64 and module({"x": x.astype(np.float64)})["y"].dtype == torch.float64


def test_taps_replace_a_value_on_its_way():
    from qcompiler.execute.torch import TorchGraph

    module, x = TorchGraph(network()), torch.randn(2, 1, 4, 6, 6)
    zeroed = module({"x": x}, ["d", "y"], taps={"r": torch.zeros_like})
    assert not zeroed["d"].any() and zeroed["y"].any()


def test_clear_errors():
    from qcompiler.execute.torch import TorchGraph

    graph = network()
    module, x = TorchGraph(graph), np.zeros((2, 1, 4, 6, 6), np.float32)
    with pytest.raises(CalibrationError, match="`x` is needed and not given"):
        module({"c": x})
    with pytest.raises(CalibrationError, match="no value of the graph"):
        module({"x": x}, ["nothing"])
    with pytest.raises(CalibrationError, match="no value is called `z`"):
        module({"x": x, "z": x})
    with pytest.raises(CalibrationError, match=r"samples of it are \[n, 1, 4, 6, 6\], not \[1, 4, 6, 6\]"):
        module({"x": x[0]})
    with pytest.raises(ModelError, match="`x` is no float constant"):
        TorchGraph(graph, trainable=["x"])
    with pytest.raises(TypeError, match="make another from the graph"):
        copy.deepcopy(module)
    with pytest.raises(ModelError, match="no quantizer makes `c`"):
        module.set_quantizer("c", torch.nn.Identity())
    body = "y = LSTM<hidden_size = 2>(x, w, r)"
    shapes = {"w": np.ones((1, 8, 3), np.float32), "r": np.ones((1, 8, 2), np.float32)}
    with pytest.raises(UnsupportedError, match="no rule for LSTM.*unroll_recurrent"):
        TorchGraph(float_graph("float[2,1,3] x => float[2,1,1,2] y", body, **shapes))
    with pytest.raises(UnsupportedError, match="MaxPool has a second output"):
        text = "a, i = MaxPool<kernel_shape = [2,2]>(x)  y = Add(i, k)"
        TorchGraph(float_graph("float[1,1,2,2] x => int64[1,1,1,1] y", text, k=np.array([0])))
    with pytest.raises(UnsupportedError, match="computed|not constant"):
        text = "p = Pad(x, w, v)  y = Relu(p)"
        header = "float[1,2] x, float v => float[1,4] y"
        TorchGraph(float_graph(header, text, w=np.array([0, 1, 0, 1])))


def test_without_torch_the_error_says_what_to_install():
    code = """import sys; sys.modules["torch"] = None
from qcompiler.errors import UnsupportedError
try: import qcompiler.execute.torch
except UnsupportedError as error: print(error)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'qcompiler[learn]'" in done.stdout


# -- quantizers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> tuple[Graph, Graph]:
    """(QDQ graph at W4A8, the float graph it came from)."""
    graph = network()
    return quantized.quantize(graph, precision="w4a8"), graph


def test_every_node_of_a_qdq_graph_means_the_same(pair: tuple[Graph, Graph]):
    """Each node on onnxruntime's own inputs: quantizers bit for bit, the rest within 1e-5."""
    from qcompiler.execute.torch import TorchGraph

    graph = pair[0]
    names = [str(value.name) for node in graph.nodes() for value in node.outputs]
    module, x = TorchGraph(graph), random_input(graph, "x", 9)
    values = dict(zip(names, Session(with_outputs(graph, names)).run({"x": x}, names), strict=True), x=x)
    assert len(module.quantizers) == 6
    for node in graph.nodes():
        given = {v.name: values[v.name][None] for v in node.inputs if v.name in values and v.dtype == ir.DataType.FLOAT}
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            read = quantizer_of(graph, node.outputs[0])
            if read is None or read.codes is not None:
                continue
            given = {read.source.name: values[read.source.name][None]}
        name = node.outputs[0].name
        got = module(given, [name])[name][0].detach().numpy()
        if name in module.quantizers:
            np.testing.assert_array_equal(got, values[name])
        else:
            np.testing.assert_allclose(got, values[name], rtol=0, atol=1e-5 * np.abs(values[name]).max())


def test_codes_are_what_they_mean_and_float_weights_pass_through_their_quantizer(pair: tuple[Graph, Graph]):
    from qcompiler.execute.torch import TorchGraph, float_weights

    graph, float_graph_ = pair
    weights = float_weights(graph, float_graph_)
    assert {name: array.shape for name, array in weights.items()} == {
        "w_dequantized": (4, 4, 3, 3), "v_dequantized": (4, 4, 1, 1)
    }  # fmt: skip
    plain = TorchGraph(graph)
    learned = TorchGraph(graph, float_weights=weights, trainable=["w_codes", "v_codes", "b_codes"])
    x = np.stack([random_input(graph, "x", seed) for seed in range(3)])
    assert plain({"x": x})["y"].equal(learned({"x": x})["y"])
    np.testing.assert_array_equal(learned.weights["w_codes"].detach(), constants()["w"])
    for quantizer in learned.quantizers.values():
        quantizer.learn(scaled_gradient=True)
    learned({"x": x})["y"].square().sum().backward()
    scales = {name: quantizer.scale for name, quantizer in learned.quantizers.items()}
    assert learned.quantizers["y"] is learned.quantizers["m_dequantized"]  # Flatten only moves
    for parameter in (*learned.weights.values(), *scales.values()):
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0
    read = quantizer_of(graph, graph.value("w_dequantized"))
    got = learned.quantizers["w_dequantized"].codes(learned.weights["w_codes"][None])[0]
    np.testing.assert_array_equal(got, read.codes)
    assert learned.quantizers["w_dequantized"].params() == read.params


def test_weights_of_another_graph_are_refused(pair: tuple[Graph, Graph]):
    from qcompiler.execute.torch import TorchGraph, float_weights

    other = float_graph(HEADER, CONV, **constants(seed=1))
    with pytest.raises(ModelError, match="`w` is not what the codes `w_codes` round"):
        float_weights(pair[0], other)
    with pytest.raises(ModelError, match="`nothing` is no weight"):
        TorchGraph(pair[0], float_weights={"nothing": constants()["w"]})
    with pytest.raises(ModelError, match=r"`w_dequantized` is \(4, 4, 3, 3\)"):
        TorchGraph(pair[0], float_weights={"w_dequantized": constants()["v"]})


def test_a_quantizer_can_be_replaced(pair: tuple[Graph, Graph]):
    from qcompiler.execute.torch import TorchGraph

    module, x = TorchGraph(pair[0]), torch.randn(2, 1, 4, 6, 6)
    for name in list(module.quantizers):
        module.set_quantizer(name, torch.nn.Identity())
    free = module({"x": x}, ["r", "r_dequantized"])
    assert free["r"].equal(free["r_dequantized"])


def test_fake_quantize_of_activations_and_weights():
    from qcompiler.execute.torch import TorchGraph

    graph = float_graph("float[1,8] x => float[1,3] y", "y = MatMul(x, w)", w=np.eye(8, 3, dtype=np.float32))
    node = graph.nodes("MatMul")[0]
    on_x = QuantParams(Int(3, signed=False), np.float32(0.3), 2)
    on_w = QuantParams(Int(5), np.full(3, 0.07, np.float32), 0, 1)
    for index, params in enumerate((on_x, on_w)):
        quantized_ = write_fake_quantize(graph, node.inputs[index], params, name=f"q{index}", before=node)
        node.replace_input_with(index, quantized_)
    module = TorchGraph(graph, trainable=["w"])
    assert len(module.quantizers) == 2
    x = np.random.default_rng(0).standard_normal((5, 1, 8)).astype(np.float32)
    want = fake_quantize(x, on_x) @ fake_quantize(np.eye(8, 3, dtype=np.float32), on_w)
    got = module({"x": x})["y"]
    np.testing.assert_allclose(got.detach(), want, rtol=1e-6)
    got.sum().backward()
    assert module.weights["w"].grad.abs().max() > 0


BODY = """<domain: "qcompiler", opset_import: ["": 21]>
PowerOfTwo <least> (x, s) => (y) {
    a = Abs (x)  u = Div (a, s)  l = Log (u)  two = Constant <value = float {0.6931471805599453}> ()
    e = Div (l, two)  r = Round (e)  k = Cast <to = 7> (r)  low = Constant <value_int: int = @least> ()
    c = Max (k, low)  f = CastLike (c, x)  base = Constant <value = float {2.0}> ()  p = Pow (base, f)
    sign = Sign (x)  m = Mul (p, s)  y = Mul (m, sign) }"""


def test_function_bodies_run_with_straight_through_gradients():
    """A quantizer of our domain that has no rule of its own: powers of two."""
    from qcompiler.execute.torch import TorchGraph

    graph = float_graph("float[1,8] x => float[1,8] y", "y = qcompiler.PowerOfTwo<least = -3>(x, s)", s=np.float32(1.5))
    function = ir.from_proto(onnx.parser.parse_function(BODY))
    graph.model.functions[function.identifier()] = function
    compare(graph, inputs_of(graph, 3, 2))
    module = TorchGraph(graph, trainable=["s"])
    x = torch.from_numpy(np.stack([sample["x"] for sample in inputs_of(graph, 3, 2)])).requires_grad_()
    y = module({"x": x})["y"]
    y.sum().backward()
    seen = x.detach().abs() / 1.5 > 2**-3.5
    # y = s 2^e sign(x) and, straight through, de/dx = 1 / (x ln 2): dy/dx = |y / x|, dy/ds = y / s - y / s
    torch.testing.assert_close(x.grad, torch.where(seen, (y / x).abs(), 0).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module.weights["s"].grad, (y.detach() / 1.5)[~seen].sum(), rtol=1e-4, atol=1e-5)
    with pytest.raises(UnsupportedError, match="no rule for qcompiler::PowerOfTwo"):
        graph.model.functions.clear()
        TorchGraph(graph)
