"""Attention and RotaryEmbedding of operator set 23 as products, Softmax and movement."""

from __future__ import annotations

from math import sqrt

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.model import Graph, attribute, operand
from qcompiler.passes.spell_out.build import Build

FAR = -1e9
"""What hides a score."""


def _at(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _heads(build: Build, x: ir.Value, count: int) -> ir.Value:
    """[B, S, H D] as [B, H, S, D]; four dimensions stay."""
    shape = build.shape(x)
    if len(shape) == 4:
        return x
    apart = build.reshape(x, [shape[0], shape[1], count, shape[2] // count])
    return build.transpose(apart, [0, 2, 1, 3])


def _repeated(build: Build, x: ir.Value, times: int) -> ir.Value:
    """Every head of [B, H, T, D] for `times` heads of the queries."""
    if times == 1:
        return x
    b, h, t, d = build.shape(x)
    return build.reshape(build.expand(build.reshape(x, [b, h, 1, t, d]), [b, h, times, t, d]), [b, h * times, t, d])


def _visible(s: int, t: int, causal: bool, before: int = 0) -> NDArray[np.bool_]:
    """Which of t keys each of s queries may see."""
    return np.tril(np.ones((s, t), bool), before) if causal else np.ones((s, t), bool)


def _attention(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """None for a softcap beside a mask (the order changed between operator sets), a kept product of the scores, lengths
    of keys that are inputs, and constant masks that hide a whole row (ONNX has 0 there, Softmax has not)."""
    q, k, v, mask = *(operand(node, i) for i in range(3)), _at(node, 3)
    causal, softcap = bool(attribute(node, "is_causal", 0)), attribute(node, "softcap", 0.0)
    kept = [value for value in node.outputs[3:] if value.uses() or value.is_graph_output()]
    if kept or _at(node, 6) is not None or softcap and (mask is not None or causal):
        return None
    rank = len(graph.shape(q))
    past = [_at(node, 4), _at(node, 5)]
    before = 0 if past[0] is None else graph.shape(past[0])[2]
    if mask is not None and mask.dtype == ir.DataType.BOOL and graph.const(mask) is not None:
        sizes = graph.shape(q)[-2], graph.shape(k)[-2] + before
        if not (np.asarray(graph.const(mask)) & _visible(*sizes, causal, before)).any(axis=-1).all():
            return None
    q, k, v = (
        _heads(build, x, attribute(node, name))
        for x, name in ((q, "q_num_heads"), (k, "kv_num_heads"), (v, "kv_num_heads"))
    )
    k, v = (x if p is None else build.concat([p, x], 2) for x, p in zip((k, v), past, strict=True))
    for value, present in zip(node.outputs[1:3], (k, v), strict=False):
        if value.uses() or value.is_graph_output():
            graph.replace_uses(value, present)
    b, h, s, d = build.shape(q)
    k, v = (_repeated(build, x, h // build.shape(x)[1]) for x in (k, v))
    t, width = build.shape(k)[2], build.shape(v)[3]
    scores = build.op("MatMul", [q, build.transpose(k, [0, 1, 3, 2])], [b, h, s, t])
    factor = attribute(node, "scale") or 1 / sqrt(d)
    scores = build.op("Mul", [scores, build.const(np.float32(factor), "scale")], [b, h, s, t])
    if softcap:
        cap = [build.const(np.float32(c), "cap") for c in (1 / softcap, softcap)]
        inner = build.op("Tanh", [build.op("Mul", [scores, cap[0]], [b, h, s, t])], [b, h, s, t])
        scores = build.op("Mul", [inner, cap[1]], [b, h, s, t])
    shown = _visible(s, t, causal, before) if causal else None
    if mask is not None and mask.dtype == ir.DataType.BOOL and graph.const(mask) is not None:
        given = np.asarray(graph.const(mask))
        shown, mask = given if shown is None else shown & given, None
    if mask is not None:
        if mask.dtype == ir.DataType.BOOL:
            sides = [build.const(np.float32(0)), build.const(np.float32(FAR))]
            mask = build.op("Where", [mask, *sides], build.shape(mask))
        scores = build.op("Add", [scores, mask], [b, h, s, t])
    if shown is not None:
        hidden = build.const(np.where(shown, np.float32(0), np.float32(FAR)), "mask")
        scores = build.op("Add", [scores, hidden], [b, h, s, t])
    shares = build.op("Softmax", [scores], [b, h, s, t], axis=-1)
    y = build.op("MatMul", [shares, v], [b, h, s, width])
    return y if rank == 4 else build.reshape(build.transpose(y, [0, 2, 1, 3]), [b, s, h * width])


def _rotary(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """x turned by the angles of its position: pairs (a, b) become (a cos - b sin, a sin + b cos)."""
    x, tables, places = operand(node), [graph.const(node.inputs[i]) for i in (1, 2)], _at(node, 3)
    if any(table is None for table in tables):
        return None
    heads, rank = attribute(node, "num_heads", 0), len(graph.shape(x))
    x = x if rank == 4 else _heads(build, x, heads)
    b, h, s, d = build.shape(x)
    turned = attribute(node, "rotary_embedding_dim", 0) or d
    half, known = turned // 2, graph.const(places)
    angles = []
    for table in tables:
        assert table is not None
        if places is None or known is not None:
            rows = table if known is None else table[known]
            angles.append(build.const(rows.reshape(-1, 1, s, half) if rows.ndim == 3 else rows, "angles"))
        else:
            picked = build.op("Gather", [build.const(table, "table"), places], [*build.shape(places), half], axis=0)
            angles.append(build.reshape(picked, [b, 1, s, half]))
    part = build.slice(x, 3, 0, turned)
    if attribute(node, "interleaved", 0):
        sides = [build.slice(part, 3, i, turned, 2) for i in (0, 1)]
    else:
        sides = [build.slice(part, 3, i * half, (i + 1) * half) for i in (0, 1)]
    cos, sin = angles
    products = [[build.binary("Mul", side, angle) for angle in (cos, sin)] for side in sides]
    first = build.binary("Sub", products[0][0], products[1][1])
    second = build.binary("Add", products[0][1], products[1][0])
    if attribute(node, "interleaved", 0):
        pairs = build.concat([build.reshape(v, [b, h, s, half, 1]) for v in (first, second)], 4)
        found = build.reshape(pairs, [b, h, s, turned])
    else:
        found = build.concat([first, second], 3)
    if turned < d:
        found = build.concat([found, build.slice(x, 3, turned, d)], 3)
    return found if rank == 4 else build.reshape(build.transpose(found, [0, 2, 1, 3]), [b, s, h * d])


RULES = {"Attention": _attention, "RotaryEmbedding": _rotary}
