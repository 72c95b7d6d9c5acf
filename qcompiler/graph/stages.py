"""The three stages of a graph and what is true at each.

FLOAT    any ONNX graph of float operators: no integer operators, and no quantizers but the FakeQuantize that a model
         came with
QDQ      the same with quantizers: `graph/qdq.py` writes and reads them. Their scales are positive and finite, their
         zero points are codes, and the bias of a product has the scale s_x * s_w
INTEGER  docs/integer_operators.md: every node has an oracle in `qcompiler/ops`, float32 only at the boundary and in
         float islands (graph/islands.py), whose nodes are marked, and every integer activation says in its metadata
         what its codes mean
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qcompiler.errors import ModelError, RecipeError
from qcompiler.formats import QuantParams, parse_format
from qcompiler.graph import qdq
from qcompiler.graph.functions import QUANTIZERS
from qcompiler.graph.islands import is_island
from qcompiler.graph.model import DOMAIN, Graph, attribute, operator_key

METADATA = ("qcompiler.format", "qcompiler.scale", "qcompiler.zero_point")
"""What every integer activation carries."""

NUMBERS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
"""Types of values that are no codes: places of a maximum, ids, truth values that leave the graph."""


class Stage(enum.Enum):
    """What a graph is; passes declare the stage that they read and the one that they leave."""

    FLOAT = "float"
    QDQ = "qdq"
    INTEGER = "integer"


def check(graph: Graph, stage: Stage) -> None:
    """Raise ModelError, naming the node, if `graph` is not in `stage`."""
    for node in graph.nodes():
        _CHECKS[stage](graph, node)
    if stage is Stage.INTEGER:
        _check_outputs(graph)


def _fail(graph: Graph, node: ir.Node, why: str, hint: str = "") -> ModelError:
    return ModelError(f"{node.op_type} `{node.name or node.outputs[0].name}` {why}.", where=graph.path, hint=hint)


def _is_integer_operator(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type not in QUANTIZERS and "format" in node.attributes


def _check_float(graph: Graph, node: ir.Node) -> None:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        hint = "Quantizers that a model came with are lifted when it is loaded; was the graph edited?"
        raise _fail(graph, node, "quantizes in a float graph", hint)
    if _is_integer_operator(node):
        raise _fail(graph, node, "is an integer operator in a float graph")


def _check_qdq(graph: Graph, node: ir.Node) -> None:
    if _is_integer_operator(node):
        raise _fail(graph, node, "is an integer operator among quantizers")
    if not qdq.is_quantizer(node):
        _check_bias(graph, node)
        return
    bias = qdq.read_bias(graph, node)
    if bias is not None:
        _check_scale(graph, node, bias[1])
        return
    params = qdq.read_quantizer(graph, node).params
    _check_scale(graph, node, params.scale)
    zero = params.zero_point
    if not zero.any():  # 0 is in every format, and levels of wide minifloats have no format of integers
        return
    fmt = params.format.integers
    if (zero < fmt.min).any() or (zero > fmt.max).any():
        raise _fail(graph, node, f"has a zero point that is no code of {params.format.token}")


def _check_scale(graph: Graph, node: ir.Node, scale: np.ndarray) -> None:
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise _fail(graph, node, "has a scale that is not positive and finite")


def _check_bias(graph: Graph, node: ir.Node) -> None:
    """The int32 bias of a product has the scale of its accumulator (MatMul has its bias in an Add behind it)."""
    product, bias = node, node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type == "Add":
        for value, other in (node.inputs[:2], node.inputs[1::-1]):
            producer = value.producer() if value is not None else None
            if producer is not None and producer.op_type == "MatMul":
                product, bias = producer, other
    if product.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or bias is None or bias.producer() is None:
        return
    found = qdq.read_bias(graph, bias.producer())  # type: ignore[arg-type]
    x, w = (_params(graph, value) for value in product.inputs[:2])
    if found is None or x is None or w is None:
        return
    scale = x.scale * w.scale * np.float32(attribute(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0)
    if scale.size not in (1, found[1].size):  # grouped ConvTranspose: the channels of every group
        scale = np.tile(scale, found[1].size // scale.size)
    if not np.allclose(found[1], scale, rtol=1e-5, atol=0):
        raise _fail(graph, product, "has a bias whose scale is not s_x * s_w")


def _params(graph: Graph, value: ir.Value | None) -> QuantParams | None:
    found = qdq.quantizer_of(graph, value)
    return None if found is None else found.params


def _check_integer(graph: Graph, node: ir.Node) -> None:
    from qcompiler.ops import OPERATORS

    if is_island(node):
        _check_island(graph, node)
        return
    if operator_key(node) not in OPERATORS:
        raise _fail(graph, node, "has no integer oracle", "Every node of an integer graph needs one in qcompiler/ops.")
    is_entry, is_exit = node.op_type == "QuantizeLinear", node.op_type == "DequantizeLinear"
    source = node.inputs[0]
    if is_entry and (source is None or not (source.is_graph_input() or is_island(source.producer()))):
        raise _fail(graph, node, "quantizes inside the graph", "Only graph inputs and float islands are float.")
    for_islands = is_exit and all(is_island(use.node) for use in node.outputs[0].uses())
    if is_exit and not (node.outputs[0].is_graph_output() or for_islands):
        raise _fail(graph, node, "returns to float inside the graph", "Only graph outputs and islands are float.")
    if is_entry or is_exit:
        scale = graph.const(node.inputs[1])
        if scale is None or scale.size != 1:
            raise _fail(graph, node, "needs one constant scale")
        _check_scale(graph, node, scale)
    for value in node.inputs if not is_entry else ():
        if value is not None and not value.is_initializer() and value.dtype == ir.DataType.FLOAT:
            raise _fail(graph, node, f"reads the float value `{value.name}`")
    for value in node.outputs if not is_exit else ():
        if value.dtype not in NUMBERS:
            _check_metadata(graph, node, value)


def _check_island(graph: Graph, node: ir.Node) -> None:
    """A node of an island reads islands, DequantizeLinear, constants and inputs that are no numbers."""
    for value in node.inputs:
        if value is None or value.is_initializer() or (value.is_graph_input() and value.dtype != ir.DataType.FLOAT):
            continue
        maker = value.producer()
        if maker is None or not (is_island(maker) or maker.op_type == "DequantizeLinear"):
            raise _fail(graph, node, f"of a float island reads `{value.name}`, which is not float")
    for value in node.outputs:
        others = [use.node for use in value.uses() if not (is_island(use.node) or use.node.op_type == "QuantizeLinear")]
        if others or value.is_graph_output():
            raise _fail(graph, node, f"of a float island writes `{value.name}`, which nothing quantizes")
        graph.shape(value)


def _check_metadata(graph: Graph, node: ir.Node, value: ir.Value) -> None:
    missing = [key for key in METADATA if key not in value.metadata_props]
    if missing:
        raise _fail(graph, node, f"writes `{value.name}` without metadata {', '.join(missing)}")
    try:
        fmt = parse_format(value.metadata_props[METADATA[0]])
        scale, zero = float(value.metadata_props[METADATA[1]]), int(value.metadata_props[METADATA[2]])
    except (RecipeError, ValueError) as error:
        raise _fail(graph, node, f"writes `{value.name}` with metadata that cannot be read ({error})") from error
    _check_scale(graph, node, np.asarray(scale))
    if not fmt.integers.min <= zero <= fmt.integers.max:
        raise _fail(graph, node, f"writes `{value.name}` with a zero point that is no code of {fmt.token}")
    if value.dtype is not None and value.dtype != ir.DataType.from_numpy(fmt.storage):
        raise _fail(graph, node, f"writes `{value.name}` as {value.dtype}, but {fmt.token} is stored as {fmt.storage}")
    graph.shape(value)


def _check_outputs(graph: Graph) -> None:
    for value in graph.outputs:
        node = value.producer()
        if value.dtype in NUMBERS and node is not None:
            continue
        if node is None or node.op_type != "DequantizeLinear":
            raise ModelError(f"output `{value.name}` does not come from a DequantizeLinear.", where=graph.path)


_CHECKS: dict[Stage, Callable[[Graph, ir.Node], None]] = {
    Stage.FLOAT: _check_float,
    Stage.QDQ: _check_qdq,
    Stage.INTEGER: _check_integer,
}
