"""Where the channels of a value go: followed through every operator that keeps them apart.

Each element of the value carries the number of its channel; operators that move values move the numbers (by their own
oracles), and those that act on elements alone, or sum elements of one channel only, hand them on. A factor on a channel
of the value is then the same factor on every element that bears its number, until a product with weights takes it up.

    moves            Identity, Reshape, Transpose, Slice, Split, Gather, Concat, Expand, Tile, ...
    homogeneous      Relu, LeakyRelu, PRelu, pools
    linear           Mul and Div with something else, ReduceMean, ReduceSum, and MatMul with another activation, whose
                     sum must run over elements of one channel: attention keeps the channels of v apart
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.channels import is_layer
from qcompiler.graph.given import GIVEN_KEY
from qcompiler.graph.islands import is_island
from qcompiler.graph.model import Graph, attribute, attributes

OTHER = -1
"""Number of an element that is not of the traced value."""
_RESHAPES = frozenset({"Flatten", "Squeeze", "Unsqueeze", "Reshape"})
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_REDUCES = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"})
_ORACLES = frozenset({"Transpose", "Slice", "Split", "Expand", "Tile", "DepthToSpace"})


@dataclass(frozen=True, eq=False)
class Sink:
    """A product with weights that reads traced channels.

    labels: int64 [K], for each of its input channels the channel of the traced value, or OTHER. moved: nothing but
    data movement lies between, so that a term on a channel arrives as well as a factor.
    """

    node: ir.Node
    labels: NDArray[np.int64]
    moved: bool


@dataclass(eq=False)
class Traced:
    """Sinks, and why channels that others read, too, are not free: channel -> reason."""

    sinks: list[Sink] = field(default_factory=list)
    blocked: dict[int, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    """Names of all values that hold traced channels."""


class _Refused(Exception):
    """Why an operator does not keep channels apart."""


@dataclass(frozen=True, eq=False)
class _Labels:
    array: NDArray[np.int32]
    moved: bool


def trace(graph: Graph, value: ir.Value, axis: int, nodes: Sequence[ir.Node] | None = None) -> Traced:
    """Follow the channels of `value` (index along `axis`) to the products that read them.

    nodes: graph.nodes(), if the caller has them already. Raises ModelError for a value without a static shape.
    """
    shape = graph.shape(value)
    at = [1] * len(shape)
    at[axis] = -1
    start = np.arange(shape[axis], dtype=np.int32).reshape(at)
    known = {value: _Labels(np.broadcast_to(start, shape), True)}
    found = Traced()
    _check_output(found, value, known)
    for node in graph.nodes() if nodes is None else nodes:
        read = [i for i, v in enumerate(node.inputs) if v in known]
        if not read:
            continue
        try:
            if _is_product(graph, node) and read == [0]:
                labels = known[node.inputs[0]]  # type: ignore[index]
                found.sinks.append(Sink(node, _channels(graph, node, labels.array), labels.moved))
                continue
            for made, labels in _through(graph, node, read, known):
                known[made] = labels
                _check_output(found, made, known)
        except _Refused as refusal:
            for i in read:
                _block(found, known[node.inputs[i]], str(refusal))  # type: ignore[index]
    found.names = {str(v.name) for v in known}
    return found


def _check_output(found: Traced, value: ir.Value, known: dict[ir.Value, _Labels]) -> None:
    if value.is_graph_output():
        _block(found, known[value], f"`{value.name}` is an output of the network")


def _block(found: Traced, labels: _Labels, reason: str) -> None:
    for channel in np.unique(labels.array):
        if channel != OTHER:
            found.blocked.setdefault(int(channel), reason)


def _named(node: ir.Node) -> str:
    return f"`{node.name or node.outputs[0].name}` ({node.op_type})"


def _is_product(graph: Graph, node: ir.Node) -> bool:
    """A Conv, Gemm or MatMul with a constant weight whose input channels can be scaled."""
    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul") or is_island(node) or len(node.inputs) < 2:
        return False
    weight = node.inputs[1]
    if weight is None or graph.const(weight) is None:
        return False
    if GIVEN_KEY in weight.metadata_props:
        raise _Refused(f"the weight of {_named(node)} came with its grid")
    if not is_layer(graph, node):
        raise _Refused(f"{_named(node)} has no plain weight and bias")
    return True


def _channels(graph: Graph, node: ir.Node, labels: NDArray[np.int32]) -> NDArray[np.int64]:
    axis = 1 if node.op_type == "Conv" else labels.ndim - 1
    others = tuple(i for i in range(labels.ndim) if i != axis)
    if labels.size and (labels.max(axis=others) != labels.min(axis=others)).any():
        raise _Refused(f"{_named(node)} sums over other axes than that of the channels")
    return np.asarray(labels.max(axis=others), np.int64)


def _uniform(labels: NDArray[np.int32], axes: tuple[int, ...], node: ir.Node) -> NDArray[np.int32]:
    """Labels with the given axes reduced to 1, along which they must not differ."""
    if (labels.max(axis=axes) != labels.min(axis=axes)).any():
        raise _Refused(f"{_named(node)} mixes channels")
    return np.asarray(labels.max(axis=axes, keepdims=True))


def _through(
    graph: Graph, node: ir.Node, read: list[int], known: dict[ir.Value, _Labels]
) -> Iterator[tuple[ir.Value, _Labels]]:
    """The labels of a node's outputs. Raises _Refused where channels get mixed or are read in another way."""
    op, output = node.op_type, node.outputs[0]
    if node.domain or is_island(node):
        raise _Refused(f"{_named(node)} reads it")
    if op == "Concat":
        parts = [known.get(v) for v in node.inputs]  # type: ignore[arg-type]
        arrays = [
            part.array if part is not None else np.full(graph.shape(v), OTHER, np.int32)
            for part, v in zip(parts, node.inputs, strict=True)
        ]
        joined = np.concatenate(arrays, axis=attribute(node, "axis"))
        yield output, _Labels(joined, all(part is None or part.moved for part in parts))
        return
    if len(read) > 1:
        raise _Refused(f"{_named(node)} reads it twice")
    source = known[node.inputs[read[0]]]  # type: ignore[index]
    labels, shape = source.array, graph.shape(output)
    if op in ("Mul", "Div"):
        if op == "Div" and read != [0]:
            raise _Refused(f"{_named(node)} divides by it")
        yield output, _Labels(np.broadcast_to(labels, shape), False)
    elif op == "MatMul" and min(len(graph.shape(v)) for v in node.inputs) >= 2:
        summed = labels.ndim - 1 if read == [0] else labels.ndim - 2
        yield output, _Labels(np.broadcast_to(_uniform(labels, (summed,), node), shape), False)
    elif read != [0]:
        raise _Refused(f"{_named(node)} reads it")
    elif op in ("Identity", "Dropout"):
        yield output, source
    elif op in _HOMOGENEOUS:
        yield output, _Labels(labels, False)
    elif op in _RESHAPES:
        yield output, _Labels(labels.reshape(shape), source.moved)
    elif op in _ORACLES:
        for made, array in zip(node.outputs, _move(graph, node, labels), strict=False):
            yield made, _Labels(array, source.moved)
    elif op == "Gather":
        axis = attribute(node, "axis", 0) % labels.ndim
        indices = graph.const(node.inputs[1])
        if indices is None:  # any choice, if the choice does not matter
            labels = _uniform(labels, (axis,), node)
            indices = np.zeros(graph.shape(node.inputs[1]), np.int64)
        yield output, _Labels(np.take(labels, indices, axis=axis), source.moved)
    elif op in _POOLS and len(shape) == labels.ndim and (len(node.outputs) == 1 or not node.outputs[1].uses()):
        pixels = tuple(range(2, labels.ndim))
        yield output, _Labels(np.broadcast_to(_uniform(labels, pixels, node), shape), False)
    elif op in _REDUCES:
        axes = graph.const(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
        if axes is None or np.size(axes) == 0:
            raise _Refused(f"{_named(node)} mixes channels")
        reduced = _uniform(labels, tuple(int(a) % labels.ndim for a in np.atleast_1d(axes)), node)
        yield output, _Labels(reduced.reshape(shape), False)
    else:
        raise _Refused(f"{_named(node)} reads it")


def _move(graph: Graph, node: ir.Node, labels: NDArray[np.int32]) -> list[NDArray]:
    from qcompiler.ops import OPERATORS

    if node.op_type == "Split":  # by sizes, or by a number of outputs
        axis = attribute(node, "axis", 0)
        ends = np.cumsum([graph.shape(v)[axis] for v in node.outputs])
        return np.split(labels, ends[:-1], axis=axis)
    constants = [graph.const(v) for v in node.inputs[1:]]
    if any(array is None and v is not None for array, v in zip(constants, node.inputs[1:], strict=True)):
        raise _Refused(f"{_named(node)} moves values by a computed amount")
    return OPERATORS[node.op_type].oracle([labels, *constants], attributes(node))
