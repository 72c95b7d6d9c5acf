"""Voice activity on a stream: silero-vad, compiled for this CPU with its state inside.

    python -m examples.vad.detect [--variants op15,sequence,...] [--target cpu|c] [--json]

Synthesizes speech with pauses in noise to calibrate on, and other sentences by other voices to listen to, compiles at
8 bits, and prints the share of windows on which the bundle decides as the float network does (above 0.5 or not). Every
step of `session.step` is compared with the oracle on two recordings, whose states are handed on outside. With
`--target c` the sources of the firmware bundle are compiled for this machine. Exit code 1 if a bit differs or fewer
than 99 % of the decisions agree. Needs espeak-ng (`apt install espeak-ng`); the first run downloads the wheel of
silero-vad from PyPI.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("OMP_NUM_THREADS", "1")

CALIBRATION, TEST, SECONDS = 8, 12, 16.0
"""Recordings, and how long each is."""
VERIFIED = 2
"""Recordings of which the numpy oracle takes every step."""
LEAST = 0.99
Step = Callable[[NDArray[np.float32], bool], float]


def handing_on(run: Callable[[Mapping[str, NDArray]], list[NDArray]], graph: Any) -> Step:
    """step(window, first) -> probability, of something that shows its states."""
    from qcompiler.graph.state import state_pairs

    pairs, names = state_pairs(graph), [str(value.name) for value in graph.outputs]
    shown = next(name for name in names if name not in pairs)
    state: dict[str, NDArray] = {}

    def step(window: NDArray[np.float32], first: bool) -> float:
        if first:
            state.update({name: np.zeros(graph.shape(graph.value(name)), np.float32) for name in pairs.values()})
        found = dict(zip(names, run({"input": window[None], **state}), strict=True))
        state.update({name: found[output] for output, name in pairs.items()})
        return float(found[shown].reshape(-1)[0])

    return step


def keeping(session: Any) -> Step:
    """step(window, first) -> probability, of a session that keeps its state."""

    def step(window: NDArray[np.float32], first: bool) -> float:
        if first:
            session.reset()
        return float(session.step({"input": window[None]})[0].reshape(-1)[0])

    return step


def listen(step: Step, heard: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities [recordings, steps]."""
    return np.array([[step(window, i == 0) for i, window in enumerate(recording)] for recording in heard])


def run(name: str, model: Path, target: str, calibration: NDArray, heard: NDArray, output: Path) -> dict[str, Any]:
    """Compile one variant, measure, and return the figures as a JSON-able document. Raises QCompilerError."""
    import qcompiler
    from examples.vad.model import VARIANTS
    from qcompiler.evaluate import runner
    from qcompiler.graph.io import load_graph
    from qcompiler.graph.state import bind_state
    from qcompiler.latency import measure, peer_calls
    from qcompiler.targets.c.host import HostSession

    variant = VARIANTS[name]
    bundle = qcompiler.compile(
        str(model), target=target, calibration={"input": calibration}, output=output, overwrite=True,
        **variant.options(),
    )  # fmt: skip
    loaded = load_graph(model, dims=variant.dims, shapes=variant.shapes, constants=variant.constants)
    graph = bind_state(loaded, variant.state)
    integer = bundle.integer_graph()
    session = bundle.load() if target == "cpu" else HostSession(bundle.path, bundle.manifest)
    want, got = listen(handing_on(runner(graph), graph), heard), listen(keeping(session), heard)
    oracle = listen(handing_on(runner(integer), integer), heard[:VERIFIED])
    mismatches = int((oracle != got[:VERIFIED]).sum())
    size = bundle.manifest["size"]
    found: dict[str, Any] = {
        "variant": name,
        "bundle": str(output),
        "windows": want.size,
        "speech": float((want > 0.5).mean()),
        "agreement": float(((want > 0.5) == (got > 0.5)).mean()),
        "mean_difference": float(np.abs(want - got).mean()),
        "verification": {"bit_exact": mismatches == 0, "samples": oracle.size, "mismatches": mismatches},
        "size": {key: size[key] for key in ("weight_bytes", "arena_bytes", "state_bytes") if key in size},
    }
    if target == "cpu":
        sample = {str(v.name): np.zeros(graph.shape(v), np.float32) for v in graph.inputs}
        sample["input"] = np.ascontiguousarray(heard[0, 30][None])
        own = {"input": sample["input"]}
        contenders = [
            ("qcompiler", "int8", lambda: session.step(own)),
            *peer_calls(["onnxruntime"], graph, bundle.qdq_graph(), sample, 1),
        ]
        found["latency"] = [row.document() for row in measure(contenders, seconds=1.0)]
    else:
        fit = bundle.report()["fit"]
        found["firmware"] = {key: fit[key] for key in ("flash_bytes", "ram_bytes", "instructions", "how")}
    return found


def line(found: Mapping[str, Any]) -> list[object]:
    """A line of the table."""
    exact = found["verification"]
    state = f"yes, {exact['samples']} steps" if exact["bit_exact"] else f"NO: {exact['mismatches']} steps"
    by = {(row["runtime"], row["precision"]): row["median_ms"] for row in found.get("latency", ())}
    firmware = found.get("firmware", {})
    ours, peer = by.get(("qcompiler", "int8"), 0.0), by.get(("onnxruntime", "float32"), 0.0)
    speed = (
        [f"{firmware['flash_bytes'] / 1024:.0f} KiB", f"{firmware['ram_bytes'] / 1024:.1f} KiB",
         f"{firmware['instructions'] / 1e6:.2f} M"]
        if firmware else [f"{1e3 * ours:.0f} us", f"{1e3 * peer:.0f} us", f"{peer / ours:.2f}x"]
    )  # fmt: skip
    return [found["variant"], found["windows"], f"{found['speech']:.1%}", f"{found['agreement']:.2%}", state, *speed]


def main() -> int:
    """Run the example."""
    from examples.vad.model import VARIANTS, fetch
    from examples.vad.speech import MissingError, recordings
    from examples.wheel import DownloadError
    from qcompiler.cli.console import table
    from qcompiler.errors import QCompilerError

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names, separated by commas")
    parser.add_argument("--target", default="cpu", choices=("cpu", "c"))
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[2] / "build" / "vad")
    given = parser.parse_args()
    unknown = sorted(set(given.variants.split(",")) - set(VARIANTS))
    if unknown:
        parser.error(f"there is no variant {unknown[0]}; there are {', '.join(VARIANTS)}")
    found = []
    try:
        calibration, heard = recordings("calib", CALIBRATION, SECONDS), recordings("test", TEST, SECONDS)
        given.output.mkdir(parents=True, exist_ok=True)
        for name in given.variants.split(","):
            output = given.output / f"{name}.{given.target}"
            found.append(run(name, fetch(name), given.target, calibration, heard, output))
    except (DownloadError, MissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except QCompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    figures = ["flash", "RAM", "instructions"] if given.target == "c" else ["step", "onnxruntime float32", "speed"]
    headers = ["variant", "windows", "speech", "agree with float", "bit-exact", *figures]
    print(json.dumps(found, indent=1) if given.json else table(headers, [line(one) for one in found]))
    good = all(one["verification"]["bit_exact"] and one["agreement"] >= LEAST for one in found)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
