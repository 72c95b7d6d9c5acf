"""Every network through the c target: bits on this machine, flash, RAM, instructions; some on an emulated core as well.

    python -m benchmarks.c_models [--only PARTS] [--samples 3] [--steps 4] [--board m7] [--json FILE]

The models and graphs of the shared assets, MiniLM where fetch_minilm.py built it, PP-OCR's classifier and recognizer,
and silero-vad's networks; models with state in and out keep it inside. `exact`: the sources, compiled for this machine,
give the oracle's bits on that many samples, or steps from a reset state. `board`: so does the self-test on an emulated
core, for the networks of BOARD. Flash and RAM are those of the report (`measured` for a Cortex-M4 at -Os where its
compiler is), instructions its estimate for one inference or step there. Exit code 1 if a bit is wrong anywhere, or
anything but a clear refusal came up.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qcompiler
from benchmarks import graphs
from benchmarks.assets import Case, arguments, cases, find_assets, write_json
from benchmarks.decode import LENGTH
from qcompiler.bundle import Bundle, manifest_of, write_bundle
from qcompiler.calibrate.data import load_samples
from qcompiler.cli.console import table
from qcompiler.driver import Result
from qcompiler.errors import QCompilerError
from qcompiler.evaluate import take
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.graph.state import state_pairs
from qcompiler.targets.c.build import build
from qcompiler.targets.c.host import HostSession
from tests.mcu.boards import BOARDS, emulate
from tests.mcu.boards import build as build_image

CALIBRATION = 32
SECONDS = 600.0
BOARD = ("vit_digits", "stories260k_decode", "silero op15")
"""What the emulated core runs."""
Samples = Sequence[Mapping[str, NDArray]]
Maker = Callable[[], tuple[Result, Samples]]
"""A quantized network and what to compare it on: samples, or steps if it has state."""


def networks(samples: int, steps: int) -> Iterator[tuple[str, Maker]]:
    """Name and how to make it, of every network there is."""
    seen = set()
    for case in cases():
        if case.model not in seen:
            seen.add(case.model)
            yield case.name, lambda case=case: case_of(case, samples)  # type: ignore[misc]
    yield "PP-OCR rec", lambda: _recognizer(samples)
    yield "stories260k_decode", lambda: _decoder(steps)
    for path in sorted((find_assets() / "graphs").glob("*.onnx")):
        yield f"graph {path.stem}", lambda path=path: _graph(path, samples)  # type: ignore[misc]
    from examples.vad.model import VARIANTS

    for name in VARIANTS:
        yield f"silero {name}", lambda name=name: _detector(name, steps)  # type: ignore[misc]


def case_of(case: Case, samples: int) -> tuple[Result, Samples]:
    """A case of the assets, quantized, and test samples."""
    calibration = {name: array[:CALIBRATION] for name, array in case.feed("calib").items()}
    result = qcompiler.quantize(str(case.model), calibration, shapes=case.shapes, target="c")
    test = {name: array[:samples] for name, array in case.feed("test").items()}
    return result, list(take(load_samples(test, result.float_graph), samples))


def _recognizer(samples: int) -> tuple[Result, Samples]:
    from examples.ocr.lines import dataset
    from examples.ocr.model import fetch
    from examples.ocr.recognize import CALIBRATION_SEED, TEST_SEED, WIDTH

    calibration, _ = dataset(CALIBRATION, CALIBRATION_SEED, WIDTH)
    lines, _ = dataset(samples, TEST_SEED, WIDTH)
    result = qcompiler.quantize(str(fetch("rec")), {"x": calibration}, shapes={"x": (1, 3, 48, WIDTH)}, target="c")
    return result, list(load_samples({"x": lines}, result.float_graph))


def _decoder(steps: int) -> tuple[Result, Samples]:
    assets = find_assets()
    with np.load(assets / "data" / "tinystories_tokens.npz") as stored:
        calib, test = (stored[key].astype(np.int64) for key in ("ids_calib", "ids_test"))
    model = assets / "models" / "stories260k_decode.onnx"
    result = qcompiler.quantize(model, {"ids": calib[:8]}, dims={"past": LENGTH - 1}, state="auto", target="c")
    return result, [{"ids": test[0, t].reshape(1, 1), "pos": np.array([t])} for t in range(steps)]


def _graph(path: Path, samples: int) -> tuple[Result, Samples]:
    dims, constants = graphs.DIMS.get(path.stem, {}), graphs.CONSTANTS.get(path.stem, {})
    graph = load_graph(path, dims=dims, constants=constants)
    own = any(node.op_type == "FakeQuantize" for node in graph.nodes())
    calibration = None if own else graphs.noise(graph, CALIBRATION, 1)
    result = qcompiler.quantize(path, calibration, dims=dims, constants=constants, target="c")
    return result, list(load_samples(graphs.noise(result.float_graph, samples, 2), result.float_graph))


def _detector(name: str, steps: int) -> tuple[Result, Samples]:
    from examples.vad.model import VARIANTS, fetch
    from examples.vad.speech import recordings

    heard = recordings("calib", 4, 8.0)
    result = qcompiler.quantize(str(fetch(name)), {"input": heard}, target="c", **VARIANTS[name].options())
    return result, [{"input": window[None]} for window in recordings("test", 1, 8.0)[0, 20 : 20 + steps]]


def exact(graph: Graph, bundle: Bundle, inputs: Samples) -> bool:
    """Whether the sources give the oracle's bits, step by step where they keep a state."""
    oracle, session = Oracle(graph), HostSession(bundle.path, bundle.manifest)
    pairs, names = state_pairs(graph), [str(value.name) for value in graph.outputs]
    state = {name: np.zeros(graph.shape(graph.value(name)), np.float32) for name in pairs.values()}
    good = True
    for sample in inputs:
        want = dict(zip(names, oracle.run({**sample, **state}), strict=True))
        state = {name: want.pop(output) for output, name in pairs.items()}
        got = session.step(sample)
        good &= all(np.array_equal(a, b) for a, b in zip(want.values(), got, strict=True))
    return good


def measure(name: str, make: Maker, board: str, vectors: int) -> dict[str, Any]:
    """One row."""
    row: dict[str, Any] = {"network": name, "refusal": ""}
    start = time.perf_counter()
    try:
        result, inputs = make()
        graph = result.integer_graph
        assert graph is not None
        lowered = build(graph, {"prefix": "net", "vectors": str(vectors)}, lambda stage, done, total: None)
        fit = lowered.facts["fit"]
        row |= {"operators": len(graph.nodes()), "state": bool(state_pairs(graph)), "samples": len(inputs)}
        row |= {key: fit[key] for key in ("how", "flash_bytes", "ram_bytes", "instructions")}
        with tempfile.TemporaryDirectory() as work:
            manifest = manifest_of("c", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
            bundle = write_bundle(Path(work) / "c", lowered.files, manifest, overwrite=False)
            row["exact"] = exact(graph, bundle, inputs)
            if board and name in BOARD:
                image = build_image(BOARDS[board], bundle.path, manifest["c"], Path(work) / "image.elf", level="-O2")
                row["board"] = emulate(BOARDS[board], image, SECONDS).returncode == 0
    except QCompilerError as error:
        row |= {"refusal": str(error), "error": type(error).__name__}
    except Exception as error:  # the one thing that must not happen
        row |= {"refusal": f"TRACEBACK {type(error).__name__}: {error}", "error": "traceback"}
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def bad(row: Mapping[str, Any]) -> bool:
    """Whether a bit is wrong, or it failed other than by a clear refusal."""
    return row.get("error") == "traceback" or not (row.get("exact", True) and row.get("board", True))


HEADERS = ["network", "bit-exact", "board", "flash", "RAM", "instructions", "refused because"]


def line(row: Mapping[str, Any]) -> list[object]:
    """A line of the table."""
    name = row["network"]
    if "exact" not in row:
        return [name, "refused", "", "", "", "", row["refusal"].rpartition(".onnx: ")[2][:80]]
    what = f"{'yes' if row['exact'] else 'NO'}, {row['samples']} {'steps' if row['state'] else 'samples'}"
    board = {True: "yes", False: "NO", None: ""}[row.get("board")]
    sizes = [f"{row[key] / 1024:.1f} KiB" for key in ("flash_bytes", "ram_bytes")]
    return [name, what, board, *sizes, f"{row['instructions'] / 1e6:.2f} M", ""]


def main() -> int:
    """Print the table."""
    given = arguments(
        __doc__, samples={"type": int, "default": 3}, steps={"type": int, "default": 4}, board={"default": "m7"}
    )
    if given.board and (reason := BOARDS[given.board].missing()):
        sys.exit(f"{reason}; or give --board= to leave the core out")
    rows: list[dict[str, Any]] = []
    for name, make in networks(given.samples, given.steps):
        if given.only and not any(part and part in name for part in given.only.split(",")):
            continue
        rows.append(measure(name, make, given.board, given.steps))
        print(rows[-1], file=sys.stderr, flush=True)
        write_json(given.json, rows)
    print(table(HEADERS, [line(row) for row in rows]))
    return int(any(map(bad, rows)))


if __name__ == "__main__":
    sys.exit(main())
