"""What a model contains and how each node would be quantized, without calibration data."""

from __future__ import annotations

from math import prod
from typing import Any

import onnx_ir as ir

from qcompiler.context import Context
from qcompiler.graph.model import Graph
from qcompiler.recipe import load_recipe, pass_module


def inspect_graph(graph: Graph) -> dict[str, Any]:
    """JSON-able: nodes (name, operator, becomes, macs, reason), macs, parameters, inputs, outputs.

    `becomes` is one of integer, table, movement, unsupported. Counts are of the graph after the float passes of the
    default recipe (BatchNorm folded, activations recognized).
    """
    work = graph.clone()
    for name in load_recipe("default").passes:
        module = pass_module(name)
        if name == "check_support" or module.STAGE[0].value != "float":
            break
        work = module.run(work, module.Options(), Context())
    rows = [_row(work, node) for node in work.nodes()]
    return {
        "inputs": [{"name": v.name, "shape": list(work.shape(v))} for v in work.inputs],
        "outputs": [{"name": v.name, "shape": list(work.shape(v))} for v in work.outputs],
        "opset": graph.opset,
        "macs": sum(row["macs"] for row in rows),
        "parameters": sum(
            prod(v.shape) for v in work.ir.initializers.values() if v.dtype == ir.DataType.FLOAT and v.shape
        ),  # type: ignore[arg-type]
        "integer_nodes": sum(row["becomes"] != "unsupported" for row in rows),
        "nodes": rows,
    }


def _row(graph: Graph, node: ir.Node) -> dict[str, Any]:
    from qcompiler.passes.check_support import classify

    becomes, reason = classify(graph, node)
    return {
        "name": node.name or node.outputs[0].name,
        "operator": node.op_type,
        "becomes": becomes,
        "macs": _macs(graph, node),
        "reason": reason,
    }


def _macs(graph: Graph, node: ir.Node) -> int:
    from qcompiler.graph.model import attributes
    from qcompiler.ops import OPERATORS

    names = {"Gemm": "MatMul", "MatMul": "MatMul", "Conv": "Conv", "ConvTranspose": "ConvTranspose"}
    batch = node.op_type == "MatMul" and graph.const(node.inputs[1]) is None
    if node.op_type not in names or not batch and graph.const(node.inputs[1]) is None:
        return 0
    shapes = [graph.shape(value) for value in node.inputs[:2] if value is not None]
    operator = OPERATORS[f"qcompiler::{'BatchMatMul' if batch else names[node.op_type]}"]
    return operator.macs(shapes, [graph.shape(node.outputs[0])], attributes(node))
