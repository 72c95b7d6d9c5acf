"""Run a model, a graph or a bundle over samples, and measure how good its outputs are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from qcompiler.bundle import Bundle
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.graph.functions import QUANTIZERS
from qcompiler.graph.model import DOMAIN, Graph
from qcompiler.tolerance import RULE, Tolerance

Runner = Callable[[Mapping[str, NDArray]], list[NDArray]]

BEST_DB = 200.0
"""What sqnr and psnr say where there is no error at all."""

METRICS = ("top1", "mse", "psnr", "cosine", "sqnr")


def runner(source: Graph | Bundle, *, threads: int = 1) -> Runner:
    """What runs `source`: the oracle for INTEGER graphs, onnxruntime without optimizations for others, the runtime
    for bundles."""
    if isinstance(source, Bundle):
        return source.load(threads=threads).run  # type: ignore[no-any-return]
    if is_integer(source):
        from qcompiler.execute.oracle import Oracle

        return Oracle(source).run
    from qcompiler.execute.ort import Session

    return Session(source, threads=threads).run


def is_integer(graph: Graph) -> bool:
    """Whether a graph is in the INTEGER stage (it has nodes that carry an arithmetic or integer operators of ours)."""
    return any(
        node.domain == DOMAIN and "format" in node.attributes and node.op_type not in QUANTIZERS
        for node in graph.nodes()
    )


def predict(
    run: Runner, samples: Iterable[Mapping[str, NDArray]], progress: Callable[[int], None] | None = None
) -> NDArray:
    """First outputs over all samples, [n, ...]. Raises CalibrationError when there are none."""
    outputs = []
    for i, sample in enumerate(samples):
        outputs.append(np.atleast_1d(run(sample)[0]))
        if progress:
            progress(i + 1)
    if not outputs:
        raise CalibrationError("there are no samples.", hint="Give a data set with at least one.")
    return np.concatenate(outputs)


def load_labels(spec: str, data: str | Path | None) -> NDArray:
    """Labels: a key of the .npz with the data, or the path of a .npy file. Raises CalibrationError."""
    if spec.endswith(".npy"):
        if not Path(spec).is_file():
            raise CalibrationError("no such file.", where=spec, hint="--labels takes a key of the data file or a .npy.")
        try:
            return np.asarray(np.load(spec, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise CalibrationError(f"not a readable .npy file ({error}).", where=spec) from error
    if data is None or not str(data).endswith(".npz") or not Path(data).is_file():
        raise CalibrationError(
            f"labels `{spec}` need a .npz with that key.", where=str(data), hint="Or pass --labels labels.npy."
        )
    try:
        with np.load(data, allow_pickle=False) as arrays:
            keys = list(arrays.files)
            labels = np.asarray(arrays[spec]) if spec in keys else None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise CalibrationError(f"not a readable .npz file ({error}).", where=str(data)) from error
    if labels is None:
        named = ", ".join(f"`{key}`" for key in keys)
        raise CalibrationError(
            f"there is no key `{spec}`; it has {named}.", where=str(data), hint="Choose one of them."
        )
    return labels


def check_metric(name: str) -> None:
    """Raise RecipeError unless there is such a metric."""
    if ":" in name:
        _function(name)
    elif name not in METRICS:
        raise RecipeError(
            f"`{name}` is no metric.", where="--metric", hint=f"Choose from {', '.join(METRICS)} or module:function."
        )


def metric(name: str, outputs: NDArray, labels: NDArray | None) -> float:
    """One figure, finite. outputs: float32 [n, ...].

    top1: labels int [n]; share of samples whose largest output is the label (with reference outputs as labels: whose
    largest output is the reference's); integer outputs are the decisions themselves. mse, psnr (peak 1, mean over
    samples, dB, outputs clipped to 0..1, at most 200), cosine (mean over samples), sqnr (dB over all, at most 200):
    labels as outputs.
    `module:function` is called with (outputs, labels). Raises RecipeError and CalibrationError.
    """
    check_metric(name)
    value = _call(name, outputs, labels) if ":" in name else _metric(name, outputs, labels)
    if not np.isfinite(value):
        raise CalibrationError(
            f"metric {name} gives {value}.", where="--metric", hint="The outputs or the labels hold NaN or infinity."
        )
    return value


def _metric(name: str, outputs: NDArray, labels: NDArray | None) -> float:
    if labels is None:
        raise CalibrationError(
            f"metric {name} compares with labels or reference outputs, and there are none.",
            where="--metric",
            hint="Pass --labels KEY (a key of the data file, or a .npy), or --against MODEL.onnx as the reference.",
        )
    if len(labels) < len(outputs):
        raise CalibrationError(f"there are {len(labels)} labels for {len(outputs)} samples.", where="--labels")
    labels = labels[: len(outputs)]
    if name == "top1":
        if outputs.dtype.kind in "iu" and outputs.size == labels.size:  # the model decides itself: ArgMax, TopK
            return float((outputs.ravel() == labels.ravel()).mean())
        if labels.size == len(labels):
            labels = labels.reshape(-1)
        elif labels.size == outputs.size:  # reference outputs: agreement
            labels = labels.reshape(len(labels), -1).argmax(1)
        else:
            raise CalibrationError(f"labels have shape {labels.shape}, outputs {outputs.shape}.", where="--labels")
        return float((outputs.reshape(len(outputs), -1).argmax(1) == labels).mean())
    if labels.size != outputs.size:
        raise CalibrationError(f"labels have shape {labels.shape}, outputs {outputs.shape}.", where="--labels")
    out = outputs.reshape(len(outputs), -1).astype(np.float64)
    ref = labels.reshape(len(outputs), -1).astype(np.float64)
    if name == "mse":
        return float(((out - ref) ** 2).mean())
    if name == "psnr":
        noise = ((out.clip(0, 1) - ref) ** 2).mean(1)
        return float(np.minimum(-10 * np.log10(np.maximum(noise, 1e-30)), BEST_DB).mean())
    if name == "cosine":
        norms = np.linalg.norm(out, axis=1) * np.linalg.norm(ref, axis=1)
        return float(((out * ref).sum(1) / np.maximum(norms, 1e-30)).mean())
    return sqnr(ref, out)


def sqnr(reference: NDArray, outputs: NDArray) -> float:
    """Signal to quantization noise in dB: 10 log10(sum ref^2 / sum (ref - out)^2); at most 200."""
    reference, outputs = reference.astype(np.float64), outputs.astype(np.float64)
    noise = float(((reference - outputs) ** 2).sum())
    signal = float((reference**2).sum())
    if noise == 0:
        return BEST_DB
    return min(10 * float(np.log10(max(signal, 1e-30) / noise)), BEST_DB)


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"cannot import it ({error}).",
            where=f"--metric {name}",
            hint="The module is looked for in the working directory and in PYTHONPATH.",
        ) from error
    if not callable(function):
        raise RecipeError("it is not a function.", where=f"--metric {name}")
    return function  # type: ignore[no-any-return]


def _call(name: str, outputs: NDArray, labels: NDArray | None) -> float:
    try:
        return float(_function(name)(outputs, labels))
    except Exception as error:  # the user's own code
        raise RecipeError(
            f"it failed ({type(error).__name__}: {error}).",
            where=f"--metric {name}",
            hint="It is called with the outputs [n, ...] and the labels, and returns one number.",
        ) from error


@dataclass(frozen=True)
class Verification:
    """Target against oracle."""

    samples: int
    mismatches: int
    first: str = ""
    """Where the first mismatch is."""
    within: int = 0
    """Comparisons with differences that the tolerance of float islands allows."""
    islands: Mapping[str, Any] | None = None
    """Of a graph with float islands: how each output was compared."""

    @property
    def bit_exact(self) -> bool:
        """No output of any sample differs in any bit."""
        return self.mismatches == 0 and self.within == 0

    @property
    def passed(self) -> bool:
        """Bit-exact, but for what depends on float islands: that is within its tolerance."""
        return self.mismatches == 0

    def verdict(self) -> str:
        """A few words for people."""
        if self.bit_exact:
            return "bit-exact"
        if self.passed:
            return "within the tolerance of its float islands"
        return f"NOT bit-exact: {self.mismatches} mismatches, {self.first}"

    def document(self) -> dict[str, Any]:
        """The JSON that others rely on."""
        found: dict[str, Any] = {"bit_exact": self.bit_exact, "samples": self.samples, "mismatches": self.mismatches}
        found |= {"first_mismatch": self.first} if self.first else {}
        return found | ({"within_tolerance": self.passed, **self.islands} if self.islands else {})


def verify(
    expected: Runner,
    actual: Sequence[Runner],
    names: Sequence[str],
    samples: Iterable[Mapping[str, NDArray]],
    progress: Callable[[int], None] | None = None,
    tolerance: Tolerance | None = None,
) -> Verification:
    """Compare runners with the oracle, bit for bit. A mismatch is a (sample, runner) pair with any other bit.

    tolerance: of an oracle with float islands; outputs that depend on one may differ by as much.
    """
    count = mismatches = within = 0
    first = ""
    islands = tolerance is not None and any(tolerance.reached)
    allowed, worst = np.zeros(0), np.zeros(0)
    for count, sample in enumerate(samples, 1):
        want = expected(sample)
        limits = tolerance(sample, want) if islands and tolerance is not None else [0.0] * len(want)
        allowed = np.maximum(allowed, limits) if allowed.size else np.asarray(limits)
        worst = worst if worst.size else np.zeros(len(want))
        for name, run in zip(names, actual, strict=True):
            tolerated = False
            for i, (w, g, limit) in enumerate(zip(want, run(sample), limits, strict=True)):
                if w.shape == g.shape and w.tobytes() == np.asarray(g, w.dtype).tobytes():
                    continue
                gap = float(np.abs(w.astype(np.float64) - g).max()) if w.shape == g.shape else np.inf
                worst[i] = max(worst[i], gap)
                if limit > 0 and gap <= limit:
                    tolerated = True
                    continue
                mismatches += 1
                differing = int((w != g).sum())
                first = first or f"sample {count - 1}, output {i}, {name}: {differing} of {w.size} values differ"
                break
            else:
                within += tolerated
        if progress:
            progress(count)
    found = None
    if islands and tolerance is not None:
        found = {"rule": RULE, "outputs": _compared(tolerance, allowed, worst)}
    return Verification(count, mismatches, first, within, found)


def _compared(tolerance: Tolerance, allowed: NDArray, worst: NDArray) -> list[dict[str, Any]]:
    """How each output was compared: with the largest tolerance of all samples, and the largest difference."""
    return [
        {"name": name, "compared": "within tolerance", "tolerance": float(limit), "largest_difference": float(gap)}
        if behind
        else {"name": name, "compared": "bit for bit"}
        for name, behind, limit, gap in zip(tolerance.names, tolerance.reached, allowed, worst, strict=True)
    ]


def take(samples: Iterable[Any], count: int) -> Iterator[Any]:
    """The first `count`."""
    for i, sample in enumerate(samples):
        if i == count:
            return
        yield sample
