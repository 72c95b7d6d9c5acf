"""Circuits against their bills: bits and cycles by simulation, LUTs, registers, block RAMs and multipliers by yosys.

    python -m benchmarks.fpga [--only PARTS] [--precisions w8a8,w4a8] [--fps 1000] [--synth xc7,ecp5] [--json FILE]
    python -m benchmarks.fpga --prices        the table of multipliers (targets/fpga/prices.json), minutes

`--synth none` leaves yosys out. The digits CNN and the networks of the assets that have an engine for every node.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import Case, arguments, networks, write_json
from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.cli.console import table
from qcompiler.driver import quantize
from qcompiler.errors import UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.formats import parse_integers
from qcompiler.graph.qdq import FORMAT_KEY
from qcompiler.targets.fpga.build import RTL, build
from qcompiler.targets.fpga.host import HostSession
from qcompiler.targets.shared.boundary import strip_boundary

SAMPLES = 5
STALL = 7
LUT_RAM = {"RAM32M": 4, "RAM64M": 4, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "TRELLIS_DPR16X4": 4}
"""LUTs of a memory cell."""
FLOWS = {
    "xc7": "synth_xilinx -family xc7 -noiopad -noclkbuf -flatten -top {top}{dsp}",
    "ecp5": "synth_ecp5 -top {top}{dsp}",
}


def count(cells: dict[str, int]) -> dict[str, int]:
    """LUTs (those of memories and carry chains of ECP5 too), registers, 18-Kbit block RAMs, multiplier blocks."""
    found = {"lut": 0, "ff": 0, "bram": 0, "dsp": 0}
    for name, number in cells.items():
        if name.startswith("LUT") or name.startswith("SRL"):
            found["lut"] += number
        elif name in LUT_RAM:
            found["lut"] += LUT_RAM[name] * number
        elif name == "CCU2C":
            found["lut"] += 2 * number
        elif name.startswith("FD") or name == "TRELLIS_FF":
            found["ff"] += number
        elif name in ("RAMB18E1", "DP16KD"):
            found["bram"] += number
        elif name == "RAMB36E1":
            found["bram"] += 2 * number
        elif name in ("DSP48E1", "MULT18X18D"):
            found["dsp"] += number
    return found


def synthesize(folder: Path, top: str, family: str, dsp: bool) -> dict[str, int]:
    """What yosys makes of a bundle."""
    with tempfile.TemporaryDirectory() as work:
        for file in (*folder.glob("rtl/*"), *folder.glob("mem/*.hex")):
            (Path(work) / file.name).write_bytes(file.read_bytes())
        flow = FLOWS[family].format(top=top, dsp="" if dsp else " -nodsp")
        script = f"read_verilog -defer *.v\n{flow}\ntee -q -o stat.json stat -json\n"
        (Path(work) / "s.ys").write_text(script)
        subprocess.run(["yosys", "-q", "s.ys"], cwd=work, check=True, capture_output=True)
        modules = json.loads((Path(work) / "stat.json").read_text())["modules"]
    return count(max(modules.values(), key=lambda module: module["num_cells"])["num_cells_by_type"])


def row(case: Case, precision: str, fps: float, dsp: int, families: list[str]) -> Iterator[dict[str, Any]]:
    """One row a family of parts."""
    feed = case.feed("calib")
    result = quantize(
        case.model, feed, "fast", target="fpga", options={"precision": precision}, samples=32,
        shapes=case.shapes,
    )
    graph = result.integer_graph
    assert graph is not None
    lowered = build(graph, {"fps": fps, "dsp": dsp}, lambda stage, done, total: None)
    bill = lowered.facts["circuit"]
    manifest = manifest_of("fpga", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    with tempfile.TemporaryDirectory() as work:
        bundle = write_bundle(Path(work) / "bundle", lowered.files, manifest, overwrite=False)
        stripped, rng = strip_boundary(graph), np.random.default_rng(3)
        oracle = Oracle(stripped)
        frames = []
        for _ in range(SAMPLES):
            sample = {}
            for value in stripped.inputs:
                fmt = parse_integers(value.metadata_props[FORMAT_KEY])
                codes = rng.integers(fmt.min, fmt.max + 1, stripped.shape(value))
                sample[str(value.name)] = codes.astype(fmt.storage)
            frames.append(sample)
        given = [[frame[name] for name in oracle.input_names] for frame in frames]
        wanted = [oracle.run(frame) for frame in frames]
        session = HostSession(bundle.path, bundle.manifest)
        times = []
        for number in (SAMPLES - 2, SAMPLES):
            free = session.run_many(given[:number])
            times.append(session.cycles)
        session.stall = STALL
        stalled = session.run_many(given)
        same = all(
            np.array_equal(want, got)
            for found in (free, stalled)
            for answers, wants in zip(found, wanted, strict=True)
            for got, want in zip(answers, wants, strict=True)
        )
        told = {
            "network": case.name, "precision": precision, "fps": bill["fps"], "exact": same,
            "cycles": (times[1] - times[0]) // 2, "cycles_bill": bill["cycles"],
            "busy": max(one["busy"] for one in bill["layers"] if "busy" in one),
        }  # fmt: skip
        for family in families or [""]:
            real = synthesize(bundle.path, bundle.manifest["fpga"]["top"], family, dsp > 0) if family else {}
            parts = {f"{key}_{how}": value for key in ("lut", "ff", "bram", "dsp")
                     for how, value in (("bill", bill[key]), ("yosys", real.get(key, "")))}  # fmt: skip
            yield {**told, "family": family, **parts}


def prices() -> dict[str, int]:
    """LUTs of every multiplier, synthesized alone."""
    found = {}
    for weight in range(2, 9):
        for activation in (2, 3, 4, 5, 6, 7, 8, 16):
            for signed in (0, 1):
                ports = {"XB": activation, "XS": signed, "YB": weight, "YS": 1}
                if weight > activation:
                    ports = {"XB": weight, "XS": 1, "YB": activation, "YS": signed}
                given = " ".join(f"-chparam {key} {value}" for key, value in ports.items())
                with tempfile.NamedTemporaryFile(suffix=".json") as out:
                    script = (
                        f"read_verilog -defer {RTL / 'qc_mul.v'}; hierarchy -top qc_mul {given}; "
                        f"synth_xilinx -family xc7 -noiopad -noclkbuf -nodsp; tee -q -o {out.name} stat -json"
                    )
                    subprocess.run(["yosys", "-q", "-p", script], check=True, capture_output=True)
                    modules = json.loads(Path(out.name).read_text())["modules"]
                cells = next(iter(modules.values()))["num_cells_by_type"]
                found[f"{weight},{activation},{signed}"] = count(cells)["lut"]
    return found


def main() -> int:
    """Print the table; exit code 1 where a bit differs."""
    given = arguments(
        __doc__, precisions={"default": "w8a8,w4a8"}, fps={"type": float, "default": 1000.0},
        dsp={"type": int, "default": 0}, synth={"default": "xc7"}, prices={"action": "store_true"},
    )  # fmt: skip
    if given.prices:
        print(json.dumps(prices(), indent=1))
        return 0
    families = [] if given.synth == "none" else given.synth.split(",")
    rows = []
    for case in networks(given.only):
        for precision in given.precisions.split(","):
            try:
                rows += list(row(case, precision, given.fps, given.dsp, families))
            except UnsupportedError as error:
                print(f"{case.name}: {error}", file=sys.stderr)
                break
    if rows:
        print(table(list(rows[0]), [list(one.values()) for one in rows]))
    write_json(given.json, rows)
    return 0 if all(one["exact"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
