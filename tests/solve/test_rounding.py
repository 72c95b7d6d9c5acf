"""Solvers against their definitions: basics.md 8 and 12.4 of the method cards."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.formats import Int
from qcompiler.solve import rounding
from qcompiler.solve.grid import Grid


def problem(seed: int, rows: int = 24, columns: int = 40, samples: int = 600, noise: float = 0.15):
    """Weights, correlated float inputs x and disturbed inputs x^ (both [N, K])."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(columns, columns)) * np.geomspace(1, 0.05, columns)
    x = rng.normal(size=(samples, columns)) @ mix
    # What a quantized layer before this one does: an error that depends on the inputs.
    disturbed = x + noise * x @ rng.normal(size=(columns, columns)) / np.sqrt(columns)
    weight = rng.normal(size=(rows, columns))
    scale = np.abs(weight).max(1) / 7
    return weight, x, disturbed, scale


GRID = Grid(Int(4))


def test_gptq_with_unit_moments_is_rounding() -> None:
    weight, *_, scale = problem(0)
    for order in (False, True):
        got = rounding.gptq(weight, np.eye(40), scale, GRID, act_order=order)
        assert np.array_equal(got, rounding.nearest(weight, scale, GRID))


def test_cholesky_form_equals_sequential_elimination() -> None:
    """U_jj^2 and the rows of U are those of OBQ's inverse with the columns before j eliminated."""
    _, x, _, _ = problem(1)
    gram = rounding.damped(x.T @ x)
    upper = rounding.inverse_factor(x.T @ x)
    inverse = np.linalg.inv(gram)
    for j in range(len(gram)):
        np.testing.assert_allclose(upper[j, j:] * upper[j, j], inverse[0], rtol=1e-6, atol=1e-8 * abs(inverse).max())
        inverse = (inverse - np.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]


def test_gptq_beats_rounding_on_nearly_every_layer() -> None:
    won = []
    for seed in range(100):
        weight, x, _, scale = problem(seed, rows=8, columns=20, samples=200)
        gram = x.T @ x
        plain = rounding.error(weight, gram, scale, rounding.nearest(weight, scale, GRID)).sum()
        won.append(rounding.error(weight, gram, scale, rounding.gptq(weight, gram, scale, GRID)).sum() / plain)
    assert np.mean(np.array(won) < 1) > 0.99
    assert np.mean(won) < 0.8


def test_order_of_the_solvers_on_disturbed_inputs() -> None:
    """Rounding > GPTQ > GPTAQ > refit + GPTQ, as in the control of the method card, on data that was not seen."""
    totals = dict.fromkeys(("nearest", "gptq", "gptaq", "refit"), 0.0)
    for seed in range(5):
        weight, x, disturbed, scale = problem(seed, samples=4000)
        half = len(x) // 2
        seen, cross = disturbed[:half].T @ disturbed[:half], x[:half].T @ disturbed[:half]
        refitted = rounding.refit(weight, seen, cross)
        solved = {
            "nearest": rounding.nearest(weight, scale, GRID),
            "gptq": rounding.gptq(weight, seen, scale, GRID),
            "gptaq": rounding.gptq(weight, seen, scale, GRID, cross=cross - seen, alpha=1.0),
            "refit": rounding.gptq(refitted, seen, scale, GRID),
        }
        for name, levels in solved.items():
            got = disturbed[half:] @ (levels * scale[:, None]).T
            totals[name] += float(((got - x[half:] @ weight.T) ** 2).mean())
    assert totals["nearest"] > totals["gptq"] > totals["gptaq"] > totals["refit"]


def test_gptaq_without_disturbance_is_gptq() -> None:
    weight, x, _, scale = problem(3)
    gram = x.T @ x
    want = rounding.gptq(weight, gram, scale, GRID)
    assert np.array_equal(rounding.gptq(weight, gram, scale, GRID, cross=np.zeros_like(gram)), want)


def test_gpfq_follows_the_path() -> None:
    """Against its definition on the samples themselves: q_t = Q(<u + w_t x_t, x^_t> / |x^_t|^2)."""
    weight, x, disturbed, scale = problem(4, rows=3, columns=12)
    levels = rounding.gpfq(weight, disturbed.T @ disturbed, scale, GRID, cross=x.T @ disturbed)
    for row in range(3):
        u = np.zeros(len(x))
        for t in range(12):
            u = u + weight[row, t] * x[:, t]
            q = GRID.levels(np.array([u @ disturbed[:, t] / (disturbed[:, t] @ disturbed[:, t]) / scale[row]]))[0]
            assert q == levels[row, t]
            u = u - q * scale[row] * disturbed[:, t]


def test_descent_never_raises_the_error_and_ends_in_a_minimum() -> None:
    weight, x, _, scale = problem(5)
    gram = x.T @ x
    start = rounding.gptq(weight, gram, scale, GRID)
    end = rounding.descend(weight, gram, scale, GRID, start, sweeps=50)
    assert (rounding.error(weight, gram, scale, end) <= rounding.error(weight, gram, scale, start) + 1e-9).all()
    assert rounding.error(weight, gram, scale, end).sum() < rounding.error(weight, gram, scale, start).sum()
    for j in range(weight.shape[1]):
        for step in (-1, 1):
            other = end.copy()
            other[:, j] = np.clip(other[:, j] + step, -8, 7)
            assert (rounding.error(weight, gram, scale, other) >= rounding.error(weight, gram, scale, end) - 1e-6).all()


def test_refit_without_disturbance_is_the_weight() -> None:
    weight, x, _, _ = problem(6)
    gram = x.T @ x
    np.testing.assert_allclose(rounding.refit(weight, gram, gram), weight, rtol=1e-6, atol=1e-9)


def test_ridge_holds_the_weight_where_data_say_nothing() -> None:
    weight = np.ones((2, 3))
    gram = np.diag([100.0, 0.0, 100.0])
    got = rounding.refit(weight, gram, np.diag([50.0, 0.0, 50.0]))
    np.testing.assert_allclose(got[:, 1], 1.0)
    np.testing.assert_allclose(got[:, 0], 0.5, atol=0.01)


def test_singular_moments_are_damped_more_and_said() -> None:
    rng = np.random.default_rng(7)
    gram = rng.normal(size=(40, 40))
    gram = gram + gram.T  # not even positive semidefinite
    said: list[str] = []
    upper = rounding.inverse_factor(gram, say=said.append)
    assert np.isfinite(upper).all()
    assert said and "damping" in said[0]


def test_dead_columns_become_zero() -> None:
    weight, x, _, scale = problem(8)
    x[:, 5] = 0
    assert not rounding.gptq(weight, x.T @ x, scale, GRID)[:, 5].any()


def test_groups_have_scales_of_their_own() -> None:
    weight, x, _, _ = problem(9)
    scale = np.abs(weight).reshape(24, 4, 10).max(2) / 7
    levels = rounding.gptq(weight, x.T @ x, scale, GRID, group_size=10)
    gram, own = x.T @ x, np.repeat(scale, 10, axis=1)

    def error(q: np.ndarray) -> float:
        return float(np.einsum("mk,kl,ml->", weight - q, gram, weight - q))

    assert error(levels * own) < error(GRID.levels(weight / own) * own)


@pytest.mark.parametrize("fmt", [Int(2), Int(3), Int(4), Int(8, narrow=True)])
def test_grid_codes_are_those_of_the_format(fmt: Int) -> None:
    grid = Grid(fmt)
    levels = grid.levels(np.linspace(-300, 300, 4001))
    codes = grid.codes(levels)
    assert codes.min() == fmt.min and codes.max() == fmt.max
    assert np.array_equal(fmt.decode(codes), levels)
