"""SmoothQuant: move the spread of channels from activations into weights.

For a value x that products with weights read (see qcompiler/graph/folding.py for what is allowed), each channel j is
divided by

    S_j = max |x_j|^alpha / max |W_j|^(1 - alpha)        over the calibration data, and over all weights that read it

in the normalization (or the product) before it, and multiplied in the rows of the weights behind it. S is divided by
its geometric mean, which changes no code: only the ratios of channels matter to quantizers. Channels that are dead, or
whose weights are all 0, keep S = 1.

With `products`, values that a product with weights makes are treated as well, where all of their channels are free:
through Relu, through the gate of a SwiGLU (up -> down) and through attention (v -> out, also where heads share v).

Run it before `calibrate`. Float output is equal up to float32 rounding. Source: Xiao et al. 2023, SmoothQuant,
equation 4; alpha 0.5 is theirs, 0.75 to 0.9 for models with heavy outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibrate.channels import ChannelRanges, observe_ranges
from qcompiler.context import Context
from qcompiler.errors import RecipeError
from qcompiler.graph.folding import Site, find_sites, fold, gather_largest, row_maxima
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)


@dataclass(frozen=True, kw_only=True)
class Options:
    alpha: float = 0.5
    """Share of the spread that goes into the weights: 0 to 1."""
    products: bool = False
    """Also where a product with weights makes the value, not only a normalization."""
    samples: int = 128
    """Calibration samples that ranges are taken from."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function. Raises RecipeError (alpha outside 0..1), CalibrationError without samples."""
    if not 0 <= options.alpha <= 1:
        raise RecipeError(f"alpha is {options.alpha}, not between 0 and 1.", where="smoothquant")
    sites, refused = find_sites(graph, products=options.products)
    for node, reason in refused:
        context.note(node, f"not smoothed: {reason}")
    sites = [site for site in sites if site.free.all()]
    wanted = {
        str(sink.node.inputs[0].name): 1 if sink.node.op_type == "Conv" else -1  # type: ignore[union-attr]
        for site in sites
        for sink in site.sinks
    }
    ranges = observe_ranges(graph, wanted, context, options.samples) if wanted else {}
    for site in sites:
        fold(graph, site, factors(graph, site, ranges, options.alpha))
    graph.sweep()
    context.facts["smoothquant"] = {"values": len(sites)}
    return graph


def factors(graph: Graph, site: Site, ranges: dict[str, ChannelRanges], alpha: float) -> NDArray[np.float64]:
    """S of each channel of a site, float64 [C], with geometric mean 1 over the live ones."""
    reach = gather_largest(site, [ranges[str(sink.node.inputs[0].name)].reach for sink in site.sinks])  # type: ignore[union-attr]
    weight = gather_largest(site, [row_maxima(graph, sink.node) for sink in site.sinks])
    live = (reach > 0) & (weight > 0) & site.free
    s = np.ones(len(reach))
    if live.any():
        logs = alpha * np.log(reach[live]) - (1 - alpha) * np.log(weight[live])
        s[live] = np.exp(logs - logs.mean())
    return s
