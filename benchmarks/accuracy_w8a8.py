"""Accuracy of quantized models on the full shared test splits: the QDQ graph in onnxruntime, optimizations off.

    python benchmarks/accuracy_w8a8.py [--only resnet20] [--recipe default] [--precision w8a8] [--json FILE]

Needs the shared test assets (QCOMPILER_ASSETS, or ../shared/assets beside the repository) and Pillow. Calibrates on the
`*_calib` arrays alone: 256 samples, 64 for ImageNet. Prints one line a model with the goal beside it; exit code 1 when
a goal is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibrate.data import load_samples
from qcompiler.context import Context
from qcompiler.execute.ort import Session
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.pipeline import run_pipeline
from qcompiler.recipe import load_recipe

GOALS: dict[str, tuple[str, float]] = {
    "resnet20_cifar10_jpeg": ("loss", 0.005),
    "mobilenetv2_cifar10_jpeg": ("loss", 0.005),
    "mlperf_tiny_kws": ("loss", 0.010),
    "mlperf_tiny_resnet8": ("loss", 0.010),
    "mobilenet_v1_025_224 (ImageNet)": ("value", 0.570),
    "mobilenet_v2_100_224 (ImageNet)": ("value", 0.800),
    "espcn_x2 (super-resolution)": ("loss", 0.3),
    "mlperf_tiny_resnet8 (jpeg set)": ("loss", 0.010),
    "resnet20_cifar10": ("none", 0.0),
    "mlperf_tiny_ad": ("none", 0.0),
    "mlperf_tiny_vww": ("none", 0.0),
}
"""Evaluation of the assets' manifest -> what must hold: largest loss against float, or least value."""


@dataclass(frozen=True)
class Evaluation:
    """One model with its data: arrays are preprocessed float32 [n, ...]."""

    name: str
    model: Path
    data: Path
    metric: str
    float_value: float
    calibration: NDArray
    test: NDArray
    labels: NDArray | None

    def score(self, outputs: NDArray) -> float:
        """The metric of first outputs [n, ...]."""
        flat = outputs.reshape(len(outputs), -1)
        if self.metric == "top1":
            return float((flat.argmax(1) == self.labels[: len(flat)]).mean())  # type: ignore[index]
        if self.metric == "mse_to_input":
            return float(((flat - self.test[: len(flat)].reshape(flat.shape)) ** 2).mean())
        if self.metric == "mean_max":
            return float(flat.max(1).mean())
        if self.metric == "psnr":
            with np.load(self.data) as arrays:
                target = arrays["t_test"][: len(flat)].transpose(0, 3, 1, 2) / 255.0
            error = ((outputs.clip(0, 1) - target) ** 2).reshape(len(flat), -1).mean(1)
            return float((-10 * np.log10(error)).mean())
        raise ValueError(self.metric)


def find_assets() -> Path:
    """The folder of shared assets; exits when there is none."""
    folder = Path(os.environ.get("QCOMPILER_ASSETS") or Path(__file__).resolve().parents[2] / "shared" / "assets")
    if not (folder / "manifest.json").is_file():
        sys.exit(f"no test assets in {folder}; set QCOMPILER_ASSETS")
    return folder


def evaluations(only: str = "", calibration: int | None = None) -> Iterator[Evaluation]:
    """The evaluations of GOALS whose name contains `only`, read by the assets' own loader (verify.py)."""
    assets = find_assets()
    spec = importlib.util.spec_from_file_location("assets_verify", assets / "verify.py")
    loader: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(loader)  # type: ignore[union-attr]
    entries = {entry["name"]: entry for entry in json.loads((assets / "manifest.json").read_text())["evaluations"]}
    for name in GOALS:
        if only not in name:
            continue
        entry = entries[name]
        data = assets / entry["data"]
        count = calibration or (64 if data.stem == "imagenet224" else 256)
        calib, _ = loader.raw(data, "calib")
        test, labels = loader.raw(data, entry["split"])
        how = entry["preprocess"]
        yield Evaluation(
            name, assets / entry["model"], data, entry["metric"], entry["value"],
            loader.preprocess(calib[:count], how), loader.preprocess(test, how), labels,
        )  # fmt: skip


def load(evaluation: Evaluation) -> Graph:
    """The float graph with batch 1."""
    session_input = evaluation.calibration.shape[1:]
    import onnx

    name = onnx.load(evaluation.model, load_external_data=False).graph.input[0].name
    return load_graph(evaluation.model, shapes={name: (1, *session_input)})


def outputs_of(graph: Graph, test: NDArray) -> NDArray:
    """First outputs for all samples, one at a time: [n, ...]."""
    session = Session(graph)
    name = graph.inputs[0].name or ""
    return np.concatenate([session.run({name: test[i : i + 1]})[0] for i in range(len(test))])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--precision", default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="recipe option")
    parser.add_argument("--limit", type=int, default=None, help="test samples")
    parser.add_argument("--calibration", type=int, default=None, help="calibration samples")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    options = {key: json.loads(value) for key, value in (item.split("=", 1) for item in arguments.set)}
    recipe = load_recipe(arguments.recipe).override({"precision": arguments.precision, **options})
    recipe = dataclasses.replace(recipe, passes=tuple(name for name in recipe.passes if name != "integerize"))
    rows, missed = [], 0
    for one in evaluations(arguments.only, arguments.calibration):
        graph = load(one)
        context = Context(samples=load_samples({graph.inputs[0].name or "": one.calibration}, graph))
        start = time.perf_counter()
        done = run_pipeline(graph, recipe, context)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        assert done.qdq_graph is not None
        value = one.score(outputs_of(done.qdq_graph, one.test[: arguments.limit]))
        kind, bound = GOALS[one.name]
        lower_is_better = one.metric == "mse_to_input"
        loss = (value - one.float_value) if lower_is_better else (one.float_value - value)
        good = kind == "none" or (loss <= bound if kind == "loss" else value >= bound)
        missed += not good
        goal = {"loss": f"loss <= {bound}", "value": f">= {bound}", "none": "-"}[kind]
        print(
            f"{one.name:34} {one.metric:12} float {one.float_value:8.4f}  quantized {value:8.4f}  loss {loss:8.4f}  "
            f"goal {goal:14} {'ok' if good else 'MISSED':6} {seconds:6.1f} s  peak {peak} MiB",
            flush=True,
        )
        rows.append(
            {
                "name": one.name, "metric": one.metric, "float": one.float_value, "quantized": value, "loss": loss,
                "goal": goal, "met": good, "seconds": round(seconds, 2), "samples": len(one.test[: arguments.limit]),
                "notes": context.facts,
            }
        )  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
