"""Quantize a case and write bundles of it without the report's evaluation."""

from __future__ import annotations

from pathlib import Path

import qcompiler
from benchmarks.assets import Case
from qcompiler.bundle import Bundle, manifest_of, write_bundle
from qcompiler.driver import Result
from qcompiler.targets import get_target


def quantize(case: Case, precision: str = "w8a8", arithmetic: str = "float", recipe: str = "default") -> Result:
    """The case at this precision, calibrated on its calibration samples."""
    return qcompiler.quantize(
        str(case.model), case.feed("calib"), recipe, shapes=case.shapes, arithmetic=arithmetic,
        options={"precision": precision},
    )  # fmt: skip


def build(result: Result, path: Path, level: str = "native", arithmetic: str = "float") -> Bundle:
    """A cpu bundle for one instruction set (or `native`): library, weights and the graphs."""
    lowered = get_target("cpu").build(result.integer_graph, {"cpu": level}, lambda stage, done, total: None)
    files = {
        **lowered.files,
        "qdq.onnx": result.qdq_graph.to_proto().SerializeToString(deterministic=True),
        "integer.onnx": result.integer_graph.to_proto().SerializeToString(deterministic=True),
    }
    manifest = manifest_of("cpu", arithmetic, result.integer_graph, files, lowered.manifest, lowered.sizes)
    return write_bundle(path, files, manifest, overwrite=True)


def runnable_levels() -> list[str]:
    """Instruction sets of the cpu target that this machine has, slowest first."""
    from qcompiler.runtime.loader import cpu_flags
    from qcompiler.targets.cpu.isa import LEVELS

    have = cpu_flags()
    return [name for name, machine in LEVELS.items() if have.issuperset(machine.cpu_flags)]
