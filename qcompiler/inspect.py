"""What a model contains and how each node would be quantized, without calibration data."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from math import prod
from typing import Any

import onnx_ir as ir

from qcompiler.assignment import Assignment
from qcompiler.context import Context
from qcompiler.errors import UnsupportedError
from qcompiler.formats import parse_format
from qcompiler.graph.islands import describe_islands
from qcompiler.graph.model import Graph, attributes
from qcompiler.minifloat import OCP, tokens
from qcompiler.ops.macs import float_macs
from qcompiler.recipe import DECIDE, load_recipe, pass_module
from qcompiler.target import Capabilities

ALGORITHMS = frozenset({
    "Softmax", "LogSoftmax", "CacheSoftmax", "LayerNormalization", "RMSNormalization", "GroupNormalization",
    "InstanceNormalization", "LpNormalization", "ReduceL2",
})  # fmt: skip
"""Operators with an integer algorithm of our own definition, whose docstring states its error."""
NOT_INTEGER = ("float island", "unsupported")
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that need no memory of their own."""


def inspect_graph(graph: Graph, precision: str | None = None, nonlinear: str = "integer") -> dict[str, Any]:
    """JSON-able: nodes (name, operator, becomes, format, weights, macs, reason), islands, totals, inputs, outputs.

    `becomes` is one of integer, table, algorithm (an integer algorithm of ours), movement, float island, unsupported.
    Counts are of
    the graph after the float passes of the default recipe (BatchNorm folded, activations recognized); `format` and
    `weights` are those that the recipe chooses at `precision`, and `activation_peak_bytes` is the most that values
    alive at one node take at these widths, in the order of the graph.
    """
    recipe = load_recipe("default").override({"precision": precision})
    context = Context(capabilities=_ANY)
    work = graph.clone()
    for name in recipe.passes:
        module = pass_module(name)
        if name == "check_support" or module.STAGE[0].value != "float":
            break
        work = module.run(work, recipe.options_of(name), context)
    pass_module("check_support").mark_islands(work, nonlinear)
    with suppress(UnsupportedError):  # the nodes below say what is not supported
        work = pass_module(DECIDE).run(work, recipe.options_of(DECIDE), context)
    assignment = context.assignment or Assignment()
    rows = [_row(work, node, assignment) for node in work.nodes()]
    floats = [v for v in work.ir.initializers.values() if v.dtype == ir.DataType.FLOAT and v.shape is not None]
    return {
        "inputs": [{"name": v.name, "shape": list(work.shape(v))} for v in work.inputs],
        "outputs": [{"name": v.name, "shape": list(work.shape(v))} for v in work.outputs],
        "opset": graph.opset,
        "macs": sum(row["macs"] for row in rows),
        "parameters": sum(prod(work.shape(v)) for v in floats),
        "weight_bytes": sum(_weight_bits(work, v, assignment) for v in floats) // 8,
        "activation_peak_bytes": peak_bytes(work, assignment),
        "integer_nodes": sum(row["becomes"] not in NOT_INTEGER for row in rows),
        "integer_macs": sum(row["macs"] for row in rows if row["becomes"] not in NOT_INTEGER),
        "kinds": dict(sorted(Counter(row["becomes"] for row in rows).items())),
        "notes": [{"where": where, "text": text} for where, text in graph.notes],
        "islands": describe_islands(work),
        "nodes": rows,
    }


_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
_SIGNED = (*tokens(5), *OCP)
_ANY = Capabilities(
    weight_bits=_BITS,
    activation_bits=_BITS,
    weight_minifloats=_SIGNED,
    activation_minifloats=(*_SIGNED, *tokens(5, signed=False)),
    arithmetic=("float", "fixed"),
    float_boundary=True,
)


def peak_bytes(graph: Graph, assignment: Assignment) -> int:
    """Most bytes of values alive at one node, at the widths of the assignment (8 bits where it has none)."""
    owner: dict[ir.Value, ir.Value] = {}
    size: dict[ir.Value, int] = {}
    last: dict[ir.Value, int] = {}
    nodes = graph.nodes()

    def bytes_of(value: ir.Value) -> int:
        spec = assignment.activations.get(value.name or "")
        if value.dtype != ir.DataType.FLOAT:
            width = value.dtype.itemsize if value.dtype is not None else 1
        else:
            width = spec.format.storage.itemsize if spec is not None else 1
        return int(prod(graph.shape(value)) * width)

    for value in graph.inputs:
        size[value] = bytes_of(value)
    for i, node in enumerate(nodes):
        for read in node.inputs:
            if read is not None and not read.is_initializer():
                last[owner.get(read, read)] = i
        for value in node.outputs:
            source = node.inputs[0] if node.op_type in VIEWS and not node.domain else None
            if source is not None and not source.is_initializer():
                owner[value] = owner.get(source, source)
            else:
                size[value] = bytes_of(value)
                last.setdefault(value, i)
    for value in graph.outputs:
        last[owner.get(value, value)] = len(nodes)
    born = {value: i for i, node in enumerate(nodes) for value in node.outputs}
    change = [0] * (len(nodes) + 2)
    for value, count in size.items():
        change[born.get(value, 0)] += count
        change[last.get(value, 0) + 1] -= count
    peak = alive = 0
    for step in change:
        alive += step
        peak = max(peak, alive)
    return peak


def _weight_bits(graph: Graph, value: ir.Value, assignment: Assignment) -> int:
    spec = assignment.constants.get(value.name or "")
    return prod(graph.shape(value)) * (spec.format.bits if spec is not None else 32)


def _row(graph: Graph, node: ir.Node, assignment: Assignment) -> dict[str, Any]:
    from qcompiler.graph.qdq import is_quantizer
    from qcompiler.passes.check_support import classify

    becomes: str
    becomes, reason = classify(graph, node)
    if becomes == "integer" and node.op_type in ALGORITHMS:
        becomes = "algorithm"
    spec = assignment.activations.get(node.outputs[0].name or "")
    token = (
        spec.format.token if spec is not None else str(attributes(node).get("format", "")) if is_quantizer(node) else ""
    )
    weights = [assignment.constants.get(v.name or "") for v in node.inputs if v is not None]
    return {
        "name": node.name or node.outputs[0].name,
        "operator": node.op_type,
        "becomes": becomes,
        "format": parse_format(token).token if token else "",
        "weights": next((w.format.token for w in weights if w is not None), ""),
        "macs": float_macs(graph, node),
        "reason": reason,
    }
