"""State: outputs of one step that are inputs of the next, and caches of a fixed length.

A pair names an output and the input that takes it up at the next step. Two forms:

1. input and output have one shape (the state of a recurrent layer): the pair is only written down.
2. the output is Concat(input, new) along one axis, `new` with one entry there (a key or value cache as exporters write
   it, compiled for one past length P): the cache gets L = P + 1 slots, and the new entry goes into slot
   `position mod L` instead of behind the last (qcompiler::CacheWrite). Attention does not care for the order of slots,
   so a cache that is full goes on as a sliding window. A Softmax over the slots sees the first min(position + 1, L)
   (qcompiler::CacheSoftmax).

`position` counts the steps since the state was reset: an integer input of one element, found by name or added.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.graph.functions import define
from qcompiler.graph.model import DOMAIN, Graph, attribute

STATE_KEY = "qcompiler.state"
"""Metadata of a model: `output=input` pairs, separated by semicolons."""
POSITION_KEY = "qcompiler.position"
"""Metadata of a model: name of the input that counts steps, if it has one."""
_NAMES = ((r"^present", "past"), (r"^new_", ""), (r"_out$", "_in"), (r"_new$", ""), (r"^out_", "in_"))
_FOLLOWS = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Identity", "Mul", "Div", "Tile")


def state_pairs(graph: Graph) -> dict[str, str]:
    """Output name -> input name, as the metadata says."""
    text = graph.model.metadata_props.get(STATE_KEY, "")
    return dict(pair.split("=", 1) for pair in text.split(";") if pair)


def find_pairs(graph: Graph) -> dict[str, str]:
    """Pairs by naming: present_key_0 -> past_key_0, h_out -> h_in and the like."""
    inputs, found = {str(value.name) for value in graph.inputs}, {}
    for value in graph.outputs:
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, str(value.name))
            if name != value.name and name in inputs:
                found[str(value.name)] = name
                break
    return found


def bind_state(graph: Graph, pairs: Mapping[str, str] | str, position: str | None = None) -> Graph:
    """A copy with the pairs written down and its caches of fixed length. pairs: output -> input, or "auto".

    Raises RecipeError for names that the model does not have, UnsupportedError for pairs of another form.
    """
    graph = graph.clone()
    found = find_pairs(graph) if isinstance(pairs, str) else dict(pairs)
    if not found:
        raise RecipeError(
            "no output is named like an input of the next step.", where=graph.path, hint="Say --state OUTPUT=INPUT."
        )
    inputs, outputs = ({str(v.name): v for v in values} for values in (graph.inputs, graph.outputs))
    for output, name in found.items():
        for wanted, known, what in ((output, outputs, "output"), (name, inputs, "input")):
            if wanted not in known:
                raise RecipeError(
                    f"the model has no {what} `{wanted}`.", where="--state", hint=f"It has {', '.join(known)}."
                )
    caches = {o: i for o, i in found.items() if graph.shape(outputs[o]) != graph.shape(inputs[i])}
    if caches:
        counter = _position(graph, position)
        lengths = {_write(graph, outputs[o], inputs[i], counter) for o, i in caches.items()}
        _see(graph, [inputs[i] for i in caches.values()], lengths, counter)
        graph.model.metadata_props[POSITION_KEY] = str(counter.name)
    graph.model.metadata_props[STATE_KEY] = ";".join(f"{o}={i}" for o, i in found.items())
    return graph


def _position(graph: Graph, name: str | None) -> ir.Value:
    integers = [v for v in graph.inputs if v.dtype in (ir.DataType.INT64, ir.DataType.INT32)]
    single = [v for v in integers if all(d == 1 for d in graph.shape(v))]
    chosen = [v for v in single if (v.name == name if name else re.search("pos|past_len|step", str(v.name)))]
    if chosen:
        return chosen[0]
    if name:
        raise RecipeError(f"the model has no integer input `{name}` of one element.", where="--position")
    value = ir.Value(name="position", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    graph.ir.inputs.append(value)
    return value


def _write(graph: Graph, output: ir.Value, past: ir.Value, position: ir.Value) -> int:
    """Replace the Concat; returns the number of slots."""
    node = output.producer()
    shape, had = graph.shape(output), graph.shape(past)
    axis = attribute(node, "axis", 0) % len(shape) if node is not None else 0
    grows = (
        node is not None
        and node.op_type == "Concat"
        and len(node.inputs) == 2
        and node.inputs[0] is past
        and graph.sole_user(past) is node
        and shape[axis] == had[axis] + 1
    )
    if not grows:
        raise UnsupportedError(
            f"`{output.name}` has another shape than `{past.name}` and is not it with one more entry.",
            where=graph.path,
            hint="A cache is Concat(past, new) with one new entry a step.",
        )
    assert node is not None
    define(graph, "CacheWrite")
    past.shape = ir.Shape(shape)
    new = graph.add_node(
        "CacheWrite", [past, node.inputs[1], position], {"axis": axis - len(shape)}, before=node, name=node.name,
        domain=DOMAIN, like=output,
    )  # fmt: skip
    graph.bypass(node, new.outputs[0])
    return int(shape[axis])


def _see(graph: Graph, caches: Sequence[ir.Value], lengths: set[int], position: ir.Value) -> None:
    """Replace every Softmax over the slots of a cache."""
    reached: set[ir.Value] = set()
    for node in graph.nodes():
        cache = node.op_type == "CacheWrite" and node.inputs[0] in caches
        moved = node.op_type in _FOLLOWS and node.inputs and node.inputs[0] in reached
        if cache or moved or node.op_type in ("Add", "MatMul") and any(v in reached for v in node.inputs):
            reached.update(node.outputs)
        if node.op_type != "Softmax" or node.inputs[0] not in reached:
            continue
        shape = graph.shape(node.outputs[0])
        if attribute(node, "axis", -1) % len(shape) != len(shape) - 1 or shape[-1] not in lengths:
            raise UnsupportedError(
                f"Softmax `{node.name}` is not over the slots of a cache (its axis has {shape[-1]} entries).",
                where=graph.path,
            )
        define(graph, "CacheSoftmax")
        new = graph.add_node(
            "CacheSoftmax", [node.inputs[0], position], before=node, name=node.name, domain=DOMAIN, like=node.outputs[0]
        )
        graph.bypass(node, new.outputs[0])
