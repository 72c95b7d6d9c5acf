"""Unroll Loop with a constant trip count and Scan: their bodies, once for each iteration, in the place of the node.

A Loop is unrolled if its trip count and first condition are constant and its body hands a constant true or its own
condition on; conditions that depend on data leave it as it is. Scan has its trip count in the shapes of what it scans.
If with a constant condition is folded with the constants, before and after.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.model import Graph, attribute

MAX_ITERATIONS = 4096


def unroll(graph: Graph) -> bool:
    """Unroll every Loop and Scan of the graph that can be, in place; whether there was one."""
    found = False
    for node in graph.nodes("Loop", "Scan"):
        found |= _loop(graph, node) if node.op_type == "Loop" else _scan(graph, node)
    return found


def reason_kept(graph: Graph, node: ir.Node) -> str:
    """Why an If, Loop or Scan is still there."""
    if node.op_type == "If":
        return "has a condition that depends on data"
    if node.op_type == "Scan":
        return f"scans more than {MAX_ITERATIONS} steps, or shapes that are not known"
    return f"has a trip count or condition that depends on data, or more than {MAX_ITERATIONS} iterations"


def _scalar(graph: Graph, value: ir.Value | None) -> int | None:
    array = graph.const(value)
    return int(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


class _Inliner:
    """Copies of a body, one after the other before `node`."""

    def __init__(self, graph: Graph, node: ir.Node, body: ir.Graph) -> None:
        self.graph, self.node, self.body = graph, node, body
        self.prefix = graph.fresh_name(node.name or node.op_type.lower())

    def copy(self, turn: int, inputs: list[ir.Value]) -> list[ir.Value]:
        """One iteration; returns the values of the body's outputs."""
        clone = self.body.clone(allow_outer_scope_values=True)
        given = dict(zip(clone.inputs, inputs, strict=True))
        outputs = [given.get(value, value) for value in clone.outputs]
        constants = list(clone.initializers.values())
        clone.initializers.clear()
        for value in constants:
            value.name = f"{self.prefix}/{turn}/{value.name}"
            self.graph.ir.register_initializer(value)
        for value, actual in given.items():
            value.replace_all_uses_with(actual, replace_graph_outputs=True)
        clone.outputs.clear()
        nodes = list(clone)
        clone.remove(nodes)
        for node in nodes:
            node.name = f"{self.prefix}/{turn}/{node.name or node.op_type}"
            for value in node.outputs:
                if value.name:
                    value.name = f"{self.prefix}/{turn}/{value.name}"
        self.graph.ir.insert_before(self.node, nodes)
        return outputs

    def const(self, array: NDArray, what: str) -> ir.Value:
        return self.graph.add_const(f"{self.prefix}/{what}", array)

    def op(self, op_type: str, inputs: list[ir.Value], what: str, **values: object) -> ir.Value:
        name = f"{self.prefix}/{what}"
        node = self.graph.add_node(op_type, inputs, values, before=self.node, name=name, outputs=[name])
        node.outputs[0].type = inputs[0].type
        return node.outputs[0]

    def stack(self, parts: list[ir.Value], axis: int, what: str) -> ir.Value:
        """Values of all iterations along a new axis."""
        axes = self.const(np.array([axis], np.int64), f"{what}_axis")
        rows = [self.op("Unsqueeze", [part, axes], f"{what}_{i}") for i, part in enumerate(parts)]
        return self.op("Concat", rows, what, axis=axis)

    def finish(self, results: list[ir.Value]) -> None:
        for old, new in zip(self.node.outputs, results, strict=False):
            self.graph.replace_uses(old, new)
        self.graph.remove(self.node)


def _loop(graph: Graph, node: ir.Node) -> bool:
    body: ir.Graph = node.attributes["body"].as_graph()
    turns, first = _scalar(graph, node.inputs[0]), node.inputs[1]
    if turns is None or not 0 <= turns <= MAX_ITERATIONS or (first is not None and _scalar(graph, first) is None):
        return False
    if first is not None and not _scalar(graph, first):
        turns = 0
    if turns and not _goes_on(body):
        return False
    carried = len(node.inputs) - 2
    if turns == 0 and len(node.outputs) > carried:
        return False  # an empty stack has no use in a network
    inliner = _Inliner(graph, node, body)
    states: list[ir.Value] = list(node.inputs[2:])  # type: ignore[arg-type]
    stacks: list[list[ir.Value]] = [[] for _ in body.outputs[1 + carried :]]
    true = inliner.const(np.array(True), "true")
    for turn in range(turns):
        outputs = inliner.copy(turn, [inliner.const(np.array(turn, np.int64), f"{turn}"), true, *states])
        states = outputs[1 : 1 + carried]
        for stack, value in zip(stacks, outputs[1 + carried :], strict=True):
            stack.append(value)
    results = [*states, *(inliner.stack(s, 0, f"stack{i}") for i, s in enumerate(stacks))]
    inliner.finish(results)
    return True


def _goes_on(body: ir.Graph) -> bool:
    """Whether the body's condition output is true whenever its condition input is."""
    value: ir.Value | None = body.outputs[0]
    while value is not None and (maker := value.producer()) is not None and maker.op_type == "Identity":
        value = maker.inputs[0]
    if value is None:
        return False
    if value is body.inputs[1]:
        return True
    maker = value.producer()
    if maker is not None and maker.op_type == "Constant":
        return bool(np.all(maker.attributes["value"].as_tensor().numpy())) if "value" in maker.attributes else False
    return value.const_value is not None and bool(np.all(value.const_value.numpy()))


def _scan(graph: Graph, node: ir.Node) -> bool:
    body: ir.Graph = node.attributes["body"].as_graph()
    scanned = int(attribute(node, "num_scan_inputs"))
    carried = len(node.inputs) - scanned
    inputs: list[ir.Value] = list(node.inputs)  # type: ignore[arg-type]
    ranks = [None if value.shape is None else len(value.shape) for value in inputs[carried:]]
    if any(rank is None for rank in ranks):
        return False
    axes = [a % r for a, r in zip(attribute(node, "scan_input_axes", [0] * scanned), ranks, strict=True)]  # type: ignore[operator]
    sizes = {value.shape[a] for value, a in zip(inputs[carried:], axes, strict=True)}  # type: ignore[index]
    turns = sizes.pop() if len(sizes) == 1 else None
    if not isinstance(turns, int) or not 1 <= turns <= MAX_ITERATIONS:
        return False
    inliner = _Inliner(graph, node, body)
    backwards = attribute(node, "scan_input_directions", [0] * scanned)
    stacks: list[list[ir.Value]] = [[] for _ in body.outputs[carried:]]
    states = inputs[:carried]
    for turn in range(turns):
        slices = []
        for i, (value, axis) in enumerate(zip(inputs[carried:], axes, strict=True)):
            at = inliner.const(np.array(turns - 1 - turn if backwards[i] else turn, np.int64), f"{turn}_at{i}")
            slices.append(inliner.op("Gather", [value, at], f"{turn}_scan{i}", axis=axis))
        outputs = inliner.copy(turn, [*states, *slices])
        states = outputs[:carried]
        for stack, value in zip(stacks, outputs[carried:], strict=True):
            stack.append(value)
    output_axes = attribute(node, "scan_output_axes", [0] * len(stacks))
    reverse = attribute(node, "scan_output_directions", [0] * len(stacks))
    results = list(states)
    for i, stack in enumerate(stacks):
        rank = len(body.outputs[carried + i].shape or ()) + 1
        axis = output_axes[i] if output_axes[i] >= 0 else output_axes[i] + rank
        results.append(inliner.stack(stack[::-1] if reverse[i] else stack, axis, f"stack{i}"))
    inliner.finish(results)
    return True
