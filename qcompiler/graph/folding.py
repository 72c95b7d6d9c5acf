"""Factors and terms that move from a value into the products that read it, so that the network's function stays.

A site is a value x whose channels somebody can scale: a LayerNormalization or RMSNormalization with constant scale, or
a product with weights (MatMul with its bias Add, Gemm, Conv, ConvTranspose); and all products with weights that its
channels reach (graph/trace.py). With a factor t_c > 0 and a term u_c for each channel,

    x~ = (x + u) / t        scale~ = scale / t, bias~ = (bias + u) / t    (a product: its rows and bias likewise)
    W~[c] = t_c W[c]        b~ = b - W u                                  for every product that reads x

A channel that anything else reads keeps t = 1, u = 0 ("blocked"). Terms need a site that has a bias (not
RMSNormalization), readers behind data movement only, and no zero padding. Missing biases are created; then a MatMul's
output name passes on to the Add behind it. Constants are computed in float64 and rounded once, so outputs are equal up
to float32 rounding.

Source: linearity; the use is that of RepQ-ViT (Li et al. 2023) and SmoothQuant (Xiao et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.assignment import bias_add
from qcompiler.graph.channels import as_inputs, as_outputs, is_layer, scale_inputs, scale_outputs
from qcompiler.graph.given import GIVEN_KEY
from qcompiler.graph.islands import is_island
from qcompiler.graph.model import DOMAIN, Graph, attribute
from qcompiler.graph.trace import OTHER, Sink, trace

NORMS = ("LayerNormalization", "RMSNormalization")
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Site:
    """A value with channels that can be scaled, and all its readers.

    node: what makes it (for a MatMul with a bias: the MatMul); value: x; axis: of channels; free: bool [C]; reason: why
    the first blocked channel is; names: of all values between, x included.
    """

    node: ir.Node
    value: ir.Value
    axis: int
    sinks: list[Sink]
    free: NDArray[np.bool_]
    reason: str
    names: frozenset[str]

    @property
    def is_norm(self) -> bool:
        """Whether a normalization makes it."""
        return self.node.op_type in NORMS

    @property
    def shifts(self) -> bool:
        """Whether a term can be folded, too."""
        return (
            self.node.op_type == "LayerNormalization"
            and bool(self.free.all())
            and all(sink.moved and not _pads(sink.node) for sink in self.sinks)
        )


def find_sites(graph: Graph, *, products: bool = False) -> tuple[list[Site], list[tuple[ir.Node, str]]]:
    """Sites in topological order, and normalizations that are none, with the reason.

    products: products with weights as well, where some of their channels are free.
    """
    nodes, sites, refused = graph.nodes(), [], []
    for node in nodes:
        if node.op_type in NORMS and node.domain in ("", DOMAIN):
            reason, value, axis = _norm_reason(graph, node), node.outputs[0], -1
        elif products and node.op_type in PRODUCTS and not node.domain and _is_source(graph, node):
            add = bias_add(graph, node)
            reason, value = "", (add or node).outputs[0]
            axis = 1 if "Conv" in node.op_type else -1
        else:
            continue
        if reason:
            refused.append((node, reason))
            continue
        site = _site(graph, node, value, axis, nodes)
        if site.sinks and site.free.any() and (not site.is_norm or site.free.all()):
            sites.append(site)
        elif site.is_norm:
            refused.append((node, site.reason or "no product with weights reads it"))
    return sites, refused


def _site(graph: Graph, node: ir.Node, value: ir.Value, axis: int, nodes: list[ir.Node]) -> Site:
    axis %= len(graph.shape(value))
    found = trace(graph, value, axis, nodes)
    free = np.zeros(graph.shape(value)[axis], bool)
    for sink in found.sinks:
        free[sink.labels[sink.labels != OTHER]] = True
    unread = "" if free.all() else "no product with weights reads all of its channels"
    free[list(found.blocked)] = False
    reason = found.blocked[min(found.blocked)] if found.blocked else unread
    sinks = [sink for sink in found.sinks if (sink.labels != OTHER).any()]
    return Site(node, value, axis, sinks, free, reason, frozenset(found.names))


def _norm_reason(graph: Graph, node: ir.Node) -> str:
    """Why the constants of a normalization cannot be changed channel by channel, or ''."""
    rank = len(graph.shape(node.outputs[0]))
    if is_island(node):
        return "it stays float"
    if attribute(node, "axis", -1) % rank != rank - 1:
        return "it normalizes several axes at once"
    scale = graph.const(node.inputs[1]) if len(node.inputs) > 1 else None
    if scale is None or scale.shape != (graph.shape(node.outputs[0])[-1],):
        return "its scale is not a constant of one number a channel"
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "its mean or deviation is read, too"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and (graph.const(bias) is None or graph.shape(bias) != scale.shape):
        return "its bias is not a constant of one number a channel"
    return ""


def _is_source(graph: Graph, node: ir.Node) -> bool:
    """Whether the output channels of a product can be scaled: plain constants, and not the codes of a given model."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    given = weight is None or GIVEN_KEY in weight.metadata_props
    return not given and not is_island(node) and is_layer(graph, node)


def _pads(node: ir.Node) -> bool:
    if node.op_type != "Conv":
        return False
    return any(attribute(node, "pads", [])) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")


# -- what a search looks at ----------------------------------------------------------------------------------------


def spread(labels: NDArray[np.int64], values: NDArray[np.float64], fill: float) -> NDArray[np.float64]:
    """values [C] of the site's channels for each input channel of a sink [K]; `fill` where it is of something else."""
    return np.where(labels == OTHER, fill, values[np.maximum(labels, 0)])


def gather_largest(site: Site, of_sink: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Largest number of each of the site's channels over all sinks; of_sink: [K] each, not negative. Returns [C]."""
    found = np.zeros(len(site.free))
    for sink, values in zip(site.sinks, of_sink, strict=True):
        own = sink.labels != OTHER
        np.maximum.at(found, sink.labels[own], values[own])
    return found


def row_maxima(graph: Graph, node: ir.Node) -> NDArray[np.float64]:
    """Largest |w| of each input channel of a product. Returns float64 [K]."""
    w = graph.const(node.inputs[1])
    assert w is not None
    return np.asarray(as_inputs(node, np.abs(w.astype(np.float64))).max(axis=1))


# -- folding -------------------------------------------------------------------------------------------------------


def fold(
    graph: Graph, site: Site, factor: NDArray[np.float64], term: NDArray[np.float64] | None = None
) -> list[tuple[str, str]]:
    """x~ = (x + term) / factor, in place; factor, term: float64 [C], used on free channels only.

    Returns names (before, after) of the sinks' weights: a weight that others read, too, gets a new one.
    A term where `site.shifts` is False is an error of the caller (ValueError).
    """
    t = np.where(site.free, factor, 1.0)
    if term is not None and not site.shifts:
        raise ValueError(f"no term can be folded into {site.node.name}")
    if site.is_norm:
        _fold_norm(graph, site.node, t, term)
    else:
        _fold_rows(graph, site.node, t)
    renamed = []
    for sink in site.sinks:
        node, weight = sink.node, sink.node.inputs[1]
        w = graph.const(weight)
        assert w is not None and weight is not None
        exact, before = w.astype(np.float64), str(weight.name)
        if term is not None:
            u = spread(sink.labels, term, 0.0)
            shift = -as_outputs(node, scale_inputs(node, exact, u)).sum(axis=1)
            add_to_bias(graph, node, shift)
        graph.set_input_const(node, 1, scale_inputs(node, exact, spread(sink.labels, t, 1.0)).astype(np.float32))
        renamed.append((before, str(node.inputs[1].name)))  # type: ignore[union-attr]
    return renamed


def _fold_norm(graph: Graph, node: ir.Node, t: NDArray, term: NDArray | None) -> None:
    scale = graph.const(node.inputs[1])
    assert scale is not None
    bias = graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
    graph.set_input_const(node, 1, (scale.astype(np.float64) / t).astype(np.float32))
    if bias is not None or term is not None:
        moved = (0.0 if bias is None else bias.astype(np.float64)) + (0.0 if term is None else term)
        graph.set_input_const(node, 2, (moved / t).astype(np.float32))


def _fold_rows(graph: Graph, node: ir.Node, t: NDArray) -> None:
    w = graph.const(node.inputs[1])
    assert w is not None
    graph.set_input_const(node, 1, scale_outputs(node, w.astype(np.float64), 1 / t).astype(np.float32))
    holder, index, bias = _bias(graph, node)
    if bias is not None:
        scaled = bias.astype(np.float64).reshape(-1) / t
        graph.set_input_const(holder, index, scaled.reshape(bias.shape).astype(np.float32))


def _bias(graph: Graph, node: ir.Node) -> tuple[ir.Node, int, NDArray | None]:
    """Node and index of the input that holds the bias of a product, and the bias."""
    add = bias_add(graph, node)
    if add is not None:
        index = 0 if add.inputs[1] is node.outputs[0] else 1
        return add, index, graph.const(add.inputs[index])
    return node, 2, graph.const(node.inputs[2]) if node.op_type != "MatMul" and len(node.inputs) > 2 else None


def add_to_bias(graph: Graph, node: ir.Node, shift: NDArray[np.float64]) -> None:
    """Add float64 [M] to the bias of a product, which is created where it is missing."""
    holder, index, bias = _bias(graph, node)
    if bias is not None:
        whole = np.broadcast_to(bias.astype(np.float64).reshape(-1), shift.shape) + shift
        shape = bias.shape if bias.size == shift.size else shift.shape
        graph.set_input_const(holder, index, whole.reshape(shape).astype(np.float32))
    elif node.op_type != "MatMul":
        graph.set_input_const(node, 2, shift.astype(np.float32), name=f"{node.name or node.outputs[0].name}_bias")
    else:
        product = node.outputs[0]
        name = str(product.name)
        bias_value = graph.add_const(f"{name}_bias", shift.astype(np.float32))
        add = graph.add_node("Add", [product, bias_value], after=node, name=f"{node.name or name}/bias", like=product)
        made = add.outputs[0]
        graph.replace_uses(product, made)
        add.replace_input_with(0, product)
        if made.name != name:
            product.name = graph.fresh_name(f"{name}_product")
            made.name = name
