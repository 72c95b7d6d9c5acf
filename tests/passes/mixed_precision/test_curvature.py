"""Traces and Fisher information against Hessians that are computed in full."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.graph.model import Graph
from qcompiler.passes.mixed_precision import sensitivity
from qcompiler.passes.mixed_precision.losses import Loss, loss_of
from tests.passes.mixed_precision.networks import items_of, residual
from tests.quantized import float_graph, random_input

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'qcompiler[learn]'")
RNG = np.random.default_rng(2)
W, V = RNG.standard_normal((5, 6)).astype(np.float32), RNG.standard_normal((6, 4)).astype(np.float32)
KL, MSE = Loss("kl", ("y",)), Loss("mse", ("y",))


def network() -> tuple[Graph, list]:
    graph = float_graph("float[1,5] x => float[1,4] y", "h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v)", w=W, v=V)
    return graph, [{"x": random_input(graph, "x", seed)} for seed in range(20)]


def exact_hessian(name: str, loss: Loss) -> np.ndarray:
    """Of the mean loss over the samples, in float64, by torch's own functional."""
    graph, given = network()
    x = torch.tensor(np.concatenate([one["x"] for one in given])).double()
    fixed = {"w": torch.tensor(W).double(), "v": torch.tensor(V).double()}
    z0 = torch.relu(x @ fixed["w"]) @ fixed["v"]

    def mean_loss(flat):
        own = {**fixed, name: flat.reshape(fixed[name].shape)}
        z = torch.relu(x @ own["w"]) @ own["v"]
        if loss.kind == "mse":
            return ((z - z0) ** 2).sum() / (z0**2).sum()
        p = torch.log_softmax(z0, -1)
        return (p.exp() * (p - torch.log_softmax(z, -1))).sum() / len(x)

    return torch.autograd.functional.hessian(mean_loss, fixed[name].reshape(-1)).numpy()


@pytest.mark.parametrize("loss", [KL, MSE], ids=["kl", "mse"])
def test_hutchinson_is_within_three_sigma_of_the_exact_trace(loss: Loss) -> None:
    from qcompiler.passes.mixed_precision.curvature import traces

    graph, given = network()
    found = traces(graph, given, ["w", "v"], loss, draws=400, batch=8)
    for name, (trace, sigma) in found.items():
        exact = np.trace(exact_hessian(name, loss))
        assert abs(trace - exact) <= 3 * sigma, name
        assert 0 < sigma < 0.1 * exact
    assert found == traces(graph, given, ["w", "v"], loss, draws=400, batch=8)


def test_variance_is_that_of_rademacher_vectors() -> None:
    """2 (|A|_F^2 - |diag A|^2) / m, of one weight alone and one batch."""
    from qcompiler.passes.mixed_precision.curvature import traces

    graph, given = network()
    _, sigma = traces(graph, given, ["v"], MSE, draws=400, batch=20, tolerance=0)["v"]
    a = exact_hessian("v", MSE)
    assert sigma == pytest.approx(np.sqrt(2 * ((a**2).sum() - (np.diag(a) ** 2).sum()) / 400), rel=0.25)


@pytest.mark.parametrize("loss", [KL, MSE], ids=["kl", "mse"])
def test_fisher_diagonal_is_that_of_the_hessian(loss: Loss) -> None:
    """At the float weights both are the Gauss-Newton matrix; with many draws."""
    from qcompiler.passes.mixed_precision.curvature import fisher_diagonal

    graph, given = network()
    found = fisher_diagonal(graph, given, ["v", "w"], loss, draws=100)
    for name in ("v", "w"):
        want = np.diag(exact_hessian(name, loss)).reshape(found[name].shape)
        assert found[name].sum() == pytest.approx(want.sum(), rel=0.05)
        np.testing.assert_allclose(found[name], want, rtol=0.2, atol=0.03 * want.max())


@pytest.mark.parametrize("loss", [KL, MSE], ids=["kl", "mse"])
def test_activation_traces_predict_the_loss_of_noise(loss: Loss) -> None:
    from qcompiler.passes.mixed_precision.curvature import activation_traces

    graph, given = network()
    trace = activation_traces(graph, given, ["r"], loss, draws=50)["r"]
    x = np.concatenate([one["x"] for one in given])
    r = np.maximum(x @ W, 0)
    rng, total, size = np.random.default_rng(0), 0.0, 0.02
    for _ in range(200):
        noisy = r + size * rng.choice([-1, 1], r.shape)
        total += loss_of(loss, (r @ V)[:, None], (noisy @ V)[:, None]) / 200
    assert 0.5 * trace * size**2 == pytest.approx(total, rel=0.05)


def test_scores_of_second_order_are_of_the_size_of_the_loss() -> None:
    graph, context = residual()
    one = sensitivity.study(graph, context.assignment, items_of(graph, context, (4, 8)), context, draws=24)
    measured = np.concatenate(sensitivity.swap_loss(one))
    for score in (sensitivity.hessian_trace, sensitivity.fisher):
        predicted = np.concatenate(score(one))
        both = (measured > 1e-7) & (predicted > 0)
        ratio = predicted[both] / measured[both]
        assert 0.2 < np.median(ratio) < 5
        assert np.corrcoef(np.log(predicted[both]), np.log(measured[both]))[0, 1] > 0.8
        assert (predicted >= 0).all()
