"""Integers and minifloats of 3 to 8 bits: accuracy of the quantized network against bytes of weights, and against LUTs.

    python -m benchmarks.formats [--only resnet20_cifar10_jpeg,mobilenetv2] [--formats LIST] [--scales channel,tensor]
                                 [--samples 256] [--limit 1000] [--fps 2000] [--picture FILE.svg] [--json FILE]

Every row is the recipe `auto` (equalization, refit and GPTQ on the format's grid, bias correction) at one precision,
and runs the QDQ graph in onnxruntime: what a file says, not what a target makes of it. Weights in a format beside
activations of 8 bits, then activations in the same format as well. Both have first and last layer at 8 bits, as the
recipe does. `error` is the squared error of the outputs against float, relative to their energy; KiB are of packed
codes. With --fps the network is quantized for the fpga target, and LUTs are what its bill says of a circuit of so many
images a second at 100 MHz on a 7-series part, products in LUTs.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qcompiler
from benchmarks.assets import Case, arguments, cases, machine, write_json
from qcompiler.calibrate.data import load_samples
from qcompiler.cli.console import table
from qcompiler.errors import UnsupportedError
from qcompiler.evaluate import predict, runner
from qcompiler.formats import Blocks
from qcompiler.graph import qdq
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.report.pictures import pareto
from qcompiler.targets.fpga.cost import FpgaCost

FORMATS = (
    "int3", "e2m0", "int4", "e2m1", "e3m0", "int5", "e2m2", "e3m1", "int6", "e2m3", "e3m2", "int7", "e2m4", "e3m3",
    "int8", "e2m5", "e3m4",
)  # fmt: skip
NETWORKS = "resnet20_cifar10_jpeg,mobilenetv2_cifar10_jpeg"
HEADERS = ["network", "weights", "activations", "scales", "KiB", "LUTs", "float", "quantized", "error", "seconds"]


def weight_bytes(graph: Graph) -> int:
    """Bytes of the packed codes of a QDQ graph's weights; biases and scales are left out."""
    total = 0
    for node in graph.nodes("Conv", "ConvTranspose", "Gemm", "MatMul"):
        read = qdq.quantizer_of(graph, node.inputs[1])
        if read is not None and read.codes is not None:
            fmt, rows = read.params.format, max(read.params.scale.size, 1)
            total += -(-read.codes.size * fmt.bits // 8)
            if isinstance(fmt, Blocks):  # a byte a block
                total += rows * -(-read.codes.size // rows // fmt.size)
    return total


def luts(graph: Graph, fps: int) -> int | None:
    """Of the circuit of an INTEGER graph; None where a node has no engine, or the rate is out of reach."""
    try:
        return int(FpgaCost({"fps": fps, "dsp": 0}).whole(graph).resources["lut"])
    except UnsupportedError:
        return None


def row(
    case: Case,
    wanted: NDArray,
    weight: str,
    activation: str,
    per_tensor: bool,
    samples: int,
    rounding: bool = False,
    fps: int = 0,
) -> dict[str, Any]:
    """One network at one precision, measured on as many samples as there are `wanted` outputs of the float network."""
    start = time.perf_counter()
    drawn = dataclasses.replace(case, draw=(0, samples))
    options: dict[str, Any] = {"precision": f"{weight}w-{activation}a", "per_tensor": per_tensor}
    if rounding:
        options |= {"solve_weights.method": "nearest", "solve_weights.refit": False, "solve_weights.sweeps": 0}
    result = qcompiler.quantize(
        str(case.model), drawn.feed("calib"), recipe="auto", shapes=case.shapes, options=options,
        target="fpga" if fps else "cpu",
    )  # fmt: skip
    seconds = time.perf_counter() - start
    test = load_samples(case.feed("test"), result.float_graph, None, len(wanted))
    ours = predict(runner(result.qdq_graph), test)
    error = float(np.square(ours - wanted, dtype=np.float64).sum() / np.square(wanted, dtype=np.float64).sum())
    return {
        "network": case.name, "weights": weight, "activations": activation, "metric": case.metric,
        "scales": "tensor" if per_tensor else "channel", "bytes": weight_bytes(result.qdq_graph),
        "samples": len(ours), "float": case.score(wanted, wanted), "quantized": case.score(ours, wanted),
        "error": error, "seconds": seconds, "fps": fps,
        "luts": luts(result.integer_graph, fps) if fps and result.integer_graph is not None else None,
    }  # fmt: skip


def line(one: dict[str, Any]) -> list[Any]:
    """A row of the table."""
    names = [one[key] for key in ("network", "weights", "activations", "scales")]
    sizes = [f"{one['bytes'] / 1024:.1f}", one["luts"] or ""]
    values = [*sizes, *(f"{one[key]:.4f}" for key in ("float", "quantized", "error"))]
    return [*names, *values, f"{one['seconds']:.0f}"]


def picture(rows: list[dict[str, Any]]) -> str:
    """SVG: error over LUTs, or over bytes where no circuit was priced; the line is of formats that nothing beats."""
    what, unit = ("luts", "LUTs") if any(one["luts"] for one in rows) else ("bytes", "bytes of weights")
    points = [
        (float(one[what]), float(one["error"]), one["weights"] + ("" if one["activations"] == "int8" else "²"))
        for one in sorted(rows, key=lambda one: one[what] or 0) if one[what]
    ]  # fmt: skip
    front = [p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q[:2] != p[:2] for q in points)]
    title = f"error of {rows[0]['network']}'s outputs; ²: activations in the format, too"
    drawn = pareto(front, None, points, unit, title)
    return drawn.replace("<svg", "<svg xmlns='http://www.w3.org/2000/svg'", 1)


def main() -> int:
    """Print the table."""
    given = arguments(
        __doc__, formats={"default": ",".join(FORMATS)}, scales={"default": "channel"},
        samples={"type": int, "default": 256}, limit={"type": int, "default": 1000},
        same={"action": "store_true", "help": "activations in the weights' format alone"},
        weights={"action": "store_true", "help": "activations of 8 bits alone"},
        rounding={"action": "store_true", "help": "weights rounded to nearest, not solved"},
        fps={"type": int, "default": 0, "help": "images a second of a circuit, whose LUTs are told"},
        picture={"type": Path, "default": None, "help": "SVG of the last network's rows"},
    )  # fmt: skip
    rows = []
    for case in cases(given.only or NETWORKS):
        graph = load_graph(str(case.model), shapes=case.shapes)
        wanted = predict(runner(graph), load_samples(case.feed("test"), graph, None, given.limit))
        for token in given.formats.split(","):
            beside = [] if given.same else ["int8"]
            beside += [] if given.weights or token == "int8" else [token]
            for activation in beside:
                for scales in given.scales.split(","):
                    how = (scales == "tensor", given.samples, given.rounding, given.fps)
                    rows.append(row(case, wanted, token, activation, *how))
                    print(*line(rows[-1]), file=sys.stderr, flush=True)
                    write_json(given.json, rows)
    if given.picture is not None:
        given.picture.write_text(picture([one for one in rows if one["network"] == rows[-1]["network"]]))
    print(f"{machine()}\n" + table(HEADERS, [line(one) for one in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
