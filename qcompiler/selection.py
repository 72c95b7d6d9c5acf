"""What the driver adds to the choice of samples: labels beside the data, and a quickly quantized model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibrate.data import Samples
from qcompiler.calibrate.select import Selection, check_method, select
from qcompiler.context import Context
from qcompiler.errors import RecipeError
from qcompiler.graph.model import Graph
from qcompiler.pipeline import run_pipeline
from qcompiler.recipe import Recipe, load_recipe
from qcompiler.target import Target

LABELS = ("y", "labels", "label")
"""Keys of an .npz that are taken for classes, if they are one number a sample."""


def check_selection(method: str, samples: int | None, calibration: Any) -> None:
    """Raises RecipeError before any work: no such method, or nothing to choose from."""
    check_method(method)
    if samples is None:
        raise RecipeError("it needs to know how many samples to choose.", where="select", hint="Pass --samples N, too.")
    if calibration is None:
        raise RecipeError("there is no calibration data to choose from.", where="select", hint="Pass --calib.")


def choose_samples(
    pool: Samples,
    graph: Graph,
    method: str,
    count: int,
    seed: int,
    calibration: Any,
    plan: Recipe,
    target: Target,
    progress: Callable[[str, int, int], None],
) -> Selection:
    """Choose samples from the pool for the recipe `plan`. Raises what `select` and the passes raise."""

    def quantize(few: Samples) -> Graph:
        """The model at the precision of the plan, with the least that quantization takes."""
        least = load_recipe("minmax")
        passes = least.passes[: least.passes.index("insert_qdq") + 1]
        quick = dataclasses.replace(
            least, name="select", passes=passes, quantize=plan.quantize, rules=plan.rules,
            options={**least.options, **{k: v for k, v in plan.options.items() if k == "check_support"}},
        )  # fmt: skip
        context = Context(capabilities=target.capabilities, samples=few, seed=seed)
        made = run_pipeline(graph, quick, context).qdq_graph
        assert made is not None
        return made

    labels = find_labels(calibration, len(pool)) if method == "stratified" else None
    return select(pool, graph, method, count, seed, labels=labels, quantize=quantize, progress=progress)


def find_labels(calibration: Any, count: int) -> NDArray | None:
    """Classes [count] that lie beside the inputs in an .npz, if it has them."""
    if not isinstance(calibration, str | Path) or Path(calibration).suffix != ".npz":
        return None
    with np.load(calibration, allow_pickle=False) as arrays:
        for key in LABELS:
            if key in arrays.files and arrays[key].shape in ((count,), (count, 1)):
                return np.asarray(arrays[key]).reshape(-1)
    return None
