"""What rules write with: nodes in front of the one that they replace, shapes given."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike

from qcompiler.graph.model import Graph
from qcompiler.widths import WIDE_KEY


class Build:
    """Writes nodes before `node` into `graph`; values are float32 unless said otherwise."""

    def __init__(self, graph: Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self.name = node.name or str(node.outputs[0].name)
        self.count = 0

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Static shape."""
        return self.graph.shape(value)

    def const(self, array: ArrayLike, what: str = "constant") -> ir.Value:
        """An initializer."""
        return self.graph.add_const(f"{self.name}/{what}", np.asarray(array))

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[int],
        *,
        wide: str = "",
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: Any,
    ) -> ir.Value:
        """A node's output. wide: the format that it should have at least, such as uint16."""
        self.count += 1
        name = f"{self.name}/{op_type.lower()}{self.count if self.count > 1 else ''}"
        new = self.graph.add_node(op_type, inputs, attributes, before=self.node, name=name)
        value = new.outputs[0]
        value.shape, value.type = ir.Shape(shape), ir.TensorType(dtype)
        if wide:
            value.metadata_props[WIDE_KEY] = wide
        return value

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """x itself where it has the shape already."""
        if self.shape(x) == tuple(shape):
            return x
        assert prod(self.shape(x)) == prod(shape)
        if (known := self.graph.const(x)) is not None:
            return self.const(known.reshape(shape), "reshaped")
        return self.op("Reshape", [x, self.const(np.array(shape, np.int64), "shape")], shape, dtype=_type(x))

    def transpose(self, x: ir.Value, perm: Sequence[int]) -> ir.Value:
        """x itself where nothing moves."""
        if list(perm) == sorted(perm):
            return x
        if (known := self.graph.const(x)) is not None:
            return self.const(known.transpose(perm), "transposed")
        return self.op("Transpose", [x], [self.shape(x)[d] for d in perm], dtype=_type(x), perm=list(perm))

    def slice(self, x: ir.Value, axis: int, start: int, end: int, step: int = 1) -> ir.Value:
        """x[start:end:step] along one axis, 0 <= start < end."""
        shape = list(self.shape(x))
        if (start, end, step) == (0, shape[axis], 1):
            return x
        shape[axis] = len(range(start, min(end, shape[axis]), step))
        bounds = [self.const(np.array([v], np.int64), what) for v, what in
                  ((start, "start"), (end, "end"), (axis, "axis"), (step, "step"))]  # fmt: skip
        return self.op("Slice", [x, *bounds], shape, dtype=_type(x))

    def concat(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        """All parts along one axis."""
        if len(parts) == 1:
            return parts[0]
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        return self.op("Concat", parts, shape, dtype=_type(parts[0]), axis=axis)

    def expand(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """x itself where it has the shape already."""
        if self.shape(x) == tuple(shape):
            return x
        return self.op("Expand", [x, self.const(np.array(shape, np.int64), "shape")], shape, dtype=_type(x))

    def reduce(self, op_type: str, x: ir.Value, axes: Sequence[int], keepdims: bool = True, wide: str = "") -> ir.Value:
        """A reduction over constant axes."""
        shape = [1 if d in axes else e for d, e in enumerate(self.shape(x)) if keepdims or d not in axes]
        inputs = [x, self.const(np.array(axes, np.int64), "axes")]
        return self.op(op_type, inputs, shape, wide=wide, keepdims=int(keepdims))

    def binary(self, op_type: str, a: ir.Value, b: ir.Value, wide: str = "") -> ir.Value:
        """a op b, broadcast."""
        return self.op(op_type, [a, b], np.broadcast_shapes(self.shape(a), self.shape(b)), wide=wide)


def _type(value: ir.Value) -> ir.DataType:
    return value.dtype or ir.DataType.FLOAT
