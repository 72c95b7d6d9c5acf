"""Einsum of one or two operands as Transpose, ReduceSum, Mul and MatMul."""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from qcompiler.graph.model import Graph, attribute, operand
from qcompiler.passes.spell_out.build import Build


def write(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """None for three operands, repeated letters (diagonals) and ellipses of different ranks."""
    terms, out = _parsed(graph, node)
    if not terms or len(terms) > 2 or any(len(set(t)) < len(t) for t in (*terms, out)):
        return None
    values = [operand(node, i) for i in range(len(terms))]
    sizes = {c: e for t, v in zip(terms, values, strict=True) for c, e in zip(t, graph.shape(v), strict=True)}
    if any(graph.shape(v) != tuple(sizes[c] for c in t) for t, v in zip(terms, values, strict=True)):
        return None  # an extent of 1 that is broadcast
    for i, term in enumerate(terms):  # letters that only one operand has are summed first
        others = {c for k, t in enumerate(terms) if k != i for c in t}
        alone = [c for c in term if c not in out and c not in others]
        if alone:
            values[i] = build.reduce("ReduceSum", values[i], [term.index(c) for c in alone], keepdims=False)
            terms[i] = "".join(c for c in term if c not in alone)
    if len(terms) == 1:
        return build.transpose(values[0], [terms[0].index(c) for c in out])
    a, b = terms
    batch = [c for c in out if c in a and c in b]
    summed = [c for c in a if c in b and c not in out]
    rows, columns = [c for c in out if c in a and c not in b], [c for c in out if c in b and c not in a]
    left = build.transpose(values[0], [a.index(c) for c in (*batch, *rows, *summed)])
    right = build.transpose(values[1], [b.index(c) for c in (*batch, *summed, *columns)])
    extents = [prod(sizes[c] for c in group) for group in (rows, summed, columns)]
    outer = [sizes[c] for c in batch]
    left = build.reshape(left, [*outer, extents[0], extents[1]])
    right = build.reshape(right, [*outer, extents[1], extents[2]])
    product = build.op("MatMul" if summed else "Mul", [left, right], [*outer, extents[0], extents[2]])
    found = [*batch, *rows, *columns]
    return build.transpose(build.reshape(product, [sizes[c] for c in found]), [found.index(c) for c in out])


def _parsed(graph: Graph, node: ir.Node) -> tuple[list[str], str]:
    """Terms of the operands and of the output, an ellipsis as letters of its own; no terms where that fails."""
    text = attribute(node, "equation").replace(" ", "")
    given, arrow, out = text.partition("->")
    terms = given.split(",")
    if len(terms) != len(node.inputs):
        return [], ""
    ranks = {len(graph.shape(v)) - len(t) + 3 for t, v in zip(terms, node.inputs, strict=True) if "..." in t}
    if len(ranks) > 1:
        return [], ""
    dots = "ΑΒΓΔΕΖΗΘ"[: ranks.pop() if ranks else 0]
    if not arrow:
        letters = sorted(set("".join(terms).replace(".", "")))
        out = ("..." if dots else "") + "".join(c for c in letters if "".join(terms).count(c) == 1)
    return [t.replace("...", dots) for t in terms], out.replace("...", dots)
