"""Accuracy at equal look-up tables: bits chosen layer by layer for a circuit, beside one width for all weights.

    python -m benchmarks.fpga_mixed [--only digits,tiny_resnet8] [--widths 3,4,5,6,8] [--minifloats e2m1,e2m2]
                                    [--fps 2000] [--part xc7z020] [--draws 1] [--json FILE]

For each network and rate, uniform circuits first (first and last layer 8 bits, as recipes have it), of integers and of
minifloats, then `--budget lut=` with what each uniform circuit takes, in which both are on offer. LUTs are the bill of
what is built (`--dsp 0`), rates cycles at 100 MHz. Accuracy is that of the whole test split, run as a bundle of the cpu
target from the very integer graph of the circuit: the same bits. SQNR is of its outputs against float: a few
pictures more or less are chance, it is not. `best uniform`: the best accuracy, and the best SQNR, of uniform circuits
that take no more LUTs.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.assets import Case, arguments, cases, write_json
from benchmarks.bundles import build as cpu_bundle
from benchmarks.low_bits import outputs
from qcompiler.calibrate.data import load_samples
from qcompiler.cli.console import table
from qcompiler.driver import quantize
from qcompiler.errors import BudgetError
from qcompiler.evaluate import runner, sqnr
from qcompiler.targets.fpga.plan import plan_of
from qcompiler.targets.fpga.reader import network_of
from qcompiler.targets.shared.boundary import strip_boundary


def row(
    case: Case, draw: int, options: dict[str, Any], weights: str, budget: float | None = None, offer: Sequence[str] = ()
) -> dict[str, Any]:
    """One circuit: weights of one format, or with a budget, formats by the integer program. offer: minifloats."""
    start = time.perf_counter()
    drawn = dataclasses.replace(case, draw=(draw, 512))
    precision: dict[str, Any] = {"options": {"precision": f"{weights}w-int8a"}}
    if budget is not None:
        precision = {"budget": {"lut": budget}, "options": {"assign_bits.minifloats": tuple(offer)}}
    result = quantize(
        case.model, drawn.feed("calib"), "auto", target="fpga", shapes=case.shapes, target_options=options, **precision
    )
    seconds = time.perf_counter() - start
    assert result.integer_graph is not None
    plan = plan_of(network_of(strip_boundary(result.integer_graph)), options)
    test = load_samples(case.feed("test"), result.float_graph)
    with tempfile.TemporaryDirectory() as folder:
        ours = outputs(runner(cpu_bundle(result, Path(folder) / "bundle", arithmetic="fixed")), test, 1)
    exact = outputs(runner(result.float_graph), test)
    facts = result.context.facts.get("assign_bits", {"items": []})
    return {
        "network": case.name, "draw": draw, "bits": weights if budget is None else "mixed", "budget": budget,
        "chosen": {one["name"]: one.get("option", one["chosen"]) for one in facts["items"] if not one["pinned"]},
        "lut": plan.resources.lut, "bram": plan.resources.bram, "cycles": plan.times.interval,
        "fps": round(1e8 / plan.times.interval, 1), "part": plan.part.name,
        "fits": plan.resources.lut <= plan.part.lut and plan.resources.bram <= plan.part.bram,
        "float": case.score(exact, exact), "accuracy": case.score(ours, exact), "samples": len(ours),
        "sqnr": sqnr(exact, ours),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def rows(
    case: Case, draw: int, options: dict[str, Any], formats: Sequence[str], offer: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Uniform circuits, then mixed ones of their LUTs with the best uniform accuracy beside."""
    uniform = []
    for weights in formats:
        uniform.append(row(case, draw, options, weights))
        yield uniform[-1]
    for one in uniform:
        try:
            found = row(case, draw, options, "int8", one["lut"], offer)
        except BudgetError as error:
            print(f"{case.name} {one['bits']}: {error}", file=sys.stderr)
            continue
        fitting = [other for other in uniform if other["lut"] <= one["lut"]]
        yield found | {
            "best_uniform": max(other["accuracy"] for other in fitting),
            "best_sqnr": max(other["sqnr"] for other in fitting),
        }


HEADERS = ["network", "weights", "LUTs", "images/s", "float", "accuracy", "SQNR dB", "best uniform", "part", "s"]


def line(one: dict[str, Any]) -> list[str]:
    """A row of the table."""
    beside = f"{one['best_uniform']:.4f}, {one['best_sqnr']:.1f}" if "best_uniform" in one else ""
    limit = f" of {one['budget']:.0f}" if one["budget"] is not None else ""
    return [one["network"], one["bits"], f"{one['lut']}{limit}", f"{one['fps']:.0f}", f"{one['float']:.4f}",
            f"{one['accuracy']:.4f}", f"{one['sqnr']:.1f}", beside,
            f"{'fits' if one['fits'] else 'does not fit'} {one['part']}",
            f"{one['seconds']:.0f}"]  # fmt: skip


def held(one: dict[str, Any]) -> bool:
    """Whether a mixed circuit holds its budget and has no lower SQNR than the best uniform one."""
    return one["budget"] is None or (one["lut"] <= one["budget"] and one["sqnr"] >= one["best_sqnr"])


def main() -> int:
    """Print the table; exit code 1 where a row is not `held`."""
    given = arguments(
        __doc__, widths={"default": "3,4,5,6,8"}, fps={"type": float, "default": 2000.0}, part={"default": "xc7z020"},
        draws={"type": int, "default": 1}, minifloats={"default": "e2m1,e2m2"},
    )  # fmt: skip
    options = {"fps": given.fps, "dsp": 0, "part": given.part}
    offer = [token for token in given.minifloats.split(",") if token]
    formats = [*(f"int{bits}" for bits in given.widths.split(",")), *offer]
    found: list[dict[str, Any]] = []
    for case in cases(given.only or "digits cnn,tiny_resnet8"):
        for draw in range(given.draws):
            for one in rows(case, draw, options, formats, offer):
                found.append(one)
                print(" | ".join(line(one)), file=sys.stderr, flush=True)
                write_json(given.json, found)
    print(table(HEADERS, [line(one) for one in found]))
    return 0 if all(held(one) for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
