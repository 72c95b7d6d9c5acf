"""Instructions of every call on a Cortex-M4, estimated from what an emulator counted on real networks.

They are instructions, not cycles: loads from flash with wait states cost more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import onnx_ir as ir

from qcompiler.graph.model import Graph
from qcompiler.ops.macs import node_macs
from qcompiler.targets.c.footprint import RATES
from qcompiler.targets.shared.program import Program

UNPACKING = 0.65
"""Instructions a product more where weights are packed: 0.62 to 0.67 counted at 4 bits (kws, resnet8, resnet20)."""
OTHER = "other"
"""Kernels that were on no network counted."""


def features(graph: Graph, node: ir.Node) -> dict[str, int]:
    """What the time of a node follows from: outputs, runs of contiguous products (or inputs), taps, products, inputs of
    all pixels' windows (which are copied for all output channels once), pixels, rows of all channels, channels."""
    outputs = prod(graph.shape(node.outputs[0]))
    found = {"one": 1, "output": outputs, "run": 0, "tap": 0, "product": node_macs(graph, node), "window": 0}
    found |= {"pixel": 0, "line": 0, "plane": 0}
    if node.op_type in ("Conv", "MatMul") and node.inputs[1] is not None:
        kernel = graph.shape(node.inputs[1])[2:] if node.op_type == "Conv" else (1,)
        shape = graph.shape(node.outputs[0])
        channels = shape[1 if node.op_type == "Conv" else -1]
        lines = outputs // shape[-1] if node.op_type == "Conv" else 0
        extents = {"pixel": outputs // channels, "line": lines, "plane": channels}
        window = found["product"] // channels
        return found | extents | {"run": outputs * kernel[0], "tap": outputs * prod(kernel), "window": window}
    assert node.inputs[0] is not None
    return found | {"run": prod(graph.shape(node.inputs[0]))}


def kind_of(spec: Any) -> str:
    """Name of a kernel's kind."""
    return type(spec).__name__.lower()


def read_rates() -> Mapping[str, Mapping[str, float]]:
    """Kind -> feature -> instructions."""
    return json.loads(RATES.read_text())["instructions"]  # type: ignore[no-any-return]


def estimate(program: Program, rates: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One entry a node, in order: `node`, `instructions`, `macs`."""
    nodes = {str(node.name or node.op_type): node for node in program.graph.nodes()}
    found: dict[str, dict[str, Any]] = {}
    for call in program.calls:
        node = nodes[call.node]
        counts = features(program.graph, node)
        kind = kind_of(call.spec)
        weights = rates.get(kind, rates.get(OTHER, {}))
        spent = call.share * sum(count * weights.get(name, 0.0) for name, count in counts.items())
        if getattr(call.spec, "bits", 8) < 8:
            spent += call.share * UNPACKING * counts["product"]
        entry = found.setdefault(call.node, {"node": call.node, "instructions": 0, "macs": counts["product"]})
        entry["instructions"] += round(spent)
    return list(found.values())
