"""The cpu target against the oracle on every problem: every instruction set that this machine runs, 1 to 3 threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.stages import Stage, check
from qcompiler.runtime.loader import cpu_flags
from qcompiler.targets.cpu.build import build
from qcompiler.targets.cpu.isa import LEVELS
from tests.conformance.suite import build_suite, samples

EXCEPTIONS: dict[str, str] = {}
"""Problems that the target does not solve, with the reason."""


@pytest.fixture(scope="module", params=["float", "fixed"])
def suite(request: pytest.FixtureRequest) -> tuple:
    problems = build_suite(request.param)
    check(problems.graph, Stage.INTEGER)
    inputs = samples(problems, 4)
    oracle = Oracle(problems.graph)
    return problems.graph, inputs, [oracle.run(sample) for sample in inputs], oracle.output_names


@pytest.mark.parametrize("level", LEVELS)
def test_every_problem_has_the_oracles_bits(suite: tuple, level: str, tmp_path: Path) -> None:
    missing = set(LEVELS[level].cpu_flags) - cpu_flags()
    if missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    graph, inputs, expected, names = suite
    lowered = build(graph, {"cpu": level}, lambda stage, done, total: None)
    manifest = manifest_of("cpu", "float", graph, lowered.files, lowered.manifest, lowered.sizes)
    bundle = write_bundle(tmp_path / "bundle", lowered.files, manifest, overwrite=False)
    wrong: set[str] = set()
    for threads in (1, 2, 3):
        with bundle.load(threads=threads) as session:
            for sample, wanted in zip(inputs, expected, strict=True):
                for name, want, got in zip(names, wanted, session.run(sample), strict=True):
                    if not np.array_equal(want, got):
                        wrong.add(f"{name} ({threads} threads)")
    assert wrong - set(EXCEPTIONS) == set()
