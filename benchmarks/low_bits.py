"""Accuracy below 8 bits: the recipe auto (or another) on full test splits, several calibration draws, against goals.

    python -m benchmarks.low_bits [--only PARTS] [--widths w4a8,w4a4] [--recipe auto] [--seeds 3] [--samples 512]
                                  [--limit N] [--json FILE]

Weights per output channel, activations per tensor and static, first and last layer 8 bits; `aN` are the operands of
products, other values have 8 bits (16 for residual streams of transformers). Every seed calibrates on another draw of
`--samples` from the calibration arrays. The bundle is evaluated on the full test split, the QDQ file on its first 1,000
samples, where `gap` is what the metric of the bundle differs from it. Exit code 1 when a goal is missed.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import Case, arguments, cases, machine, write_json
from benchmarks.bundles import build, quantize
from qcompiler.calibrate.data import Samples, load_samples
from qcompiler.cli.console import table
from qcompiler.evaluate import Runner, runner, sqnr, take

QDQ_SAMPLES = 1000
GAP = 0.002
"""Largest difference of accuracy between bundle and QDQ file."""

GOALS: dict[tuple[str, str], tuple[str, float]] = {
    ("resnet20_cifar10_jpeg", "w4a8"): ("loss", 0.003),
    ("resnet20_cifar10_jpeg", "w4a4"): ("loss", 0.005),
    ("resnet20_cifar10_jpeg", "w3a3"): ("loss", 0.06),
    ("mobilenetv2_cifar10_jpeg", "w4a8"): ("loss", 0.012),
    ("mobilenetv2_cifar10_jpeg", "w4a4"): ("loss", 0.04),
    ("vit_hybrid_cifar10_jpeg", "w6a6"): ("loss", 0.005),
    ("vit_hybrid_cifar10_jpeg", "w4a8"): ("loss", 0.008),
    ("vit_hybrid_cifar10_jpeg", "w4a4"): ("loss", 0.03),
    ("vit_hybrid_cifar10_jpeg", "w3a3"): ("loss", 0.15),
    ("vit_digits", "w4a4"): ("loss", 0.007),
    ("mlperf_tiny_kws", "w4a8"): ("loss", 0.007),
    ("mlperf_tiny_kws", "w4a4"): ("loss", 0.05),
    ("mlperf_tiny_resnet8", "w4a8"): ("loss", 0.007),
    ("mlperf_tiny_resnet8", "w4a4"): ("loss", 0.025),
    ("stories260k_prefill", "w4a16"): ("most", 5.75),
    ("stories260k_prefill", "w3a16"): ("most", 8.2),
    ("stories260k_prefill", "w4a8"): ("most", 5.9),
    ("espcn_x2 (super-resolution)", "w4a8"): ("least", 24.54),
    ("espcn_x2 (super-resolution)", "w4a4"): ("least", 21.43),
    ("ddpm_digits", "w4a8"): ("most", 0.015),
    ("ddpm_digits", "w4a4"): ("most", 0.0653),
    ("mobilenet_v1_025_224 (ImageNet)", "w8a8"): ("least", 0.585),
    ("mobilenet_v1_025_224 (ImageNet)", "w4a8"): ("least", 0.25),
    ("mobilenet_v2_100_224 (ImageNet)", "w4a8"): ("least", 0.65),
}
"""(network, precision) -> what the mean over the seeds must hold, as in benchmarks.assets. w4a16 stands for quantized
weights alone. ddpm_digits: mean square error of eps against the float model's."""


def row(case: Case, precision: str, recipe: str, seed: int, samples: int, limit: int | None) -> dict[str, Any]:
    """One network at one precision with one draw, measured."""
    start = time.perf_counter()
    drawn = dataclasses.replace(case, draw=(seed, samples))
    result = quantize(drawn, precision, recipe=recipe)
    seconds = time.perf_counter() - start
    test = load_samples(case.feed("test"), result.float_graph, None, limit)
    with tempfile.TemporaryDirectory() as folder:
        ours = outputs(runner(build(result, Path(folder) / "bundle")), test, 1)
    exact = outputs(runner(result.float_graph), test)
    few = min(len(ours), QDQ_SAMPLES)
    qdq = outputs(runner(result.qdq_graph), Samples("test", lambda: take(test, few), count=few))
    values = {"float": case.score(exact, exact), "bundle": case.score(ours, exact)}
    part = [case.score(x[:few], exact[:few]) for x in (ours, qdq)]
    loss = values["bundle"] - values["float"] if case.rises else values["float"] - values["bundle"]
    return {
        "network": case.name, "metric": case.metric, "precision": precision, "recipe": result.recipe.name, "seed": seed,
        "samples": len(ours), **values, "loss": loss, "gap": part[0] - part[1], "sqnr_db": sqnr(exact, ours),
        "seconds": seconds, "passes": {k: round(v, 2) for k, v in result.seconds.items()},
    }  # fmt: skip


def outputs(run: Runner, samples: Samples, threads: int = 2) -> np.ndarray:
    """First outputs over all samples. Sessions of onnxruntime may run in several threads, bundles may not."""
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate([np.atleast_1d(found[0]) for found in pool.map(run, samples)])


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of one network and precision, over the seeds."""
    first = rows[0]
    kind, bound = GOALS.get((first["network"], first["precision"]), ("none", 0.0))
    keys = ("float", "bundle", "loss", "sqnr_db", "seconds")
    mean = {key: float(np.mean([one[key] for one in rows])) for key in keys}
    met = {
        "none": True, "loss": mean["loss"] <= bound + 1e-9, "least": mean["bundle"] >= bound,
        "most": mean["bundle"] <= bound,
    }[kind]  # fmt: skip
    return {
        **{key: first[key] for key in ("network", "metric", "precision", "recipe", "samples")}, **mean,
        "spread": float(np.ptp([one["bundle"] for one in rows])), "gap": max((one["gap"] for one in rows), key=abs),
        "goal": {"none": "", "loss": f"loss <= {bound}", "least": f">= {bound}", "most": f"<= {bound}"}[kind],
        "goal_met": bool(met), "seeds": len(rows),
    }  # fmt: skip


def line(one: dict[str, Any]) -> list[Any]:
    """A row of the table."""
    values = [f"{one[key]:.4f}" for key in ("float", "bundle", "spread", "loss")]
    return [one["network"], one["metric"], one["samples"], one["precision"], *values, f"{one['sqnr_db']:.1f}",
            f"{one['gap']:+.4f}", one["goal"], "ok" if one["goal_met"] else "MISSED",
            f"{one['seconds']:.0f}"]  # fmt: skip


HEADERS = [
    "network", "metric", "samples", "bits", "float", "bundle", "spread", "loss", "SQNR dB", "gap", "goal", "", "s",
]  # fmt: skip


def main() -> int:
    """Print the table."""
    given = arguments(
        __doc__, widths={"default": ""}, recipe={"default": "auto"}, seeds={"type": int, "default": 3},
        samples={"type": int, "default": 512}, limit={"type": int, "default": None},
    )  # fmt: skip
    rows, found = [], []
    for case in cases(given.only):
        widths = given.widths.split(",") if given.widths else [bits for name, bits in GOALS if name == case.name]
        for precision in widths:
            mine = [
                row(case, precision, given.recipe, seed, given.samples, given.limit) for seed in range(given.seeds)
            ]
            rows += mine
            found.append(summary(mine))
            print(*line(found[-1]), file=sys.stderr, flush=True)
            write_json(given.json, [*found, *rows])
    print(f"recipe {given.recipe}, {given.seeds} seeds; {machine()}\n" + table(HEADERS, [line(one) for one in found]))
    return 0 if all(one["goal_met"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
