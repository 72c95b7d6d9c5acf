"""The cuda target against the oracle on every problem, run by the emulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.stages import Stage, check
from qcompiler.targets.cuda.build import build
from qcompiler.targets.cuda.emulate import EmulatedSession
from tests.conformance.suite import build_suite, samples

EXCEPTIONS: dict[str, str] = {}
"""Problems that the target does not solve, with the reason."""


@pytest.mark.parametrize(("arithmetic", "level"), [("float", "sm_75"), ("fixed", "sm_75"), ("float", "sm_90a")])
def test_every_problem_has_the_oracles_bits(arithmetic: str, level: str, tmp_path: Path) -> None:
    problems = build_suite(arithmetic)
    check(problems.graph, Stage.INTEGER)
    lowered = build(problems.graph, {"arch": "none"}, lambda stage, done, total: None)
    manifest = manifest_of("cuda", arithmetic, problems.graph, lowered.files, lowered.manifest, lowered.sizes)
    bundle = write_bundle(tmp_path / "bundle", lowered.files, manifest, overwrite=False)
    session = EmulatedSession(bundle.path, bundle.manifest, level)
    oracle = Oracle(problems.graph)
    wrong: set[str] = set()
    for sample in samples(problems, 4):
        for name, want, got in zip(oracle.output_names, oracle.run(sample), session.run(sample), strict=True):
            if not np.array_equal(want, got):
                wrong.add(name)
    assert wrong - set(EXCEPTIONS) == set()
