"""What was learned goes back into the QDQ graph: it then means what the module computes."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.errors import CalibrationError
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import quantizer_of
from tests import quantized
from tests.quantized import float_graph, random_input

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'qcompiler[learn]'")
RNG = np.random.default_rng(4)


def pair(**options) -> tuple[Graph, Graph]:
    """A network with a residual, values that are only moved (MaxPool, Concat with a constant) and a MatMul."""
    graph = float_graph(
        "float[1,4,6,6] x => float[1,5] y",
        """c = Conv<pads = [1,1,1,1]>(x, w, b)  r = Relu(c)  d = Conv(r, v)  s = Add(d, x)
           p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(s)  m = ReduceMean<keepdims = 0>(p, axes)
           k = Concat<axis = 1>(m, one)  q = MatMul(k, u)  y = Add(q, bu)""",
        w=RNG.normal(0, 0.4, (4, 4, 3, 3)).astype(np.float32), b=RNG.normal(0, 1, 4).astype(np.float32),
        v=RNG.normal(0, 0.4, (4, 4, 1, 1)).astype(np.float32), axes=np.array([2, 3]),
        one=np.array([[0.31]], np.float32), u=RNG.normal(0, 0.5, (5, 5)).astype(np.float32),
        bu=RNG.normal(0, 1, 5).astype(np.float32),
    )  # fmt: skip
    return quantized.quantize(graph, **options), graph


def samples(graph: Graph, count: int = 6) -> np.ndarray:
    return np.stack([random_input(graph, "x", seed) for seed in range(20, 20 + count)])


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    return np.stack([graph.run(x=one) for one in x])


def module_of(graph: Graph, source: Graph):
    from qcompiler.execute.torch import Quantizer, TorchGraph, float_weights

    module = TorchGraph(graph, float_weights=float_weights(graph, source), trainable=lambda name: "_codes" in name)
    for quantizer in module.quantizers.values():
        assert isinstance(quantizer, Quantizer)
        quantizer.learn(scaled_gradient=True)
    return module


def test_nothing_learned_changes_nothing():
    from qcompiler.execute.torch import store

    graph, source = pair(precision="w4a8")
    before = graph.fingerprint()
    assert store(module_of(graph, source), graph).fingerprint() == before


@pytest.mark.parametrize("precision", ["w4a8", "w8a8", "w3a4", "e2m1w-int8a", "e2m3w-e2m2a", "float8e4m3fnw-int8a"])
def test_training_and_storing(precision: str):
    """A few steps towards the float outputs: the error falls, the stored graph gives it, and becomes integers."""
    from qcompiler.execute.torch import store

    graph, source = pair(precision=precision)
    x, module = samples(graph, 16), module_of(graph, source)
    target = torch.from_numpy(run(source, x))
    scales = {id(q.scale): q.scale for q in module.quantizers.values()}
    rate = 0.2 if precision.startswith("float8") else 1.0  # it starts near what its grid allows
    groups = [{"params": [scale], "lr": 0.005 * rate * float(scale.detach().mean())} for scale in scales.values()]
    optimizer = torch.optim.Adam([*groups, {"params": list(module.weights.values()), "lr": 1e-3 * rate}])
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (module({"x": x})["y"] - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    old = graph.clone()
    store(module, graph)
    with torch.no_grad():
        learned = module({"x": x})["y"].numpy()
    stored = run(graph, x)
    step = float(quantizer_of(graph, graph.outputs[0]).params.scale)
    # a bias is rounded to s_x * s_w when it is stored: single codes may move by one; more of them, and by
    # two, where the operands are coarse and the output has 8 bits all the same
    steps, moved = (2.01, 0.5) if precision == "w3a4" else (1.01, 0.05)
    assert np.abs(stored - learned).max() <= steps * step and (stored != learned).mean() < moved
    assert ((stored - target.numpy()) ** 2).mean() < 0.8 * ((run(old, x) - target.numpy()) ** 2).mean()
    for a, b in (
        ("s_dequantized", "p_dequantized"),
        ("m_dequantized", "k_dequantized"),
        ("one_dequantized", "k_dequantized"),
    ):
        assert quantizer_of(graph, graph.value(a)).params == quantizer_of(graph, graph.value(b)).params
    changed = quantizer_of(graph, graph.value("w_dequantized")).params.scale
    assert (changed != quantizer_of(old, old.value("w_dequantized")).params.scale).all()
    if precision.startswith("float8"):
        return  # there are no integers of so many bits
    integer = Oracle(quantized.integer(graph))
    assert np.abs(np.stack([integer.run({"x": one})[0] for one in x]) - stored).max() <= 2.01 * step


def test_learned_zero_points_are_stored():
    from qcompiler.execute.torch import TorchGraph, store

    graph, _ = pair()
    module, x = TorchGraph(graph), samples(graph)
    quantizer = module.quantizers["x_dequantized"]
    with torch.no_grad():
        quantizer.zero_point.add_(9.3)
    store(module, graph)
    assert quantizer_of(graph, graph.value("x_dequantized")).params == quantizer.params()
    got = module({"x": x})["y"].detach().numpy()
    np.testing.assert_allclose(run(graph, x), TorchGraph(graph)({"x": x})["y"].detach(), atol=1e-5)
    assert (got == run(graph, x)).mean() > 0.9


def test_what_went_wrong_is_not_stored():
    from qcompiler.execute.torch import store

    for wrong, text in ((-0.1, "became -0.1"), (float("nan"), "became nan"), (1e-30, "does not fit 30 bits")):
        graph, source = pair()
        module = module_of(graph, source)
        with torch.no_grad():
            module.quantizers["x_dequantized"].scale.fill_(wrong)
        with pytest.raises(CalibrationError, match=text):
            store(module, graph)
    graph, source = pair()
    module = module_of(graph, source)
    with torch.no_grad():
        module.weights["w_codes"][0, 0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="`w_codes` became NaN"):
        store(module, graph)
