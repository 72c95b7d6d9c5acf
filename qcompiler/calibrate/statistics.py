"""Statistics of float values over calibration data: one pass, memory flat in the number of samples."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompiler import __version__
from qcompiler.calibrate.data import Samples
from qcompiler.calibrate.observers import Histogram
from qcompiler.context import Context
from qcompiler.errors import CalibrationError
from qcompiler.execute.ort import Session
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import is_quantizer


@dataclass(eq=False)
class Statistics:
    """Histograms by value name, of the graph with this fingerprint; another graph's are never used."""

    fingerprint: str
    values: dict[str, Histogram] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Histogram:
        return self.values[name]


def observe(graph: Graph, samples: Samples, names: Iterable[str], context: Context) -> dict[str, Histogram]:
    """Histograms of float32 values, by running the graph in onnxruntime once over all samples.

    Raises CalibrationError when a value is NaN or infinite, naming sample and value.
    """
    names = list(names)
    histograms = {name: Histogram() for name in names}
    inputs = {value.name for value in graph.inputs}
    computed = [name for name in names if name not in inputs]
    session = Session(with_outputs(graph, computed)) if computed else None
    total = samples.count or 0
    for done, sample in enumerate(samples):
        found = {name: sample[name] for name in names if name in inputs}
        if session is not None:
            found.update(zip(computed, session.run(sample, computed), strict=True))
        for name, array in found.items():
            with np.errstate(invalid="ignore"):
                total_value = array.sum(dtype=np.float64)  # quick; opposite infinities make it NaN
            if not np.isfinite(total_value) and not np.isfinite(array).all():
                raise CalibrationError(
                    f"`{name}` becomes NaN or infinite.",
                    where=f"{samples.source}, sample {done}",
                    hint="The float model itself overflows on this sample; check its preprocessing.",
                )
            histograms[name].add(array)
        context.progress("calibrate", done + 1, total)
    return histograms


def require(graph: Graph, names: Iterable[str], context: Context) -> Statistics:
    """Statistics that have at least `names`: from the context if they are of this very graph, from the cache on disk,
    else measured. The result is left in the context. Raises CalibrationError without calibration data.
    """
    fingerprint = graph.fingerprint()
    found = context.statistics
    if found is None or found.fingerprint != fingerprint:
        found = Statistics(fingerprint)
    missing = sorted(set(names) - set(found.values))
    if missing:
        if context.samples is None:
            given = any(is_quantizer(node) for node in graph.ir)
            lack = f", since {len(missing)} values lack a quantizer (`{'`, `'.join(missing[:4])}`)" if given else ""
            raise CalibrationError(
                f"quantization needs calibration data{lack}.",
                where=graph.path,
                hint="Pass --calib DATA (.npz, .npy, a directory of images, module:function), or --calib random.",
            )
        key = _cache_key(fingerprint, context.samples, missing)
        histograms = _load(key)
        if histograms is None:
            histograms = observe(graph, context.samples, missing, context)
            _store(key, histograms)
        found.values.update(histograms)
    context.statistics = found
    return found


def with_outputs(graph: Graph, names: Iterable[str]) -> Graph:
    """A copy whose outputs are the values called `names` alone."""
    copy = graph.clone()
    by_name = {value.name: value for value in copy.values()}
    copy.ir.outputs.clear()
    for name in dict.fromkeys(names):
        value = by_name[name]
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        copy.ir.outputs.append(value)
    copy.sweep()
    return copy


# -- cache -------------------------------------------------------------------------------------------------------


def cache_directory() -> Path | None:
    """Where statistics are kept: $QCOMPILER_CACHE, else the user's cache directory; None when it is set to `off`."""
    given = os.environ.get("QCOMPILER_CACHE")
    if given == "off":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else base / "qcompiler"


def _cache_key(fingerprint: str, samples: Samples, names: list[str]) -> str | None:
    if samples.digest is None:
        return None
    text = "\n".join([__version__, "histogram-1", np.__version__, fingerprint, samples.digest, *names])
    return hashlib.sha256(text.encode()).hexdigest()


def _load(key: str | None) -> dict[str, Histogram] | None:
    directory = cache_directory()
    if key is None or directory is None:
        return None
    try:
        with np.load(directory / f"{key}.npz", allow_pickle=False) as data:
            names, numbers, ranges, counts = (data[k] for k in ("names", "numbers", "ranges", "counts"))
    except Exception:  # a damaged or foreign file in a cache is the same as none
        return None
    return {
        str(name): Histogram(count, int(n[0]), int(n[1]) if n[2] else None, float(r[0]), float(r[1]), *map(int, n[3:]))
        for name, n, r, count in zip(names, numbers, ranges, counts, strict=True)
    }


def _store(key: str | None, histograms: dict[str, Histogram]) -> None:
    directory = cache_directory()
    if key is None or directory is None or not histograms:
        return
    all_of = list(histograms.values())
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        names=np.array(list(histograms)),
        numbers=np.array([[h.start, h.exponent or 0, h.exponent is not None, h.total, h.zeros] for h in all_of]),
        ranges=np.array([[h.minimum, h.maximum] for h in all_of]),
        counts=np.stack([h.counts for h in all_of]),
    )
    part = directory / f"{key}.{os.getpid()}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        part.write_bytes(buffer.getvalue())
        part.replace(directory / f"{key}.npz")
    except OSError:
        part.unlink(missing_ok=True)  # no cache is no error
