"""Operators that the cuda target does in one kernel, against the oracle, run by the emulator."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.stages import Stage, check
from qcompiler.targets.cuda.build import build, plan
from qcompiler.targets.cuda.emulate import EmulatedSession
from qcompiler.targets.cuda.machine import LEVELS
from tests.conformance.fused import fused_suite
from tests.conformance.suite import samples


@pytest.mark.parametrize(("arithmetic", "level"), [("float", "sm_75"), ("fixed", "sm_90a"), ("float", "sm_61")])
def test_fused_operators_have_the_oracles_bits(arithmetic: str, level: str, tmp_path: Path) -> None:
    problems = fused_suite(arithmetic)
    check(problems.graph, Stage.INTEGER)
    archs = "sm_61" if level == "sm_61" else "none"
    lowered = build(problems.graph, {"arch": archs}, lambda stage, done, total: None)
    manifest = manifest_of("cuda", arithmetic, problems.graph, lowered.files, lowered.manifest, lowered.sizes)
    bundle = write_bundle(tmp_path / "bundle", lowered.files, manifest, overwrite=False)
    session = EmulatedSession(bundle.path, bundle.manifest, level, optimize="-O0")
    oracle = Oracle(problems.graph)
    wrong: set[str] = set()
    for sample in samples(problems, 2):
        for name, want, got in zip(oracle.output_names, oracle.run(sample), session.run(sample), strict=True):
            if not np.array_equal(want, got):
                wrong.add(name)
    assert wrong == set()


def test_what_can_be_one_kernel_is() -> None:
    problems = fused_suite("float")
    calls = plan(problems.graph, "sm_75", lambda stage, done, total: None).calls
    kinds = Counter(call.kernel.split("_")[1] for call in calls)
    assert kinds["attention"] == 8  # but not with hidden cells, nor where scores do not fit
    assert kinds["softmax"] == 2 and kinds["batchedproduct"] == 12 and kinds["directproduct"] == 2
    left = {call.node for call in calls if call.kernel.split("_")[1] in ("add", "lookup")}
    assert len(left) == 7, left


def test_long_sums_of_few_outputs_have_parts() -> None:
    problems = fused_suite("float")
    for level in ("sm_75", "sm_90a"):
        calls = plan(problems.graph, level, lambda stage, done, total: None).calls
        split = [call for call in calls if getattr(call.spec, "split", False)]
        assert len(split) == 6
        assert all(call.launch.grid[2] > 1 and call.arguments[-1].buffer.kind == "counters" for call in split)


def test_codes_of_four_bits_are_multiplied_as_such_before_sm_90() -> None:
    graph = fused_suite("float").graph
    found = {}
    for level in LEVELS:
        calls = plan(graph, level, lambda stage, done, total: None).calls
        found[level] = sum(getattr(call.spec, "narrow", False) for call in calls)
    assert found == {"sm_61": 0, "sm_75": 6, "sm_90a": 0}
