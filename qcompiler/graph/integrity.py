"""What must hold of a ModelProto before anything reads it: complete, acyclic, of operators that we know."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx
import numpy as np
import onnx
import onnx_ir as ir

from qcompiler.errors import ModelError, UnsupportedError
from qcompiler.graph.lift import handlers
from qcompiler.graph.model import DOMAIN

OPSET_MIN, OPSET_MAX = 7, 25
"""Operator sets that are read."""
STANDARD = ("", "ai.onnx", DOMAIN)


def check(proto: onnx.ModelProto, where: str) -> None:
    """Raise ModelError unless the graph is complete, acyclic, and defines each value once."""
    if not proto.HasField("graph") or not proto.ir_version or (not proto.graph.node and not proto.graph.output):
        raise ModelError(
            "holds no graph: it is not an ONNX model, or the file is truncated.",
            where=where,
            hint="Export or download it again.",
        )
    if not proto.opset_import:
        raise ModelError(
            "declares no operator set; the file is truncated.", where=where, hint="Export or download it again."
        )
    if not proto.graph.output:
        raise ModelError("the graph has no outputs.", where=where, hint="Export it with at least one output.")
    _check_names(proto.graph, where)
    for tensor in proto.graph.initializer:
        _check_tensor(tensor, where)
    _check_values(proto.graph, set(), where)


def _check_names(graph: onnx.GraphProto, where: str) -> None:
    """Protobuf hands out bytes, not str, where a damaged text is not UTF-8."""
    names = [graph.name, *(item.name for part in (graph.input, graph.output, graph.initializer) for item in part)]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
        names += [item.name for item in node.attribute]
    for name in names:
        if not isinstance(name, str):
            raise ModelError(
                f"the name {name!r} is not text; the file is damaged.", where=where, hint="Export it again."
            )


def _check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    try:
        size = ir.serde.deserialize_tensor(tensor).numpy().size
    except Exception as error:  # numpy and onnx_ir raise many types over damaged bytes
        raise ModelError(
            f"initializer `{tensor.name}` is damaged: {error}.", where=where, hint="Export it again."
        ) from error
    if size != int(np.prod(tensor.dims)):
        raise ModelError(
            f"initializer `{tensor.name}` holds {size} numbers, its shape {list(tensor.dims)} asks for more or fewer.",
            where=where,
            hint="Export it again.",
        )


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for item in node.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            yield item.g
        yield from item.graphs


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node and the graphs inside it read from outside."""
    names = set(node.input)
    for graph in _subgraphs(node):
        inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        inner |= {name for n in graph.node for name in n.output}
        used = {name for n in graph.node for name in _reads(n)} | {v.name for v in graph.output}
        names |= used - inner
    return names - {""}


def _check_values(graph: onnx.GraphProto, outer: set[str], where: str) -> None:
    known = outer | {v.name for v in graph.input} | {t.name for t in graph.initializer}
    known |= {t.values.name for t in graph.sparse_initializer}
    makers: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in node.output:
            if name and (name in makers or name in known - outer):
                raise ModelError(f"the value `{name}` is defined twice.", where=where, hint="Export it again.")
            makers[name] = i
    order = nx.DiGraph()
    for i, node in enumerate(graph.node):
        order.add_node(i)
        for name in sorted(_reads(node)):
            if name in makers:
                order.add_edge(makers[name], i)
            elif name not in known:
                raise ModelError(
                    f"node `{node.name or node.op_type}` reads `{name}`, which no node or initializer defines.",
                    where=where,
                    hint="The file is truncated or was edited; export it again.",
                )
        for inner in _subgraphs(node):
            _check_values(inner, known | set(makers), where)
    for value in graph.output:
        if value.name not in makers and value.name not in known:
            raise ModelError(
                f"the output `{value.name}` is not defined by any node.",
                where=where,
                hint="The file is truncated or was edited; export it again.",
            )
    if not nx.is_directed_acyclic_graph(order):
        names = [graph.node[i].name or graph.node[i].op_type for i, _ in nx.find_cycle(order)]
        raise ModelError(
            f"the nodes `{'`, `'.join(names)}` read each other in a circle.", where=where, hint="Export it again."
        )


def _newer(graph: onnx.GraphProto, version: int) -> set[str]:
    """Operators of the default domain whose definition in this operator set is newer than OPSET_MAX, or not known."""
    found: set[str] = set()
    for node in graph.node:
        if node.domain in ("", "ai.onnx"):
            try:
                schema = onnx.defs.get_schema(node.op_type, version, "")
                known = schema.since_version <= OPSET_MAX
            except onnx.defs.SchemaError:
                known = False
            if not known:
                found.add(node.op_type)
        for inner in _subgraphs(node):
            found |= _newer(inner, version)
    return found


def check_domains(proto: onnx.ModelProto, where: str) -> None:
    """Raise UnsupportedError for operators of foreign domains and operator sets outside 7 to 25, unless every
    operator means in a newer set what it means in 25."""
    local = {(function.domain, function.name) for function in proto.functions}
    foreign = {
        f"{node.domain}::{node.op_type}"
        for node in proto.graph.node
        if node.domain not in STANDARD and not {(node.domain, node.op_type)} & (local | set(handlers()))
    }
    if foreign:
        raise UnsupportedError(
            f"uses operators outside the standard ONNX domain: {', '.join(sorted(foreign))}.",
            where=where,
            hint="Export the model with standard operators, or with their function bodies in the file.",
        )
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and not OPSET_MIN <= opset.version <= OPSET_MAX:
            newer = _newer(proto.graph, opset.version)
            if opset.version > OPSET_MAX and not newer:
                continue
            also = f" ({', '.join(sorted(newer))} changed since)" if newer else ""
            raise UnsupportedError(
                f"uses operator set {opset.version}{also}; {OPSET_MIN} to {OPSET_MAX} are read.",
                where=where,
                hint="Convert it with onnx.version_converter, or export it again.",
            )
