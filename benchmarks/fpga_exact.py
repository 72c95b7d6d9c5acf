"""Circuits against the oracle, bit by bit: test images and random codes through simulators, with and without stalls.

    python -m benchmarks.fpga_exact [--only kws] [--precisions w8a8,w4a8] [--fps 1000] [--samples 5]
        [--simulators verilator,iverilog] [--json FILE]

By default `NETWORKS` at `PRECISIONS`, an hour or more: Verilator compiles each for a minute. Where a Softmax stands
at the end, the circuit gives its input as well. Every row also compiles model_c/, the C twin, whose self-test holds the
oracle's answers. The JSON file is written after every row. Exit code 1 where a bit differs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.assets import Case, arguments, networks, write_json
from benchmarks.fpga import STALL, equal_frames, quantized
from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.cli.console import table
from qcompiler.errors import UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.formats import parse_format
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import FORMAT_KEY
from qcompiler.targets.fpga.build import build
from qcompiler.targets.fpga.host import HostSession
from qcompiler.targets.shared.boundary import strip_boundary
from qcompiler.targets.shared.codes import codes_of, storage_of

PRECISIONS = "w8a8,w4a8,w4a4,e2m1w-int8a,e2m1w-e2m1a,e3m2w-int8a"
NETWORKS = "digits cnn,mlperf_tiny_ad,mlperf_tiny_kws,mlperf_tiny_resnet8"


def frames_of(case: Case, graph: Graph, specs: list[dict[str, Any]], count: int) -> list[dict[str, NDArray]]:
    """Codes of test images, every third frame random ones."""
    test, rng, found = case.feed("test"), np.random.default_rng(3), []
    for k in range(count):
        frame = {}
        for spec in specs:
            shape = graph.shape(graph.value(spec["name"]))
            codes = codes_of({name: array[k : k + 1] for name, array in test.items()}, spec)
            if k % 3 == 2:
                ends = np.iinfo(storage_of(spec))
                codes = np.clip(rng.integers(ends.min, ends.max + 1, shape), codes.min(), codes.max())
            frame[spec["name"]] = codes.reshape(shape).astype(storage_of(spec))
        found.append(frame)
    return found


def show_logits(graph: Graph) -> None:
    """Make what a Softmax reads an output as well: after it, codes are mostly the lowest and the highest."""
    for node in graph.nodes("Softmax"):
        value = node.inputs[0]
        assert value is not None
        meta = value.metadata_props
        storage = parse_format(meta[FORMAT_KEY]).storage
        numbers = [np.float32(meta["qcompiler.scale"]), np.asarray(int(meta["qcompiler.zero_point"]), storage)]
        inputs = [value, *(graph.add_const(f"{value.name}_{i}", number) for i, number in enumerate(numbers))]
        shown = graph.add_node("DequantizeLinear", inputs, name=f"{value.name}/shown", outputs=[f"{value.name}_shown"])
        shown.outputs[0].shape, shown.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
        graph.ir.outputs.append(shown.outputs[0])


def twin_agrees(folder: Path) -> bool:
    """Whether the C twin's self-test passes."""
    run = subprocess.run(["make", "-C", str(folder), "test"], capture_output=True, text=True, check=False)
    return run.returncode == 0 and "PASS" in run.stdout


def rows(case: Case, precision: str, fps: float, samples: int, simulators: list[str]) -> Iterator[dict[str, Any]]:
    """One a simulator."""
    graph = quantized(case, precision)
    show_logits(graph)
    lowered = build(graph, {"fps": fps, "dsp": 0}, lambda stage, done, total: None)
    bill = lowered.facts["circuit"]
    manifest = manifest_of("fpga", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    with tempfile.TemporaryDirectory() as work:
        bundle = write_bundle(Path(work) / "bundle", lowered.files, manifest, overwrite=False)
        stripped = strip_boundary(graph)
        oracle = Oracle(stripped)
        frames = frames_of(case, stripped, bundle.manifest["inputs"], samples)
        wanted = [oracle.run(frame) for frame in frames]
        given = [[frame[name] for name in oracle.input_names] for frame in frames]
        twin = twin_agrees(bundle.path / "model_c")
        for simulator in simulators:
            start = time.perf_counter()
            session = HostSession(bundle.path, bundle.manifest, simulator)
            same, cycles = 0, []
            for stall in (0, STALL):
                session.stall = stall
                same += equal_frames(session.run_many(given), wanted)
                cycles.append(session.cycles)
            yield {
                "network": case.name, "precision": precision, "fps": bill["fps"], "lut_bill": bill["lut"],
                "simulator": simulator, "frames": 2 * samples, "exact": same, "cycles": cycles[0],
                "cycles_stalled": cycles[1], "interval_bill": bill["cycles"], "distinct": distinct(wanted),
                "twin": twin, "seconds": round(time.perf_counter() - start, 1),
            }  # fmt: skip


def distinct(wanted: list[list[NDArray]]) -> int:
    """How many different codes the answers have: a network that always says the same proves little."""
    return len(np.unique(np.concatenate([array.reshape(-1) for arrays in wanted for array in arrays])))


def main() -> int:
    """Print the table."""
    given = arguments(
        __doc__, precisions={"default": PRECISIONS}, fps={"type": float, "default": 1000.0},
        samples={"type": int, "default": 5}, simulators={"default": "verilator"},
    )  # fmt: skip
    found: list[dict[str, Any]] = []
    for case in networks(given.only or NETWORKS):
        for precision in given.precisions.split(","):
            try:
                for row in rows(case, precision, given.fps, given.samples, given.simulators.split(",")):
                    found.append(row)
                    print(" ".join(f"{key}={value}" for key, value in row.items()), file=sys.stderr, flush=True)
                    write_json(given.json, found)
            except UnsupportedError as error:
                print(f"{case.name} {precision}: {error}", file=sys.stderr, flush=True)
    if found:
        print(table(list(found[0]), [list(one.values()) for one in found]))
    return 0 if all(one["exact"] == one["frames"] and one["twin"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
