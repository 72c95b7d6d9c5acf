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


@pytest.mark.parametrize("arithmetic", ["float", "fixed"])
def test_every_problem_has_the_oracles_bits(arithmetic: str, tmp_path: Path) -> None:
    problems = build_suite(arithmetic)
    check(problems.graph, Stage.INTEGER)
    lowered = build(problems.graph, {"arch": "none"}, lambda stage, done, total: None)
    manifest = manifest_of("cuda", arithmetic, problems.graph, lowered.files, lowered.manifest, lowered.sizes)
    bundle = write_bundle(tmp_path / "bundle", lowered.files, manifest, overwrite=False)
    oracle, wrong = Oracle(problems.graph), set()
    given = list(samples(problems, 4))
    wanted = [oracle.run(sample) for sample in given]
    for level in ("sm_75", "sm_90a") if arithmetic == "float" else ("sm_75",):
        session = EmulatedSession(bundle.path, bundle.manifest, level, optimize="-O0")
        for sample, outputs in zip(given, wanted, strict=True):
            for name, want, got in zip(oracle.output_names, outputs, session.run(sample), strict=True):
                if not np.array_equal(want, got):
                    wrong.add(f"{name} ({level})")
        session.close()
    assert {name for name in wrong if name.split(" ")[0] not in EXCEPTIONS} == set()
