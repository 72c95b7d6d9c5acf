"""Graphs for targets that speak codes: the float boundary taken off."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from qcompiler.errors import UnsupportedError
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import FORMAT_KEY

CODES_KEYS = (FORMAT_KEY, "qcompiler.scale", "qcompiler.zero_point")
"""What says which numbers codes are."""


def is_index(value: ir.Value) -> bool:
    """Whether an input holds indices: plain integers without scale and zero point."""
    return FORMAT_KEY not in value.metadata_props


def strip_boundary(graph: Graph, names: Collection[str] | None = None) -> Graph:
    """A copy whose inputs and outputs are codes: QuantizeLinear and DequantizeLinear at the boundary are gone.

    Inputs and outputs keep their names; format, scale and zero point are in their metadata. names: of the inputs and
    outputs that this is done for, by default all.
    """
    graph = graph.clone()
    for node in graph.nodes("QuantizeLinear"):
        value, codes = node.inputs[0], node.outputs[0]
        assert value is not None
        if names is not None and value.name not in names:
            continue
        codes_type, meta = codes.type, dict(codes.metadata_props)
        codes.replace_all_uses_with(value, replace_graph_outputs=True)
        graph.ir.remove(node, safe=True)
        value.type = codes_type
        value.metadata_props.update(meta)
    for node in graph.nodes("DequantizeLinear"):
        source, name = node.inputs[0], node.outputs[0].name
        assert source is not None
        if names is not None and name not in names:
            continue
        for i, output in enumerate(graph.ir.outputs):
            if output is node.outputs[0]:
                graph.ir.outputs[i] = _own_output(graph, node, source)
        graph.ir.remove(node, safe=True)
        graph.ir.outputs[[o.name for o in graph.ir.outputs].index(f"{name}/codes")].name = name
    graph.sweep()
    return graph


def check_states(graph: Graph, pairs: Mapping[str, str]) -> None:
    """Raise UnsupportedError where the codes of one step are not those of the next. graph: codes at its boundary."""
    inputs, outputs = ({str(v.name): v for v in values} for values in (graph.inputs, graph.outputs))
    for output, name in pairs.items():
        of_both = (outputs[output].metadata_props, inputs[name].metadata_props)
        made, taken = ([meta.get(key) for key in CODES_KEYS] for meta in of_both)
        if made != taken:
            raise UnsupportedError(
                f"the state `{output}` has codes {made}, and `{name}`, which it becomes, {taken}.",
                where=graph.path,
                hint="Leave out the model's own quantizers of one of them, or compile without --state.",
            )


def _own_output(graph: Graph, node: ir.Node, codes: ir.Value) -> ir.Value:
    """An Identity in front of the output: it has its own place, whoever else reads the codes."""
    copy = graph.add_node("Identity", [codes], after=node, name=f"output/{node.outputs[0].name}", like=codes)
    copy.outputs[0].name = f"{node.outputs[0].name}/codes"
    copy.outputs[0].metadata_props.update(codes.metadata_props)
    return copy.outputs[0]
