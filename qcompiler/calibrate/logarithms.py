"""From samples to the base and scale of a logarithmic format: searches over an error that the caller measures.

Both searches keep what they found best, so that the result is never worse than any candidate that they looked at, and
break ties by the order of the candidates: the same data give the same parameters.

Source: Wu et al. 2024, AdaLog, section 3.4 (fast progressive combining search). Deviations: the best candidate of a
round stays in the beam (the paper's code can lose it), and base sqrt 2, which lies between two bases of the paper, is a
candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import Log, QuantParams
from qcompiler.quantizer import fake_quantize

DENOMINATOR = 37
"""r of the bases 2^(q/r): a prime, so that mantissas differ."""
BASES = range(10, 139)
"""q of the bases that are tried."""
SCALES = 16
"""Clipping levels that are tried at first."""
Objective = Callable[[QuantParams], float]
"""Error that a quantizer with these parameters causes."""


def params_at(fmt: Log, level: float, shift: float = 0.0) -> QuantParams:
    """Parameters whose largest value is `level` - shift: x + shift is clipped at `level`, and 0 is x = -shift.

    The zero point is an integer, so the shift is met within half a level.
    """
    scale = np.float32(max(level, float(np.finfo(np.float32).tiny) * fmt.one) / fmt.one)
    return QuantParams(fmt, scale, np.int64(np.clip(np.rint(shift / float(scale)), 0, fmt.one)))


def bases(kind: str, bits: int) -> list[Log]:
    """Formats of a kind: log2, logsqrt2, or adalog (all bases of the paper, and sqrt 2)."""
    fixed = {"log2": Log(bits), "logsqrt2": Log(bits, 1, 2)}
    if kind in fixed:
        return [fixed[kind]]
    return list(dict.fromkeys([*fixed.values(), *(Log(bits, q, DENOMINATOR) for q in BASES)]))


def search_probabilities(formats: Sequence[Log], levels: Sequence[float], error: Objective) -> QuantParams:
    """Base and clipping level of a Softmax: every base at levels[0], then the best eight at the other levels."""
    first = _best([params_at(fmt, levels[0]) for fmt in formats], error, 8)
    rest = [params_at(_log(params), level) for _, params in first for level in levels[1:]]
    return _best([params for _, params in first], error, 1, rest)[0][1]


def search_activation(
    formats: Sequence[Log], low: float, high: float, shift: float, error: Objective, *, rounds: int = 4
) -> QuantParams:
    """Base and clipping level of an activation that is at least -shift.

    low, high: clipping levels of x + shift between which SCALES are tried. All bases at `high`; the best 8 at each of
    the scales; then `rounds` times the best 32 with 4 scales each, within half a step that shrinks to a quarter.
    """
    beam = _best([params_at(fmt, high, shift) for fmt in formats], error, 8)
    levels = np.linspace(low, high, SCALES)
    step = float(levels[1] - levels[0])
    beam = _best([], error, 32, [params_at(_log(p), float(s), shift) for _, p in beam for s in levels], beam)
    for _ in range(rounds if step > 0 else 0):
        offsets = (np.arange(4) / 3 - 0.5) * step
        spawned = [params_at(_log(p), _level(p) + float(d), shift) for _, p in beam for d in offsets]
        beam = _best([], error, 32, [p for p in spawned if _level(p) > shift], beam)
        step /= 4
    return beam[0][1]


def product_error(pairs: Sequence[tuple[NDArray, NDArray]], *, right: bool = False) -> Objective:
    """Squared error of products, summed: A V over float32 pairs A [..., M, K] and V [..., K, N]; right: V's."""

    def error(params: QuantParams) -> float:
        total = 0.0
        for a, v in pairs:
            wrong = a @ (fake_quantize(v, params) - v) if right else (fake_quantize(a, params) - a) @ v
            total += float(np.square(wrong, dtype=np.float64).sum())
        return total

    return error


def tensor_error(arrays: Sequence[NDArray]) -> Objective:
    """Squared error of float32 values themselves, where what they cause is not at hand."""

    def error(params: QuantParams) -> float:
        return float(sum(np.square(fake_quantize(x, params) - x, dtype=np.float64).sum() for x in arrays))

    return error


def _log(params: QuantParams) -> Log:
    assert isinstance(params.format, Log)
    return params.format


def _level(params: QuantParams) -> float:
    return float(params.scale) * _log(params).one


Scored = list[tuple[float, QuantParams]]


def _best(
    first: Sequence[QuantParams],
    error: Objective,
    count: int,
    others: Sequence[QuantParams] = (),
    known: Scored | None = None,
) -> Scored:
    """The `count` candidates of least error, those of `known` without measuring them again; earlier ones win ties."""
    scored = list(known or [])
    scored += [(error(params), params) for params in (*first, *others)]
    order = sorted(range(len(scored)), key=lambda i: scored[i][0])
    return [scored[i] for i in order[:count]]
