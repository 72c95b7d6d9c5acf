"""The language model with a cache, a token at a time: bits against the oracle, perplexity and time of a step.

    python -m benchmarks.decode [--sequences 4] [--steps 256] [--calibration 16] [--json FILE]

stories260k_decode of the shared assets, compiled with its caches as state. Every step of `Session.step` is compared
with the oracle, whose states are handed on outside. Exit code 1 on a mismatch, or if the perplexity is above 1.03
times that of the float model.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qcompiler
from benchmarks.assets import arguments, find_assets, machine, write_json
from benchmarks.bundles import build
from qcompiler.cli.console import table
from qcompiler.evaluate import runner
from qcompiler.graph.model import Graph
from qcompiler.graph.state import state_pairs

BOUND = 1.03
LENGTH = 256


def handing_on(run: Callable[[Mapping[str, NDArray]], list[NDArray]], graph: Graph) -> Callable[..., NDArray]:
    """step(inputs, first) -> logits, of something that shows its states."""
    pairs, names = state_pairs(graph), [str(value.name) for value in graph.outputs]
    state: dict[str, NDArray] = {}

    def step(inputs: Mapping[str, NDArray], first: bool) -> NDArray:
        if first:
            state.update({name: np.zeros(graph.shape(graph.value(name)), np.float32) for name in pairs.values()})
        found = dict(zip(names, run({**inputs, **state}), strict=True))
        state.update({name: found[output] for output, name in pairs.items()})
        return found["logits"]

    return step


def likelihood(logits: NDArray, token: int) -> float:
    """Negative log-likelihood of a token."""
    z = logits.reshape(-1).astype(np.float64)
    z -= z.max()
    return float(np.log(np.exp(z).sum()) - z[token])


def measure(sequences: int, steps: int, calibration: int) -> dict[str, Any]:
    """One row."""
    assets = find_assets()
    with np.load(assets / "data" / "tinystories_tokens.npz") as stored:
        calib, test = (stored[key].astype(np.int64) for key in ("ids_calib", "ids_test"))
    model = assets / "models" / "stories260k_decode.onnx"
    result = qcompiler.quantize(model, {"ids": calib[:calibration]}, dims={"past": LENGTH - 1}, state="auto")
    assert result.integer_graph is not None
    oracle = handing_on(runner(result.integer_graph), result.integer_graph)
    reference = handing_on(runner(result.float_graph), result.float_graph)
    losses: dict[str, list[float]] = {"float": [], "bundle": []}
    mismatches, seconds = 0, []
    with tempfile.TemporaryDirectory() as folder, build(result, Path(folder) / "bundle").load() as session:
        for sequence in test[:sequences]:
            session.reset()
            for t, token in enumerate(sequence[:steps]):
                inputs = {"ids": token.reshape(1, 1), "pos": np.array([t])}
                start = time.perf_counter()
                (got,) = session.step(inputs)
                seconds.append(time.perf_counter() - start)
                mismatches += not np.array_equal(got, oracle(inputs, t == 0))
                expected = reference(inputs, t == 0)
                if t + 1 < len(sequence):
                    losses["bundle"].append(likelihood(got, sequence[t + 1]))
                    losses["float"].append(likelihood(expected, sequence[t + 1]))
    values = {name: float(np.exp(np.mean(found))) for name, found in losses.items()}
    return {
        "sequences": sequences, "steps": steps, "mismatches": mismatches, **values,
        "ratio": values["bundle"] / values["float"], "microseconds": 1e6 * float(np.median(seconds)),
    }  # fmt: skip


def main() -> int:
    """Print the table."""
    given = arguments(
        __doc__, sequences={"type": int, "default": 4}, steps={"type": int, "default": LENGTH},
        calibration={"type": int, "default": 16},
    )  # fmt: skip
    found = measure(given.sequences, given.steps, given.calibration)
    write_json(given.json, [found])
    print(machine() + "\n" + table(list(found), [[f"{v:.4g}" if isinstance(v, float) else v for v in found.values()]]))
    return 0 if not found["mismatches"] and found["ratio"] <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
