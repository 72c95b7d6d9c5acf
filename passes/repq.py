"""RepQ-ViT: quantize the output of a normalization as if every channel had its own scale and zero point.

For the output x [.., C] of a LayerNormalization that products with weights read alone, each channel gets an affine
range (s_d, z_d): of the quantiles .999, .9999, .99999 on both sides the pair with the least squared error. Then with
s~ = mean(s), z~ = round(mean(z)), r1 = s / s~ and r2 = z - z~

    scale~ = scale / r1    bias~ = (bias + s r2) / r1    W~[d] = r1_d W[d]    b~ = b - W (s r2)

so that x~ / s~ + z~ = x / s + z: one quantizer (s~, z~) of the whole tensor gives the codes of the channel-wise one,
and the float function stays. Ranges of the changed weights are found anew as set_ranges found them.

RMSNormalization has no bias, nor can a term cross the zero padding of a Conv: there all channels share z~ from the
start and s_d is the least that covers the quantiles (r2 = 0). An Add behind the normalization could hold r2, at the
price of one more pass over the tensor; it is not made.

Run it right after set_ranges. Left alone: values that anything else reads (a residual Add), values that share their
quantizer with others. Every channel has s_d >= 1e-4 max(s): a dead channel needs no finer steps (the paper's code
has no floor). Source: Li et al. 2023, RepQ-ViT (arXiv 2212.08254), scale reparameterization behind LayerNorm; z~ is
rounded before r2 is computed, which the authors' code does not do and without which the codes differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.assignment import Assignment
from qcompiler.calibrate.channels import ChannelHistograms, observe_histograms
from qcompiler.calibrate.ranges import params_from_range
from qcompiler.context import Context
from qcompiler.errors import RecipeError
from qcompiler.formats import Int, Minifloat, QuantParams, QuantSpec
from qcompiler.graph.folding import Site, find_sites, fold
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage
from qcompiler.passes.set_ranges import change_weights

STAGE = (Stage.FLOAT, Stage.FLOAT)
AFTER = {"set_ranges": "it replaces the ranges behind normalizations"}
EXCLUDES = {"smoothquant": "all channels get one range here, whatever was moved between them before"}
LADDER = (0.999, 0.9999, 0.99999)
FLOOR = 1e-4


@dataclass(frozen=True, kw_only=True)
class Options:
    below: int = 8
    """Values with fewer bits than this are treated."""
    samples: int = 128
    """Calibration samples that the ranges of channels are taken from."""


@dataclass(frozen=True, eq=False)
class Channelwise:
    """Affine quantizers of channels: scale float64 [C], zero_point float64 [C] of whole numbers."""

    scale: NDArray[np.float64]
    zero_point: NDArray[np.float64]


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function, quantized per channel. Raises RecipeError before set_ranges, CalibrationError without data."""
    assignment = context.assignment
    if assignment is None or (assignment.activations and not assignment.params):
        raise RecipeError("no ranges were set yet.", where="repq", hint="Run the pass `set_ranges` before it.")
    sites, refused = find_sites(graph)
    for node, reason in refused:
        context.note(node, f"quantized with one range for all channels: {reason}")
    chosen: list[tuple[Site, QuantSpec]] = []
    for site in sites:
        spec = _spec(site, assignment, options.below)
        if isinstance(spec, str):
            context.note(site.node, f"quantized with one range for all channels: {spec}")
        elif spec is not None:
            chosen.append((site, spec))
    wanted = {str(site.value.name): site.axis for site, _ in chosen}
    histograms = observe_histograms(graph, wanted, context, options.samples) if wanted else {}
    changed: list[tuple[str, str]] = []
    for site, spec in chosen:
        histogram = histograms[str(site.value.name)]
        channels = find_channels(histogram, spec, shifts=site.shifts)
        params = layerwise(channels, spec)
        factor = channels.scale / float(params.scale)
        term = channels.scale * (channels.zero_point - int(params.zero_point)) if site.shifts else None
        _set_params(site, assignment, params, histogram, factor, term)
        changed += fold(graph, site, factor, term)
    graph.sweep()
    change_weights(graph, assignment, changed)
    context.facts["repq"] = {"normalizations": len(chosen)}
    return graph


def _spec(site: Site, assignment: Assignment, below: int) -> QuantSpec | str | None:
    """The format through which products read the value; a reason why it is left alone; None if it has enough bits."""
    name = str(site.value.name)
    if name not in assignment.activations:
        return "it has no quantizer of its own"
    specs = [
        assignment.narrowed.get(read) or assignment.activations.get(read)
        for read in (str(sink.node.inputs[0].name) for sink in site.sinks)  # type: ignore[union-attr]
    ]
    spec = specs[0]
    if spec is None or any(other != spec for other in specs):
        return "its readers quantize it differently"
    if isinstance(spec.format, Minifloat):
        return f"channels of {spec.format} cannot have zero points"
    if spec.format.bits >= below:
        return None
    if not all(sink.moved for sink in site.sinks):
        return "more than data movement lies before its readers"
    if any(member not in site.names for member in assignment.group_of(name)):
        return "it shares its quantizer with other values"
    return spec


def find_channels(histogram: ChannelHistograms, spec: QuantSpec, *, shifts: bool) -> Channelwise:
    """Scale and zero point of every channel with the least squared error of the ladder.

    shifts: whether every channel has a zero point of its own, any whole number; else all share one that the format
    holds (0 where the format is symmetric).
    """
    fmt = spec.format.integers
    ends = [(histogram.quantile(1 - share), histogram.quantile(share)) for share in LADDER]
    scales = [_floored((high - low) / (fmt.max - fmt.min)) for low, high in ends]
    zeros = [np.rint(-low / s) + fmt.min for (low, _), s in zip(ends, scales, strict=True)]
    if not shifts:
        shared = 0.0 if spec.symmetric else _mean_zero(scales[-1], zeros[-1], fmt)
        up, down = max(fmt.max - shared, 1e-9), max(shared - fmt.min, 1e-9)
        scales = [_floored(_cover(low, high, up, down)) for low, high in ends]
        zeros = [np.full(len(s), shared) for s in scales]
    centres = histogram.centres()
    errors = np.stack([_errors(centres, histogram.counts, s, z, fmt) for s, z in zip(scales, zeros, strict=True)])
    best, rows = errors.argmin(axis=0), np.arange(errors.shape[1])
    return Channelwise(np.stack(scales)[best, rows], np.stack(zeros)[best, rows])


def _cover(low: NDArray, high: NDArray, up: float, down: float) -> NDArray:
    """Scale at which [low, high] fits into `down` steps below and `up` steps above 0; a side without codes is cut."""
    over = np.maximum(high, 0.0) / up if up >= 1 else np.zeros_like(high)
    under = np.maximum(-low, 0.0) / down if down >= 1 else np.zeros_like(low)
    return np.maximum(over, under)


def layerwise(channels: Channelwise, spec: QuantSpec) -> QuantParams:
    """s~ and z~: the mean scale, and the mean zero point of live channels, rounded and within the format."""
    fmt = spec.format.integers
    scale = float(channels.scale.mean())
    if spec.scale_type == "power_of_two":
        scale = float(2.0 ** np.ceil(np.log2(scale)))
    zero_point = 0.0 if spec.symmetric else _mean_zero(channels.scale, channels.zero_point, fmt)
    return QuantParams(fmt, np.float32(scale), np.int64(zero_point))


def _mean_zero(scale: NDArray, zero_point: NDArray, fmt: Int) -> float:
    live = scale > FLOOR * scale.max()
    return float(np.clip(np.rint(zero_point[live].mean()), fmt.min, fmt.max))


def _floored(scale: NDArray) -> NDArray:
    largest = float(scale.max())
    return np.maximum(scale, FLOOR * largest if largest > 0 else 1.0)


def _errors(centres: NDArray, counts: NDArray, scale: NDArray, zero_point: NDArray, fmt: Int) -> NDArray:
    s, z = scale[:, None], zero_point[:, None]
    codes = np.clip(np.rint(centres / s) + z, fmt.min, fmt.max)
    return np.asarray((counts * (centres - s * (codes - z)) ** 2).sum(axis=1))


def _set_params(
    site: Site,
    assignment: Assignment,
    params: QuantParams,
    histogram: ChannelHistograms,
    factor: NDArray,
    term: NDArray | None,
) -> None:
    """Parameters of the value and of all that share them; a wider quantizer before a narrow one covers all of x~."""
    u = 0.0 if term is None else term
    low, high = (histogram.ranges.minimum + u) / factor, (histogram.ranges.maximum + u) / factor
    for member in assignment.group_of(str(site.value.name)):
        spec = assignment.activations.get(member)
        if member in assignment.narrowed:
            assignment.narrowed_params[member] = params
            assert spec is not None
            assignment.params[member] = params_from_range(float(low.min()), float(high.max()), spec)
        elif spec is not None:
            assignment.params[member] = params
