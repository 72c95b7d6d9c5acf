"""Graphs as exporters wrote them: which are imported, quantized, compiled, bit-exact, near to float.

    python -m benchmarks.graphs [--only PARTS] [--json FILE]

All files of the assets' folder `graphs`, whose weights are untrained or do not matter: calibration is on seeded noise,
ids where the model takes ids. `predicted` is the SQNR in dB that the quantizers alone leave: the QDQ file in
onnxruntime against float; for a file that came quantized, onnxruntime's optimized mode against its own plain one.
`measured` is that of the bundle against float, on samples that were not calibrated on; `near` says whether it reaches
the prediction within MARGIN. A refusal is printed with its reason. Exit code 1 if anything but a clear error of ours
came up, or a bundle is not bit-exact.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.assets import arguments, find_assets, machine, write_json
from benchmarks.bundles import build
from qcompiler.bundle import Bundle
from qcompiler.calibrate.data import load_samples
from qcompiler.cli.console import table
from qcompiler.driver import Result, bundle_runner, quantize
from qcompiler.errors import QCompilerError
from qcompiler.evaluate import runner
from qcompiler.execute.ort import Session
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph

DIMS: dict[str, dict[str, int]] = {
    "mobilenetv2_qdq_static": {"batch": 1}, "onnx2c_helloworld": {"N": 1}, "tract_keras_tf2": {"unk__6": 1},
    "st_mobilenet_v2_128_05": {"unk__150": 1}, "torch_raw_resnet20": {"N": 1}, "torchscript_vit_small": {"N": 1},
    "tract_bidi_lstm": {"batch": 1, "length": 8}, "silero_vad_16k": {"batch": 1, "sequence": 576},
}  # fmt: skip
CONSTANTS: dict[str, dict[str, float]] = {"silero_vad_16k": {"sr": 16000}}
SAMPLES, FEW, CALIBRATION = 64, 4, 32
"""Samples compared; few where an input has more than 50,000 elements, whose outputs are large as well."""
MARGIN = 1.0
"""dB by which the bundle may fall behind the QDQ file: rounding of sums, which the QDQ file does in float."""


def noise(graph: Graph, count: int, seed: int) -> dict[str, NDArray]:
    """Samples for every input: normal numbers, ids in the rows of what they index."""
    rng = np.random.default_rng(seed)
    leading = {graph.shape(value)[:1] or (1,) for value in graph.inputs}
    batch = leading.pop()[0] if len(leading) == 1 else None
    made: dict[str, NDArray] = {}
    for value in graph.inputs:
        shape = (count, *graph.shape(value)) if batch is None else (count * batch, *graph.shape(value)[1:])
        if value.dtype == ir.DataType.FLOAT:
            made[str(value.name)] = rng.standard_normal(shape, np.float32)
        else:
            made[str(value.name)] = rng.integers(0, 256, shape).astype(value.dtype.numpy())  # type: ignore[union-attr]
    return made


def sqnr(want: list[list[NDArray]], got: list[list[NDArray]]) -> float:
    """Worst over the outputs, in dB over all samples; 200 where there is no error."""
    worst = 200.0
    for i in range(len(want[0])):
        signal = sum(float((a[i].astype(np.float64) ** 2).sum()) for a in want)
        error = sum(float(((a[i].astype(np.float64) - b[i]) ** 2).sum()) for a, b in zip(want, got, strict=True))
        if error > 0:
            worst = min(worst, 10 * float(np.log10(max(signal, 1e-30) / error)))
    return worst


def measure(path: Path) -> dict[str, Any]:
    """One row."""
    name, start = path.stem, time.perf_counter()
    dims, constants = DIMS.get(name, {}), CONSTANTS.get(name, {})
    row: dict[str, Any] = {"graph": name, "imported": False, "quantized": False, "compiled": False, "refusal": ""}
    try:
        graph = load_graph(path, dims=dims, constants=constants)
        row |= {"imported": True, "nodes": len(graph.nodes())}
        own = any(node.op_type == "FakeQuantize" for node in graph.nodes())
        calibration = None if own else noise(graph, CALIBRATION, 1)
        result = quantize(path, calibration, dims=dims, constants=constants)
        row |= {"quantized": True, "calibrated": "own scales" if own else "noise"}
        with tempfile.TemporaryDirectory() as folder:
            bundle = build(result, Path(folder) / "bundle")
            row |= {"compiled": True, **_compare(result, bundle)}
    except QCompilerError as error:
        row |= {"refusal": str(error), "error": type(error).__name__}
    except Exception as error:  # the one thing that must not happen
        row |= {"refusal": f"TRACEBACK {type(error).__name__}: {error}", "error": "traceback"}
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def _compare(result: Result, bundle: Bundle) -> dict[str, Any]:
    """Bit-exactness with the oracle, and SQNR to float beside that of the QDQ file."""
    assert result.qdq_graph is not None and result.integer_graph is not None
    graph = result.float_graph
    count = FEW if max(np.prod(graph.shape(value)) for value in graph.inputs) > 50_000 else SAMPLES
    inputs = list(load_samples(noise(graph, count, 2), graph))
    own_scales = any(node.op_type == "FakeQuantize" for node in result.float_graph.nodes())
    optimized = Session(result.qdq_graph, optimize=own_scales)
    runs = [runner(result.float_graph), optimized.run, runner(result.integer_graph)]
    want, qdq, oracle, own = ([run(x) for x in inputs] for run in (*runs, bundle_runner(bundle)))
    exact = all(np.array_equal(a, b) for x, y in zip(oracle, own, strict=True) for a, b in zip(x, y, strict=True))
    predicted, measured = sqnr(want, qdq), sqnr(want, own)
    return {
        "bit_exact": exact,
        "predicted_db": round(predicted, 1),
        "measured_db": round(measured, 1),
        "near": measured >= predicted - MARGIN,
    }


def main() -> int:
    """Print the table."""
    given = arguments(__doc__)
    found: list[dict[str, Any]] = []
    for path in sorted((find_assets() / "graphs").glob("*.onnx")):
        if given.only and not any(part and part in path.stem for part in given.only.split(",")):
            continue
        found.append(measure(path))
        print(*found[-1].values(), file=sys.stderr, flush=True)
        write_json(given.json, found)
    keys = ("imported", "quantized", "compiled", "bit_exact", "near")
    lines = [
        [row["graph"], *("yes" if row.get(k) else "no" if k in row else "" for k in keys), row.get("predicted_db", ""),
         row.get("measured_db", ""), row.get("calibrated", ""), row["refusal"].rpartition(".onnx: ")[2][:120]]
        for row in found
    ]  # fmt: skip
    headers = ["graph", *keys, "predicted dB", "measured dB", "calibrated on", "refused because"]
    print(machine() + "\n" + table(headers, lines))
    print(f"{sum(row['compiled'] for row in found)} of {len(found)} compile, "
          f"{sum(row.get('near', False) for row in found)} are as near to float as predicted")  # fmt: skip
    bad = any(row.get("error") == "traceback" or row.get("bit_exact") is False for row in found)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
