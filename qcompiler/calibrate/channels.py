"""Statistics of the channels of values, and rows of what products read; memory is flat in the number of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qcompiler.calibrate.statistics import with_outputs
from qcompiler.context import Context
from qcompiler.errors import CalibrationError
from qcompiler.execute.ort import Session
from qcompiler.graph.channels import DENSE
from qcompiler.graph.model import Graph, attribute

BINS = 1024


@dataclass(eq=False)
class ChannelRanges:
    """Smallest, largest and mean absolute number of each channel: float64 [C] each."""

    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    mean_abs: NDArray[np.float64]

    @property
    def reach(self) -> NDArray[np.float64]:
        """Largest absolute number of each channel."""
        return np.maximum(self.maximum, -self.minimum)


@dataclass(eq=False)
class ChannelHistograms:
    """Counts int64 [C, BINS] between the smallest and the largest number of each channel."""

    ranges: ChannelRanges
    counts: NDArray[np.int64]

    def centres(self) -> NDArray[np.float64]:
        """Middles of the bins: float64 [C, BINS]."""
        low, high = self.ranges.minimum[:, None], self.ranges.maximum[:, None]
        return low + (np.arange(BINS) + 0.5) / BINS * (high - low)

    def quantile(self, share: float) -> NDArray[np.float64]:
        """The number below which a share of each channel lies, interpolated within its bin: float64 [C]."""
        wanted = share * self.counts.sum(axis=1)
        upto = np.cumsum(self.counts, axis=1)
        at = np.minimum((upto < wanted[:, None]).sum(axis=1), BINS - 1)
        rows = np.arange(len(at))
        inside = self.counts[rows, at]
        part = (wanted - (upto[rows, at] - inside)) / np.maximum(inside, 1)
        low, high = self.ranges.minimum, self.ranges.maximum
        return np.asarray(low + (at + np.clip(part, 0, 1)) / BINS * (high - low))


def observe_ranges(
    graph: Graph, wanted: Mapping[str, int], context: Context, limit: int | None = None
) -> dict[str, ChannelRanges]:
    """Ranges of the channels of values, name -> axis, in one pass over at most `limit` samples.

    Raises CalibrationError without samples, or when a value becomes NaN or infinite.
    """
    found: dict[str, ChannelRanges] = {}
    counts: dict[str, int] = {}
    for name, rows in _stream(graph, wanted, context, limit):
        low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise CalibrationError(f"`{name}` becomes NaN or infinite.", where=graph.path)
        total = np.abs(rows).sum(axis=1, dtype=np.float64)
        if name in found:
            old = found[name]
            found[name] = ChannelRanges(
                np.minimum(old.minimum, low), np.maximum(old.maximum, high), old.mean_abs + total
            )
        else:
            found[name] = ChannelRanges(low, high, total)
        counts[name] = counts.get(name, 0) + rows.shape[1]
    for name, one in found.items():
        one.mean_abs = one.mean_abs / counts[name]
    return found


def observe_histograms(
    graph: Graph, wanted: Mapping[str, int], context: Context, limit: int | None = None
) -> dict[str, ChannelHistograms]:
    """Histograms of the channels of values, name -> axis, in two passes. Raises as `observe_ranges`."""
    ranges = observe_ranges(graph, wanted, context, limit)
    found = {
        name: ChannelHistograms(one, np.zeros((len(one.minimum), BINS), np.int64)) for name, one in ranges.items()
    }
    for name, rows in _stream(graph, wanted, context, limit):
        one = found[name]
        low, width = one.ranges.minimum[:, None], (one.ranges.maximum - one.ranges.minimum)[:, None]
        index = ((rows - low) * (BINS / np.where(width > 0, width, 1.0))).astype(np.int64)
        index = np.clip(index, 0, BINS - 1) + np.arange(len(rows))[:, None] * BINS
        one.counts += np.bincount(index.reshape(-1), minlength=one.counts.size).reshape(one.counts.shape)
    return found


def _stream(
    graph: Graph, wanted: Mapping[str, int], context: Context, limit: int | None
) -> Iterator[tuple[str, NDArray]]:
    """(name, [C, everything else]) of every value, sample by sample."""
    names = list(wanted)
    for outputs in run_samples(graph, names, context, limit):
        for name, array in zip(names, outputs, strict=True):
            axis = wanted[name] % array.ndim
            yield name, np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def run_samples(graph: Graph, names: Sequence[str], context: Context, limit: int | None) -> Iterator[list[NDArray]]:
    """The values called `names`, sample by sample. Raises CalibrationError without samples."""
    if context.samples is None:
        raise CalibrationError(f"the pass `{context.source}` needs calibration data.", where=graph.path)
    if not names:
        return
    inputs = {str(value.name) for value in graph.inputs}
    computed = [name for name in names if name not in inputs]
    session = Session(with_outputs(graph, computed)) if computed else None
    total = len(context.samples) if limit is None else min(limit, len(context.samples))
    for done, sample in enumerate(context.samples):
        if done == total:
            return
        context.progress(context.source.replace("_", " ") or "channels", done + 1, total)
        known = dict(sample)
        if session is not None:
            known.update(zip(computed, session.run({n: sample[n] for n in session.input_names}, computed), strict=True))
        yield [known[name] for name in names]


# -- rows of products --------------------------------------------------------------------------------------------


def as_matrices(node: ir.Node, w: NDArray) -> NDArray:
    """The weight of a Conv, Gemm or MatMul in plain form as [groups, K, N]: outputs = rows @ matrix."""
    if node.op_type in DENSE:
        return w[None]
    groups = attribute(node, "group", 1)
    return w.reshape(groups, len(w) // groups, -1).transpose(0, 2, 1)


def collect_rows(
    graph: Graph, nodes: Sequence[ir.Node], context: Context, rows: int, limit: int
) -> dict[ir.Node, NDArray[np.float32]]:
    """Rows of what Conv, Gemm and MatMul nodes read: float32 [groups, R, K] with R about `rows`, K as in as_matrices.

    Positions are drawn with the context's seed, the same number from each of at most `limit` samples.
    Raises CalibrationError without samples.
    """
    names = list(dict.fromkeys(str(node.inputs[0].name) for node in nodes))  # type: ignore[union-attr]
    total = min(limit, len(context.samples)) if context.samples is not None else 1
    each = -(-rows // max(total, 1))
    parts: dict[ir.Node, list[NDArray]] = {node: [] for node in nodes}
    rng = np.random.default_rng(context.seed)
    for outputs in run_samples(graph, names, context, limit):
        known = dict(zip(names, outputs, strict=True))
        for node in nodes:
            parts[node].append(_rows(graph, node, known[str(node.inputs[0].name)], each, rng))  # type: ignore[union-attr]
    return {node: np.concatenate(found, axis=1) for node, found in parts.items()}


def _rows(graph: Graph, node: ir.Node, x: NDArray, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    if node.op_type in DENSE:
        flat = x.reshape(-1, x.shape[-1])
        return np.asarray(flat[_draw(len(flat), count, rng)], np.float32)[None]
    kernel = graph.shape(node.inputs[1])[2:]
    spatial = len(kernel)
    pads = attribute(node, "pads", [0] * 2 * spatial)
    dilations, strides = attribute(node, "dilations", [1] * spatial), attribute(node, "strides", [1] * spatial)
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = sliding_window_view(x, extents, axis=tuple(range(2, x.ndim)))  # [N, C, *out, *extents]
    steps = tuple(slice(None, None, s) for s in strides) + tuple(slice(None, None, d) for d in dilations)
    windows = np.moveaxis(windows[(slice(None), slice(None), *steps)], 1, 1 + spatial)  # [N, *out, C, *kernel]
    lead = windows.shape[: 1 + spatial]
    chosen = np.unravel_index(_draw(int(np.prod(lead)), count, rng), lead)
    patches = np.asarray(windows[chosen], np.float32)  # [R, C, *kernel]
    groups = attribute(node, "group", 1)
    return patches.reshape(len(patches), groups, -1).transpose(1, 0, 2)


def _draw(total: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.arange(total) if count >= total else np.sort(rng.choice(total, count, replace=False))
