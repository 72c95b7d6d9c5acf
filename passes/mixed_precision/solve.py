"""Exact solvers: the multiple-choice integer program, with or without pairwise terms, and its Pareto curve.

    min  sum_ik s_ik x_ik + sum_(ij)kl p_ijkl y_ijkl    s.t.  sum_k x_ik = 1,  x binary,  every budget,
         sum_l y_ijkl = x_ik,  sum_k y_ijkl = x_jl,  y >= 0

The products y need no integrality: where x is binary, the two sums leave y = x_ik x_jl. Solved by HiGHS through
scipy.optimize.milp. Every answer is checked against the budgets as they are; one that meets them only within the
solver's tolerance is cut off and the program is solved again.

Sources: Hubara et al. 2020 (CalibTIP), section 4, and Yao et al. 2021 (HAWQ-V3), section 3.4, for the linear program;
Deng et al. 2023 (CLADO) for the quadratic one; its linearization is Adams and Sherali's (1986).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import BudgetError, RecipeError
from qcompiler.passes.mixed_precision.greedy import descend, solve_greedy
from qcompiler.passes.mixed_precision.problem import Pairs, Problem, Solution
from qcompiler.solve.quiet import without_stdout

GAP = 1e-6
TIME_LIMIT = 60.0
"""Seconds. Only where it ends a search is the answer not the same on every machine; the status then says so."""
CUTS = 200
"""Answers that are cut off because they meet a budget only within the solver's tolerance, at most."""
_SCALE = 1e3
"""Largest coefficient of the objective that HiGHS sees: its absolute tolerances, 1e-6, are then small beside it."""


def solve_linear(problem: Problem, *, gap: float = GAP, time_limit: float = TIME_LIMIT) -> Solution:
    """The choice with the least sum of scores within all budgets; `problem.pairs` are not looked at.

    gap: relative, at which the search may stop. time_limit: seconds. Raises BudgetError with the least budget that can
    be met and the item that needs the most of it.
    """
    return _solve(problem, {}, gap, time_limit, None)


def solve_pairwise(problem: Problem, *, gap: float = GAP, time_limit: float = TIME_LIMIT) -> Solution:
    """As `solve_linear`, with the pairwise scores. Starts from a local search, whose choice is kept where the time
    limit comes first; then `gap` says how far from the bound it can be."""
    if not problem.pairs:
        return solve_linear(problem, gap=gap, time_limit=time_limit)
    start = None
    with suppress(BudgetError):  # the program finds out whether nothing fits
        start = descend(problem, solve_greedy(problem).choice)
    with suppress(_TimeUp):
        linear = descend(problem, _solve(problem, {}, 1e-3, time_limit / 4, None).choice)
        start = linear if start is None or problem.score(linear) < problem.score(start) else start
    return _solve(problem, problem.pairs, gap, time_limit, start)


def pareto(
    problem: Problem, name: str, points: int | Sequence[float] = 16, *, gap: float = GAP, time_limit: float = TIME_LIMIT
) -> list[tuple[float, Solution]]:
    """The curve of the best score over the budget `name`: (budget, solution), each optimal for its budget, costs rising
    and scores falling strictly.

    points: budgets, or how many of them, evenly from the least that can be met to where more buys nothing. Other
    budgets of the problem hold throughout. Pairwise scores count if there are any. Budgets that cannot be met, and
    solutions no better than a cheaper one, are left out.
    """
    pairs = problem.pairs

    def at(limit: float | None) -> Solution:
        budgets = {key: value for key, value in problem.budgets.items() if key != name}
        budgets |= {} if limit is None else {name: limit}
        once = dataclasses.replace(problem, budgets=budgets)
        return (solve_pairwise if pairs else solve_linear)(once, gap=gap, time_limit=time_limit)

    if isinstance(points, int):
        least, most = least_cost(problem, name), at(None).costs[name]
        limits = list(np.linspace(least, max(least, most), max(points, 2)))
    else:
        limits = sorted(float(point) for point in points)
    found: list[tuple[float, Solution]] = []
    for limit in limits:
        try:
            one = at(float(limit))
        except BudgetError:
            continue
        if found and one.score >= found[-1][1].score:
            continue
        if found and one.costs[name] <= found[-1][1].costs[name]:
            found.pop()  # as good for no more: a solution within the gap was not the best
        found.append((float(limit), one))
    return found


def least_cost(problem: Problem, name: str, *, time_limit: float = TIME_LIMIT) -> float:
    """The least that `name` can cost while the other budgets hold. Raises BudgetError when they cannot hold."""
    fixed = problem.fixed.get(name, 0.0)
    budgets = {key: value for key, value in problem.budgets.items() if key != name}
    rows = problem.costs.get(name, [np.zeros(k) for k in problem.sizes])
    bare = dataclasses.replace(problem, scores=rows, pairs=problem.pair_costs.get(name, {}), budgets=budgets)
    if not budgets and not bare.pairs:
        return fixed + float(sum(one.min() for one in rows))
    return fixed + _solve(bare, bare.pairs, GAP, time_limit, None).score


def project_psd(scores: Sequence[NDArray], pairs: Pairs) -> tuple[list[NDArray], dict[tuple[int, int], NDArray]]:
    """Scores and pairs of the nearest quadratic form (Frobenius norm) that is positive semidefinite.

    The form is 1/2 a^T G a over the one-hot vectors of all items, G's diagonal 2 * scores, its blocks the pairs (0
    where none is given). Terms of two options of one item never count, since only one is taken. Source: CLADO.
    """
    starts = np.concatenate([[0], np.cumsum([len(one) for one in scores])])
    matrix = np.diag(2 * np.concatenate([np.asarray(one, np.float64) for one in scores]))
    for (i, j), block in pairs.items():
        rows, columns = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
        matrix[rows, columns], matrix[columns, rows] = block, np.asarray(block).T
    values, vectors = np.linalg.eigh(matrix)
    matrix = (vectors * np.maximum(values, 0)) @ vectors.T
    diagonal = np.diag(matrix) / 2
    new = {}
    for i, j in combinations(range(len(scores)), 2):
        block = matrix[starts[i] : starts[i + 1], starts[j] : starts[j + 1]]
        if np.abs(block).max() > 1e-12 * np.abs(matrix).max():  # what no pair links stays unlinked
            new[i, j] = block
    return [diagonal[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)], new


class _TimeUp(RecipeError):
    """The time limit came before any choice was found."""


def _solve(problem: Problem, pairs: Pairs, gap: float, time_limit: float, start: Sequence[int] | None) -> Solution:
    program = _Program(problem, pairs)
    limit = None if start is None else problem.score(start)
    cut: list[tuple[int, ...]] = []
    for _ in range(CUTS):
        result = program.run(gap, time_limit, cut, limit)
        if result.x is None and result.status in (2, 4) and limit is None:
            _refuse(problem, time_limit)
        found = None if result.x is None else program.choice(result.x)
        if found is not None and not problem.fits(found):
            cut.append(found)
            continue
        dual = getattr(result, "mip_dual_bound", None)
        bound = program.offset + dual / program.factor if dual is not None and np.isfinite(dual) else -np.inf
        if result.status == 2 and start is not None:
            bound = limit if limit is not None else bound  # nothing is better than the start
        if found is None and start is None:
            hint = "Give more time, or use the solver `greedy`."
            raise _TimeUp(f"no choice was found in {time_limit:g} s.", where="bits", hint=hint)
        if found is None or (start is not None and _score(problem, pairs, start) < _score(problem, pairs, found)):
            found = tuple(start or ())
        return _solution(problem, pairs, found, bound, gap, result.status)
    hint = "Change a budget a little."
    raise RecipeError("too many choices meet a budget only within rounding.", where="bits", hint=hint)


def _score(problem: Problem, pairs: Pairs, choice: Sequence[int]) -> float:
    return problem.score(choice, linear=not pairs)


def _solution(
    problem: Problem, pairs: Pairs, choice: tuple[int, ...], bound: float, gap: float, status: int
) -> Solution:
    score = _score(problem, pairs, choice)
    spread = max((float(np.ptp(one)) for one in problem.scores), default=0.0)
    away = max(score - bound, 0.0) / max(abs(score), spread / 100, 1e-300)
    if status in (0, 2) and away <= gap:
        away = 0.0 if away <= GAP else away
    word = "optimal" if away <= max(gap, GAP) else "time limit"
    return Solution(tuple(int(k) for k in choice), score, problem.cost(choice), min(bound, score), away, word)


class _Program:
    """The arrays of the integer program. factor, offset: score = offset + objective / factor."""

    def __init__(self, problem: Problem, pairs: Pairs) -> None:
        from scipy.sparse import csr_matrix, vstack

        self.starts = np.concatenate([[0], np.cumsum(problem.sizes)]).astype(int)
        self.binary = int(self.starts[-1])
        sides = [key for key in sorted({*pairs, *(k for one in problem.pair_costs.values() for k in one)})]
        sizes = [problem.sizes[i] * problem.sizes[j] for i, j in sides]
        self.places = dict(zip(sides, self.binary + np.concatenate([[0], np.cumsum(sizes)]).astype(int), strict=False))
        self.count = self.binary + int(sum(sizes))
        raw = self._row(problem, problem.scores, pairs)
        self.offset = sum(float(one.min()) for one in problem.scores)
        for start, one in zip(self.starts, problem.scores, strict=False):
            raw[start : start + one.size] -= one.min()
        largest = float(np.abs(raw).max(initial=0.0))
        self.factor = _SCALE / largest if largest > 0 else 1.0
        self.objective = raw * self.factor
        self.budgets, self.limits = [], []
        none = [np.zeros(k) for k in problem.sizes]
        for name, budget in problem.budgets.items():
            row = self._row(problem, problem.costs.get(name, none), problem.pair_costs.get(name, {}))
            size = max(float(np.abs(row).max(initial=0.0)), abs(budget), 1e-300)
            self.budgets.append(csr_matrix(row / size))
            self.limits.append((budget - problem.fixed.get(name, 0.0)) / size)
        equal, self.right = self._equalities(problem.sizes)
        self.equal = csr_matrix((equal[2], (equal[0], equal[1])), shape=(len(self.right), self.count))
        self._stack = vstack

    def _row(self, problem: Problem, linear: Sequence[NDArray], pairs: Pairs) -> NDArray[np.float64]:
        row = np.zeros(self.count)
        row[: self.binary] = np.concatenate(list(linear))
        for key, matrix in pairs.items():
            at = self.places[key]
            row[at : at + matrix.size] = matrix.reshape(-1)
        return row

    def _equalities(self, sizes: Sequence[int]) -> tuple[tuple[list[int], list[int], list[float]], list[float]]:
        rows: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        right: list[float] = []

        def add(places: Sequence[int], minus: int | None, value: float) -> None:
            rows.extend([len(right)] * (len(places) + (minus is not None)))
            columns.extend(places if minus is None else [*places, minus])
            values.extend([1.0] * len(places) if minus is None else [*[1.0] * len(places), -1.0])
            right.append(value)

        for start, k in zip(self.starts, sizes, strict=False):
            add(range(start, start + k), None, 1.0)
        for (i, j), at in self.places.items():
            products = at + np.arange(sizes[i] * sizes[j]).reshape(sizes[i], sizes[j])
            for k in range(sizes[i]):
                add(products[k].tolist(), int(self.starts[i]) + k, 0.0)
            for k in range(sizes[j]):
                add(products[:, k].tolist(), int(self.starts[j]) + k, 0.0)
        return (rows, columns, values), right

    def run(self, gap: float, time_limit: float, cut: Sequence[Sequence[int]], limit: float | None) -> Any:
        """scipy's result. limit: only choices that score less than this are of interest."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix

        conditions = [LinearConstraint(self.equal, self.right, self.right)]
        if self.budgets:
            conditions.append(LinearConstraint(self._stack(self.budgets), -np.inf, self.limits))
        for choice in cut:
            row = np.zeros(self.count)
            row[self.starts[:-1] + np.asarray(choice)] = 1
            conditions.append(LinearConstraint(csr_matrix(row), -np.inf, len(choice) - 1))
        if limit is not None:
            conditions.append(
                LinearConstraint(csr_matrix(self.objective), -np.inf, (limit - self.offset) * self.factor)
            )
        whole = np.zeros(self.count)
        whole[: self.binary] = 1
        with without_stdout():  # HiGHS has lines for its authors
            return milp(
                self.objective,
                integrality=whole,
                bounds=Bounds(0, 1),
                constraints=conditions,
                options={"mip_rel_gap": gap, "time_limit": time_limit},
            )

    def choice(self, x: NDArray) -> tuple[int, ...]:
        """Options that are taken."""
        return tuple(int(x[a:b].argmax()) for a, b in zip(self.starts[:-1], self.starts[1:], strict=True))


def _refuse(problem: Problem, time_limit: float) -> None:
    """Raise BudgetError: the least of each budget that can be met, and who needs the most of it."""
    lines = []
    for name, budget in problem.budgets.items():
        alone = dataclasses.replace(problem, budgets={name: budget})
        least = least_cost(alone, name, time_limit=time_limit)
        if least > budget * (1 + np.sign(budget) * 1e-9):
            rows = problem.costs.get(name)
            lowest = [float(one.min()) for one in rows] if rows is not None else [0.0]
            most = int(np.argmax(lowest))
            share = f", of which `{problem.names[most]}` {lowest[most]:.10g}" if lowest[most] > 0 else ""
            if fixed := problem.fixed.get(name, 0.0):
                share += f"; {fixed:.10g} is the same whatever the widths"
            lines.append((name, budget, least, share))
    if lines:
        text = "; ".join(f"{name} needs at least {least:.10g}{share}" for name, _, least, share in lines)
        more = ", ".join(f"{name} to {least:.10g}" for name, _, least, _ in lines)
        hint = f"Raise {more}, offer fewer bits, or pin and exclude fewer nodes."
        raise BudgetError(f"no assignment fits: {text}.", where="bits", hint=hint)
    told = []
    for name in problem.budgets:
        try:
            told.append(f"{name} {least_cost(problem, name, time_limit=time_limit):.10g}")
        except BudgetError:
            continue  # the others contradict each other
    hint = f"With the other budgets as they are, the least is {', or '.join(told)}." if told else "Raise several."
    raise BudgetError("no assignment fits all budgets at once, though each alone can be met.", where="bits", hint=hint)
