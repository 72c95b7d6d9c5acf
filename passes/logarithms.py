"""Read attention probabilities and shifted activations through logarithmic quantizers, where few bits are left.

1. a Softmax whose output a MatMul of two activations reads (data movement between them or not): the product reads it
   in a logarithmic format of the bits that were chosen for it; the value itself gets 16 bits, so that encoding costs
   nothing. `softmax` says which base: log2, logsqrt2, or adalog, which takes the base 2^(q/37) and the clipping level
   with the least error of the product over calibration samples (sqrt 2 and log2 are candidates)
2. a Gelu, QuickGelu or Swish that products with weights read: these read it in a logarithmic format of
   x + c, -c being the least value of the function. c is the quantizer's zero point, so that integer products subtract
   c times the sum of the quantized weights exactly (bias reparameterization). Base and clipping level have the least
   error of the layers' outputs. What the function reads gets 8 bits at least, what it writes 16

Runs between `decide` and `set_ranges`. Values of more than 6 bits are left as they are: logarithms gain nothing there.
So are minifloats. Other readers of these values read them with 16 bits. On targets without 16 bits, 8 take their place.

Sources: Li et al. 2023, RepQ-ViT (log sqrt 2 of attention); Wu et al. 2024, AdaLog. Deviation: the least value of GELU
is the function's own, not a constant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler import assignment as decisions
from qcompiler.assignment import Assignment
from qcompiler.calibrate import logarithms as search
from qcompiler.calibrate.statistics import with_outputs
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.execute.ort import Session
from qcompiler.formats import Int, Log, QuantParams, QuantSpec
from qcompiler.graph.analysis import moves_only
from qcompiler.graph.model import Graph, attribute, attributes
from qcompiler.graph.stages import Stage
from qcompiler.ops.functions import FUNCTIONS

STAGE = (Stage.FLOAT, Stage.FLOAT)
AFTER = {
    "decide": "it changes the formats that were chosen",
    "assign_bits": "logarithms are for the widths that it chooses",
}
KINDS = ("int", "log2", "logsqrt2", "adalog")
MOST_BITS = 6
PROBABILITIES = ("Softmax", "CacheSoftmax")
ACTIVATIONS = ("Gelu", "QuickGelu", "Swish")
QUANTILES = (1.0, 0.9999, 0.999, 0.99)
"""Shares of probabilities below the clipping levels that are tried besides 1."""


@dataclass(frozen=True, kw_only=True)
class Options:
    softmax: str = "adalog"
    """Format in which products read attention probabilities of at most 6 bits: int, log2, logsqrt2 or adalog."""
    gelu: str = "int"
    """The same for products with weights that read Gelu, QuickGelu or Swish."""
    samples: int = 16
    """Calibration samples that searches measure errors on."""
    rows: int = 64
    """Rows of each matrix of probabilities that they take from a sample; of activations a quarter of that."""


@dataclass(frozen=True, eq=False)
class Site:
    """A value, the node whose function it holds, and where products read it."""

    value: ir.Value
    maker: ir.Node
    uses: list[tuple[ir.Node, int]]


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """Give the sites logarithmic second quantizers in `context.assignment`. Raises RecipeError without an assignment or
    for an unknown format, CalibrationError without samples."""
    for key, given in (("softmax", options.softmax), ("gelu", options.gelu)):
        if given not in KINDS:
            hint = f"Known: {', '.join(KINDS)}."
            raise RecipeError(f"`{given}` is no format of {key}.", where="logarithms", hint=hint)
    if context.assignment is None:
        raise RecipeError("no formats were chosen yet.", where="logarithms", hint="Run the pass `decide` before it.")
    assignment = context.assignment
    kinds = {
        **dict.fromkeys(PROBABILITIES, options.softmax),
        **dict.fromkeys(ACTIVATIONS, options.gelu),
    }
    sites = [site for site in find_sites(graph, assignment) if kinds[site.maker.op_type] != "int"]
    for site in sites:
        if assignment.activations[str(site.value.name)].scale_type != "float32":
            context.note(site.value, "not logarithmic: the scale of its levels would be no power of two")
    sites = [site for site in sites if assignment.activations[str(site.value.name)].scale_type == "float32"]
    found = {}
    for index, (site, arrays) in enumerate(zip(sites, _captured(graph, sites, options, context), strict=True)):
        name = str(site.value.name)
        bits = operand_bits(assignment, name)
        formats = search.bases(kinds[site.maker.op_type], bits)
        params = _search(graph, site, formats, arrays)
        for member in assignment.group_of(name):
            if member in assignment.activations:
                _widen(assignment, member, 16, context)
        if site.maker.op_type in ACTIVATIONS:
            read = str(site.maker.inputs[0].name)  # type: ignore[union-attr]
            for member in assignment.group_of(read):
                if member in assignment.activations and assignment.activations[member].format.bits < 8:
                    _widen(assignment, member, 8, context)
        assignment.narrowed[name] = QuantSpec(params.format)
        assignment.narrowed_params[name] = params
        found[name] = {
            "format": params.format.token,
            "scale": float(params.scale),
            "zero_point": int(params.zero_point),
        }
        context.progress("logarithms", index + 1, len(sites))
    if found:
        context.facts["logarithms"] = found
    return graph


def find_sites(graph: Graph, assignment: Assignment) -> list[Site]:
    """Values that products can read logarithmically, in topological order."""
    sites = []
    for value in graph.values():
        maker = _maker(value)
        spec = assignment.operand(str(value.name))
        if maker is None or spec is None or not isinstance(spec.format, Int) or spec.format.bits > MOST_BITS:
            continue
        if maker.op_type in PROBABILITIES:
            products = set(decisions.operand_uses(graph, value)) - set(decisions.product_uses(graph, value))
            uses = [use for use in decisions.operand_uses(graph, value) if use in products and not _square(use[0])]
        elif maker.op_type in ACTIVATIONS:
            uses = decisions.product_uses(graph, value)
        else:
            continue
        if uses:
            sites.append(Site(value, maker, uses))
    return sites


def operand_bits(assignment: Assignment, name: str) -> int:
    """Bits that products read a value with; 0 for one that is not quantized."""
    spec = assignment.operand(name)
    return spec.format.bits if spec is not None else 0


def _square(node: ir.Node) -> bool:
    return node.inputs[0] is node.inputs[1]


def least_value(node: ir.Node) -> float:
    """The least value of one of ACTIVATIONS, found on a grid of 1/65536."""
    x = np.arange(-10 * 65536, 1) / 65536
    alpha = abs(float(attribute(node, "alpha", 1.0))) if node.op_type == "Swish" else 1.0
    return float(FUNCTIONS[node.op_type](x / (alpha or 1.0), attributes(node)).min())


def _maker(value: ir.Value) -> ir.Node | None:
    """The node whose result a value holds: data movement is passed over."""
    node = value.producer()
    while node is not None and moves_only(node):
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    return node


def _widen(assignment: Assignment, name: str, bits: int, context: Context) -> None:
    if bits > 8 and context.capabilities is not None and bits not in context.capabilities.activation_bits:
        bits = 8
    spec = assignment.activations[name]
    if spec.format.bits < bits:
        assignment.activations[name] = replace(spec, format=Int(bits, signed=spec.format.signed))


Pairs = list[tuple[NDArray, NDArray]]


def _captured(graph: Graph, sites: list[Site], options: Options, context: Context) -> list[list[Pairs]]:
    """For every site and use: what the product reads, float32, sample by sample, `rows` rows of each matrix.

    Left and right operand of a product of two activations; rows [R, K] and the weight [K, N] of a product with
    weights; a Conv gives rows of its input and no weight (an empty one).
    """
    if not sites:
        return []
    if context.samples is None:
        raise CalibrationError("the search of logarithms needs calibration data.", hint="Pass --calib DATA.")
    names = [[_read(node) for node, _ in site.uses] for site in sites]
    wanted = list(dict.fromkeys(str(v.name) for site in names for values in site for v in values))
    inputs = {str(value.name) for value in graph.inputs}
    computed = [name for name in wanted if name not in inputs]
    session = Session(with_outputs(graph, computed))
    found: list[list[Pairs]] = [[[] for _ in site.uses] for site in sites]
    for done, sample in enumerate(context.samples):
        if done == options.samples:
            break
        arrays = {**sample, **dict(zip(computed, session.run(sample, computed), strict=True))}
        for s, site in enumerate(sites):
            for u, (node, _) in enumerate(site.uses):
                read = [arrays[str(v.name)] for v in names[s][u]]
                found[s][u].append(_pair(graph, node, read, options.rows))
    return found


def _read(node: ir.Node) -> list[ir.Value]:
    both = [value for value in node.inputs[:2] if value is not None]
    return both if len(both) == 2 and both[1].const_value is None else both[:1]


def _pair(graph: Graph, node: ir.Node, read: list[NDArray], rows: int) -> tuple[NDArray, NDArray]:
    if len(read) == 2:
        return _rows(read[0], rows), read[1]
    x = read[0]
    if node.op_type not in ("MatMul", "Gemm"):
        return _rows(x.reshape(-1, x.shape[-1]), rows), np.zeros((0, 0), np.float32)
    weight = graph.const(node.inputs[1])
    assert weight is not None
    if attribute(node, "transB", 0):
        weight = weight.T
    return _rows(x.reshape(-1, x.shape[-1]), max(1, rows // 4)), weight


def _rows(x: NDArray, count: int) -> NDArray:
    """At most `count` rows of [..., M, K], evenly spaced."""
    rows = x.shape[-2]
    kept = np.unique(np.linspace(0, rows - 1, min(rows, count)).astype(np.int64))
    return np.ascontiguousarray(x[..., kept, :])


def _search(graph: Graph, site: Site, formats: list[Log], uses: list[Pairs]) -> QuantParams:
    errors = []
    for (_, index), pairs in zip(site.uses, uses, strict=True):
        left, right = np.stack([a for a, _ in pairs]), pairs[0][1]
        if not right.size:
            errors.append(search.tensor_error([left]))
            continue
        if index == 1 or site.maker.op_type in PROBABILITIES:
            right = np.stack([b for _, b in pairs])  # [samples, ..., K, N]
        errors.append(search.product_error([(left, right)], right=index == 1))

    def error(params: QuantParams) -> float:
        return sum(one(params) for one in errors)

    index = site.uses[0][1]
    seen = np.concatenate([pair[index].reshape(-1) for pair in uses[0]])
    if site.maker.op_type in PROBABILITIES:
        levels = dict.fromkeys([1.0, *(float(level) for level in np.quantile(seen, QUANTILES) if level > 0)])
        return search.search_probabilities(formats, list(levels), error)
    shift = -least_value(site.maker)
    positive = seen[seen > 0]
    low, high = np.quantile(positive, (0.9, 1.0)) if positive.size else (1.0, 1.0)
    return search.search_activation(formats, float(low) + shift, float(high) + shift, shift, error)
