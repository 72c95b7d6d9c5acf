"""Latency side by side in one run, interleaved: our bundles, onnxruntime and OpenVINO, float32 and int8.

    python -m benchmarks.latency [--only PARTS] [--threads 1,2] [--seconds 1.0] [--json FILE]

Ours: W8A8 for this machine's best instruction set, and for x86-64-v3 (AVX2 without VNNI) W8A8 and W7A8. The peers
run the float model and the very QDQ file of our W8A8 bundle. `error` is the signal-to-noise ratio in dB of what each
int8 contender computes against its own QDQ file run without optimizations: low figures are saturation, not rounding.
Exit code 1 when ours at W8A8 is slower than onnxruntime float32 on one thread.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.assets import Case, arguments, machine, networks, write_json
from benchmarks.bundles import build, quantize, runnable_levels
from qcompiler.bundle import Bundle
from qcompiler.cli.console import table
from qcompiler.driver import Result
from qcompiler.evaluate import runner, sqnr
from qcompiler.graph.model import Graph
from qcompiler.latency import measure, onnxruntime_call, openvino_call

PORTABLE = "x86-64-v3"
ERROR_SAMPLES = 16

Caller = Callable[[dict[str, NDArray], int], Callable[[], list[NDArray]]]
"""Makes, for a sample and a number of threads, a call that does one inference."""


def contenders(case: Case, folder: Path) -> list[tuple[str, str, Caller, Graph | None]]:
    """Runtime, precision, caller, and the QDQ graph that the result is compared with."""

    def ours(bundle: Bundle) -> Caller:
        def call(sample: dict[str, NDArray], threads: int) -> Callable[[], list[NDArray]]:
            session = bundle.load(threads=threads)
            return lambda: session.run(sample)  # type: ignore[no-any-return]

        return call

    def peer(make: Callable[..., Any], graph: Graph) -> Caller:
        return lambda sample, threads: make(graph, sample, threads)

    results: dict[str, Result] = {"w8a8": quantize(case)}
    wanted = [("w8a8", runnable_levels()[-1])]
    if wanted[0][1] != PORTABLE:
        results["w7a8"] = quantize(case, "w7a8")
        wanted += [("w8a8", PORTABLE), ("w7a8", PORTABLE)]
    found: list[tuple[str, str, Caller, Graph | None]] = []
    for precision, level in wanted:
        bundle = build(results[precision], folder / f"{precision}-{level}", level)
        found.append((f"qcompiler {level}", precision, ours(bundle), results[precision].qdq_graph))
    peers: list[tuple[str, Callable[..., Any]]] = [("onnxruntime", onnxruntime_call)]
    if importlib.util.find_spec("openvino"):
        peers.append(("openvino", openvino_call))
    result = results["w8a8"]
    for name, make in peers:
        found.append((name, "float32", peer(make, result.float_graph), None))
        found.append((name, "int8", peer(make, result.qdq_graph), result.qdq_graph))
    return found


def rows(case: Case, threads: list[int], seconds: float) -> list[dict[str, Any]]:
    """All contenders on one network."""
    with tempfile.TemporaryDirectory() as folder:
        entries = contenders(case, Path(folder))
        feed = case.feed("test")
        samples = [{name: array[i : i + 1] for name, array in feed.items()} for i in range(ERROR_SAMPLES)]
        errors = [_error(caller, graph, samples) for _, _, caller, graph in entries]
        found = []
        for count in threads:
            calls = [(name, precision, caller(samples[0], count)) for name, precision, caller, _ in entries]
            for row, error in zip(measure(calls, seconds=seconds), errors, strict=True):
                found.append({"network": case.name, "threads": count, **row.document(), "error_db": error})
    return found


def _error(caller: Caller, graph: Graph | None, samples: list[dict[str, NDArray]]) -> float | None:
    if graph is None:
        return None
    want = np.concatenate([runner(graph)(sample)[0] for sample in samples])
    got = np.concatenate([caller(sample, 1)()[0] for sample in samples])
    return round(sqnr(want, got), 1)


def lines(found: list[dict[str, Any]]) -> list[list[Any]]:
    """Rows of the table; `ratio` is the time of onnxruntime float32 over this one's."""
    base = _by_network(found, "onnxruntime", "float32")
    rows = []
    for r in found:
        speed = base[r["network"], r["threads"]] / r["median_ms"]
        error = "-" if r["error_db"] is None else f"{r['error_db']:.0f} dB"
        times = [f"{r[key]:.3f}" for key in ("median_ms", "min_ms")]
        rows.append([r["network"], r["threads"], r["runtime"], r["precision"], *times, f"{speed:.2f}x", error])
    return rows


def _by_network(found: list[dict[str, Any]], name: str, precision: str) -> dict[tuple[str, int], float]:
    """(network, threads) -> milliseconds of one contender."""
    chosen = [r for r in found if (r["runtime"], r["precision"]) == (name, precision)]
    return {(r["network"], r["threads"]): r["median_ms"] for r in chosen}


def main() -> int:
    """Print the table."""
    given = arguments(__doc__, threads={"default": "1,2"}, seconds={"type": float, "default": 1.0})
    found: list[dict[str, Any]] = []
    for case in networks(given.only):
        new = rows(case, [int(count) for count in given.threads.split(",")], given.seconds)
        found += new
        for one in lines(new):
            print(*one, file=sys.stderr, flush=True)
        write_json(given.json, found)
    headers = ["network", "threads", "runtime", "precision", "median ms", "min ms", "speed", "error"]
    print(machine() + "\n" + table(headers, lines(found)))
    ours = _by_network(found, f"qcompiler {runnable_levels()[-1]}", "w8a8")
    floats = _by_network(found, "onnxruntime", "float32")
    return 0 if all(ms <= floats[key] for key, ms in ours.items() if key[1] == 1) else 1


if __name__ == "__main__":
    sys.exit(main())
