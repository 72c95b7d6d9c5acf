"""Turn float16, bfloat16 and float64 models into float32 ones.

float16 and bfloat16 values are float32 values, so weights stay exactly as they are; activations are no longer rounded
to the narrow type. float64 weights are rounded to float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
TYPES = ("to", "dtype", "output_dtype")
"""Attributes that name an element type."""


def widen(model: ir.Model) -> list[tuple[str, str]]:
    """Change a model in place; returns remarks: which type it had, and inputs and outputs that changed."""
    seen: set[str] = set()
    changed = [value for value in (*model.graph.inputs, *model.graph.outputs) if value.dtype in NARROW]
    notes = [(str(value.name), f"is float32 now, {value.dtype} in the file") for value in changed]
    for graph in _graphs(model.graph):
        for value in _values(graph):
            if value.dtype in NARROW:
                seen.add(str(value.dtype))
                value.type = ir.TensorType(ir.DataType.FLOAT)
            if value.const_value is not None and value.const_value.dtype in NARROW:
                value.const_value = _float32(value.const_value, value.name)
        for node in graph:
            for name, item in list(node.attributes.items()):
                if item.type == ir.AttributeType.TENSOR and item.as_tensor().dtype in NARROW:
                    node.attributes[name] = ir.AttrTensor(name, _float32(item.as_tensor(), None))
                elif name in TYPES and item.type == ir.AttributeType.INT and ir.DataType(item.as_int()) in NARROW:
                    node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    if seen:
        notes.insert(0, ("graph", f"computes in {', '.join(sorted(seen))}; taken as float32"))
    return notes


def _float32(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=name)


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for item in node.attributes.values():
            if item.type == ir.AttributeType.GRAPH:
                yield from _graphs(item.as_graph())
            elif item.type == ir.AttributeType.GRAPHS:
                for inner in item.as_graphs():
                    yield from _graphs(inner)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
