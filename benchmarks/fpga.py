"""Circuits against their bills: bits, cycles and use of lanes by simulation, cells by yosys, the clock by nextpnr.

    python -m benchmarks.fpga [--only PARTS] [--precisions w8a8,w4a8] [--fps 1000] [--dsp 0] [--parts xc7z020,ecp5-85k]
        [--do simulate,synth] [--json FILE]
    python -m benchmarks.fpga --only digits --precisions w4a8 --parts ecp5-25k --do simulate,synth,place --seeds 4
    python -m benchmarks.fpga --prices      the table of multipliers (targets/fpga/prices.json), minutes
    python -m benchmarks.fpga --modules ... every module of these circuits for itself, by kind: bill against yosys

The digits CNN and the networks of the assets that have an engine for every node. --do place takes ECP5 parts; it
starts nextpnr from as many as --seeds, until the clock is reached, and keeps the best.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.assets import Case, arguments, networks, write_json
from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.cli.console import table
from qcompiler.driver import quantize
from qcompiler.errors import UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.formats import parse_integers
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import FORMAT_KEY
from qcompiler.target import Lowered
from qcompiler.targets.fpga.build import RTL, build
from qcompiler.targets.fpga.host import HostSession
from qcompiler.targets.fpga.netlist import Instance, instance_module, memory_file
from qcompiler.targets.fpga.parts import CLOCK, PARTS
from qcompiler.targets.fpga.plan import plan_of
from qcompiler.targets.fpga.reader import network_of
from qcompiler.targets.fpga.resources import CODINGS, Resources, module_resources, total
from qcompiler.targets.fpga.scripts import FLOWS
from qcompiler.targets.fpga.synthesis import modules, place, synthesize
from qcompiler.targets.fpga.testbench import hex_words
from qcompiler.targets.shared.boundary import strip_boundary

SAMPLES = 5
STALL = 7
CELLS = ("lut", "ff", "bram", "dsp")


def quantized(case: Case, precision: str) -> Graph:
    """The integer graph: what its weights are does not matter to a bill, so the fast recipe."""
    feed = case.feed("calib")
    result = quantize(
        case.model, feed, "fast", target="fpga", options={"precision": precision}, samples=32, shapes=case.shapes
    )
    assert result.integer_graph is not None
    return result.integer_graph


def simulated(graph: Graph, lowered: Lowered) -> dict[str, Any]:
    """Whether all codes are the oracle's, with and without stalls, and the cycles from image to image."""
    manifest = manifest_of("fpga", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
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
    with tempfile.TemporaryDirectory() as work:
        bundle = write_bundle(Path(work) / "bundle", lowered.files, manifest, overwrite=False)
        session = HostSession(bundle.path, bundle.manifest)
        times = []
        for number in (SAMPLES - 2, SAMPLES):
            free = session.run_many(given[:number])
            times.append(session.cycles)
        session.stall = STALL
        stalled = session.run_many(given)
    same = sum(equal_frames(found, wanted) for found in (free, stalled))
    cycles = (times[1] - times[0]) // 2
    return {"exact": same == 2 * SAMPLES, "cycles": cycles, "lanes_busy": lanes_busy(lowered.facts["circuit"], cycles)}


def equal_frames(found: Sequence[Sequence[NDArray]], wanted: Sequence[Sequence[NDArray]]) -> int:
    """How many frames have the wanted codes, all of them."""
    return sum(
        all(np.array_equal(want, got) for want, got in zip(wants, answers, strict=True))
        for answers, wants in zip(found, wanted, strict=True)
    )


def lanes_busy(bill: dict[str, Any], cycles: int) -> float:
    """Share of the products that the lanes of the layer with the least idle ones could have made in so many cycles."""
    return max(one["macs"] / (one["pe"] * one["simd"] * cycles) for one in bill["layers"] if one.get("macs"))


def row(
    graph: Graph, name: str, precision: str, options: dict[str, Any], do: Sequence[str], seeds: int = 1
) -> dict[str, Any]:
    """One circuit."""
    lowered = build(graph, options, lambda stage, done, total: None)
    bill, part = lowered.facts["circuit"], PARTS[options["part"]]
    found: dict[str, Any] = {
        "network": name, "precision": precision, "part": part.name, "fps": bill["fps"], "dsp_limit": options["dsp"],
        "cycles_bill": bill["cycles"], "bill": {key: bill[key] for key in CELLS},
    }  # fmt: skip
    if "simulate" in do:
        found |= simulated(graph, lowered)
    if "synth" in do or "place" in do:
        with tempfile.TemporaryDirectory() as work:
            netlist = Path(work) / "ecp5.json" if "place" in do and part.family == "ecp5" else None
            start = time.perf_counter()
            cells = synthesize(lowered.files, lowered.manifest["top"], part.family, options["dsp"] > 0, netlist)
            found |= {"yosys": asdict(cells), "yosys_seconds": round(time.perf_counter() - start)}
            if netlist is not None:
                tried = []
                for seed in range(1, seeds + 1):
                    tried.append(place(netlist, part, seed=seed))
                    if tried[-1].mhz >= CLOCK / 1e6:
                        break
                placed = max(tried, key=lambda one: one.mhz)
                seconds = round(sum(one.seconds for one in tried))
                found |= {"placed": {**asdict(placed), "seconds": seconds, "tried": [one.mhz for one in tried]}}
    return found


def line(one: dict[str, Any]) -> list[str]:
    """A row of the table: bill, counted."""
    told = [one["network"], one["precision"], one["part"], f"{one['fps']:.0f}"]
    told.append(f"{one['cycles_bill']}, {one['cycles']}" if "cycles" in one else f"{one['cycles_bill']}")
    told.append(f"{one['lanes_busy']:.1%}" if "lanes_busy" in one else "")
    for key in CELLS:
        text = f"{one['bill'][key]}"
        if "yosys" in one:
            real = one["yosys"][key]
            text += f", {real}" + (f" ({one['bill'][key] / real - 1:+.1%})" if key in ("lut", "ff") and real else "")
        told.append(text)
    told.append(f"{one['placed']['mhz']:.1f} MHz" if "placed" in one else "")
    return told + [{True: "yes", False: "NO"}.get(one.get("exact"), "")]  # type: ignore[arg-type]


HEADERS = [
    "network", "precision", "part", "images/s", "cycles", "lanes busy", "LUTs", "registers", "block RAMs",
    "multipliers", "clock", "exact",
]  # fmt: skip


def by_kind(graph: Graph, options: dict[str, Any]) -> Iterator[tuple[Instance, Resources, Resources]]:
    """(module, bill, yosys) of every different module of a circuit, each synthesized for itself."""
    part = PARTS[options["part"]]
    net = plan_of(network_of(strip_boundary(graph)), options).net
    distinct: dict[tuple[Any, ...], Instance] = {}
    for instance in net.instances:
        distinct.setdefault((instance.module.kind, *sorted(instance.module.parameters.items())), instance)
    files = {f"rtl/{file.name}": file.read_bytes() for file in RTL.iterdir()}
    texts: dict[str, str] = {}
    for instance in distinct.values():
        texts[f"w_{instance.name}"] = instance_module(f"w_{instance.name}", instance)
        for key, words in instance.module.files.items():
            files[f"mem/{memory_file(instance, key)}"] = hex_words(words()).encode()
    real = modules(files, texts, part.family, options["dsp"] > 0)
    for instance in distinct.values():
        yield instance, module_resources(instance.module, part.family), real[f"w_{instance.name}"]


def show_kinds(found: Sequence[tuple[Instance, Resources, Resources]]) -> str:
    """Sums by kind."""
    rows = []
    for kind in sorted({one.module.kind for one, _, _ in found}):
        bills, reals = zip(*((bill, real) for one, bill, real in found if one.module.kind == kind), strict=True)
        bill, real = total(bills), total(reals)
        cells = [f"{getattr(bill, key)}, {getattr(real, key)}" for key in CELLS]
        rows.append([kind, str(len(bills)), *cells, f"{bill.lut / max(1, real.lut) - 1:+.1%}"])
    return table(["module", "different", *CELLS, "LUTs off by"], rows)


def prices() -> dict[str, dict[str, dict[str, int]]]:
    """LUTs of every multiplier by coding of weights and family, each synthesized for itself."""
    files = {f"rtl/{file.name}": file.read_bytes() for file in RTL.iterdir()}
    texts, keys = {}, {}
    for magnitude, weight, activation, signed in product(range(3), range(2, 9), (2, 3, 4, 5, 6, 7, 8, 16), (0, 1)):
        name = f"mul_{magnitude}_{weight}_{activation}_{signed}"
        given = f".WB({weight}), .AB({activation}), .AS({signed}), .WM({magnitude})"
        ports = f"input [{activation - 1}:0] a, input [{weight - 1}:0] w, output [{weight + activation}:0] p, output n"
        texts[name] = (
            f"module {name} ({ports});\n  qc_mul_int #({given}) mul (.a(a), .w(w), .p(p), .n(n));\nendmodule\n"
        )
        keys[magnitude, f"{weight},{activation},{signed}"] = name
    found = {family: modules(files, texts, family, dsp=False) for family in FLOWS}
    return {
        coding: {
            family: {key: cells[name].lut for (which, key), name in keys.items() if which == magnitude}
            for family, cells in found.items()
        }
        for magnitude, coding in enumerate(CODINGS)
    }


def main() -> int:
    """Print the table; exit code 1 where a bit differs."""
    given = arguments(
        __doc__, precisions={"default": "w8a8,w4a8"}, fps={"type": float, "default": 1000.0},
        dsp={"type": int, "default": 0}, parts={"default": "xc7z020"}, do={"default": "simulate,synth"},
        seeds={"type": int, "default": 1}, prices={"action": "store_true"}, modules={"action": "store_true"},
    )  # fmt: skip
    if given.prices:
        print(json.dumps(prices(), indent=1))
        return 0
    rows: list[dict[str, Any]] = []
    kinds = []
    for case in networks(given.only):
        for precision in given.precisions.split(","):
            try:
                graph = quantized(case, precision)
                for part in given.parts.split(","):
                    options = {"fps": given.fps, "dsp": given.dsp, "part": part}
                    if given.modules:
                        kinds += list(by_kind(graph, options))
                        continue
                    rows.append(row(graph, case.name, precision, options, given.do.split(","), given.seeds))
                    print(" | ".join(line(rows[-1])), file=sys.stderr, flush=True)
            except UnsupportedError as error:
                print(f"{case.name}: {error}", file=sys.stderr)
                break
    if kinds:
        print(show_kinds(kinds))
        write_json(given.json, [
            {"name": one.name, "kind": one.module.kind, **one.module.parameters, "bill": asdict(bill),
             "yosys": asdict(real)} for one, bill, real in kinds
        ])  # fmt: skip
        return 0
    if rows:
        print(table(HEADERS, [line(one) for one in rows]))
    write_json(given.json, rows)
    return 0 if all(one.get("exact", True) for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
