"""The diagonal of the Fisher information: against its definition on small networks."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.errors import CalibrationError, RecipeError
from tests.quantized import float_graph, random_input

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'qcompiler[learn]'")
RNG = np.random.default_rng(2)
W, V = RNG.standard_normal((5, 6)).astype(np.float32), RNG.standard_normal((6, 4)).astype(np.float32)
TEXT = "h = MatMul(x, w)  r = Relu(h)  z = MatMul(r, v)"


def samples(graph, count: int):
    return [{"x": random_input(graph, "x", seed)} for seed in range(count)]


def exact(kind: str, count: int) -> np.ndarray:
    """Mean over samples of diag(J^T M J) for `r`, J = V^T, M = diag(p) - p p^T for logits, the identity for mse."""
    total = np.zeros((1, 6))
    for seed in range(count):
        x = np.random.default_rng(seed).standard_normal((1, 5)).astype(np.float32)
        z = np.maximum(x @ W, 0) @ V
        p = np.exp(z - z.max())[0] / np.exp(z - z.max()).sum()
        middle = np.eye(4) if kind == "mse" else np.diag(p) - np.outer(p, p)
        total += np.diag(V @ middle @ V.T)
    return total / count


@pytest.mark.parametrize(("loss", "softmax"), [("kl", False), ("kl", True), ("mse", False)])
def test_draws_converge_to_the_definition(loss: str, softmax: bool):
    from qcompiler.execute.torch import output_gradients

    text = f"{TEXT}  y = Softmax(z)" if softmax else TEXT.replace("z =", "y =")
    graph = float_graph("float[1,5] x => float[1,4] y", text, w=W, v=V)
    got = output_gradients(graph, samples(graph, 20), ["r", "h"], loss, draws=800, batch=6)
    want = exact(loss, 20)
    assert got["r"].shape == (1, 6) and got["r"].dtype == np.float64
    np.testing.assert_allclose(got["r"], want, rtol=0.06)
    assert (got["h"] <= got["r"] + 1e-12).all()  # Relu lets some gradients through
    again = output_gradients(graph, samples(graph, 20), ["r"], loss, draws=2, batch=20)
    same = output_gradients(graph, samples(graph, 20), ["r"], loss, draws=2, batch=20)
    np.testing.assert_array_equal(again["r"], same["r"])


def test_it_predicts_the_divergence_of_a_small_error():
    """KL(p, p + error) is e^T F e / 2 on average over errors of random signs."""
    from qcompiler.execute.torch import TorchGraph, output_gradients

    graph = float_graph("float[1,5] x => float[1,4] y", TEXT.replace("z =", "y ="), w=W, v=V)
    given = samples(graph, 30)
    fisher = output_gradients(graph, given, ["r"], draws=300)["r"]
    module, x = TorchGraph(graph), np.stack([one["x"] for one in given])
    r = module({"x": x}, ["r"])["r"]
    size, total = torch.linspace(0.01, 0.03, 6), 0.0
    generator = torch.Generator().manual_seed(0)
    p = torch.log_softmax(module({"r": r})["y"], -1).double()
    for _ in range(200):
        signs = torch.randint(0, 2, r.shape, generator=generator) * 2 - 1
        q = torch.log_softmax(module({"r": r + size * signs})["y"], -1).double()
        total += float((p.exp() * (p - q)).sum(-1).mean()) / 200
    np.testing.assert_allclose(total, 0.5 * (fisher * size.numpy() ** 2).sum(), rtol=0.1)


def test_channels_batches_limits_and_inputs():
    from qcompiler.execute.torch import output_gradients

    graph = float_graph(
        "float[1,3,4,4] x => float[1,4] y",
        "c = Conv(x, w)  r = Relu(c)  m = GlobalAveragePool(r)  f = Flatten(m)  y = MatMul(f, v)",
        w=RNG.standard_normal((6, 3, 3, 3)).astype(np.float32), v=V,
    )  # fmt: skip
    given = [{"x": random_input(graph, "x", seed)} for seed in range(7)]
    whole = output_gradients(graph, given, ["c", "x"], "mse", batch=7)
    channels = output_gradients(graph, iter(given), ["c", "x"], "mse", axes={"c": 1, "x": -3}, batch=7)
    np.testing.assert_allclose(channels["c"], whole["c"].mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(channels["x"], whole["x"].mean((0, 2, 3)), rtol=1e-9)
    few = output_gradients(graph, given, ["c"], "mse", limit=3, batch=2, draws=400)["c"]
    np.testing.assert_allclose(few, output_gradients(graph, given[:3], ["c"], "mse", draws=400)["c"], rtol=0.3)


def test_token_models_have_gradients_behind_their_embedding():
    from qcompiler.execute.torch import output_gradients

    graph = float_graph("int64[1,3] i => float[1,3,4] y", "e = Gather(t, i)  y = MatMul(e, v)", t=W.T.copy()[:, :5],
                        v=V[:5])  # fmt: skip
    got = output_gradients(graph, [{"i": np.array([[0, 1, 5]])}] * 4, ["e"])
    assert got["e"].shape == (1, 3, 5) and (got["e"] > 0).all()
    with pytest.raises(CalibrationError, match="`i` is torch.int64, which has no gradient"):
        output_gradients(graph, [{"i": np.array([[0, 1, 5]])}], ["i"])


def test_clear_errors():
    from qcompiler.execute.torch import output_gradients

    graph = float_graph("float[1,5] x => float[1,4] y", TEXT.replace("z =", "y ="), w=W, v=V)
    with pytest.raises(CalibrationError, match="no samples"):
        output_gradients(graph, [], ["r"])
    with pytest.raises(RecipeError, match="`l1` is no loss"):
        output_gradients(graph, samples(graph, 1), ["r"], "l1")  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="`w` is a constant"):
        output_gradients(graph, samples(graph, 1), ["w"])
    header = "float[1,5] x => int64[1,1] i"
    graph = float_graph(header, f"{TEXT}  i = ArgMax<axis = 1>(z)", w=W, v=V)
    with pytest.raises(CalibrationError, match="no output has a gradient"):
        output_gradients(graph, samples(graph, 1), ["r"], "mse")
    header = "float[1,5] x => int64[1,1] i, float[1,4] z"
    graph = float_graph(header, f"{TEXT}  i = ArgMax<axis = 1>(z)", w=W, v=V)
    assert (output_gradients(graph, samples(graph, 4), ["r"], "mse", draws=8)["r"] > 0).all()
