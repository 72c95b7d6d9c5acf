"""What TorchGraph is made from besides its graph: function bodies, and the float weights behind codes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from qcompiler.errors import ModelError
from qcompiler.execute.torch.rules import RULES
from qcompiler.graph import qdq
from qcompiler.graph.analysis import shared_groups, ties
from qcompiler.graph.io import load_graph
from qcompiler.graph.islands import single_node
from qcompiler.graph.model import Graph
from qcompiler.graph.state import state_pairs
from qcompiler.quantizer import dequantize

LEAST_COSINE = 0.25
"""Between codes and the float weight that they may stand for."""


def float_weights(qdq_graph: Graph, float_graph: Graph) -> dict[str, NDArray]:
    """The float weights of a QDQ graph, for TorchGraph: dequantized value name -> float32 array.

    float_graph: `context.float_graph`, which `insert_qdq` left there. A weight is found by the name that insert_qdq
    gave its codes and by its shape; one whose float values are not there is left out. Raises ModelError for another
    graph, whose weights are not those that the codes round (the model before BatchNormalization was folded, for one).
    """
    arrays = {str(name): float_graph.const(value) for name, value in float_graph.ir.initializers.items()}
    found: dict[str, NDArray] = {}
    for node in qdq_graph.nodes("DequantizeLinear"):
        read = qdq.quantizer_of(qdq_graph, node.outputs[0])
        if read is None or read.codes is None:
            continue
        name = str(read.source.name)
        head, tail = name.rpartition("_codes")[::2]
        array = arrays.get(head) if tail == "" or tail.lstrip("_").isdigit() else None
        if array is not None and array.shape == read.codes.shape and array.dtype.kind == "f":
            # Methods that choose codes keep the weight's direction, about; another weight has its own.
            own = dequantize(read.codes, read.params)
            if float((array * own).sum()) < LEAST_COSINE * float(np.linalg.norm(array) * np.linalg.norm(own)):
                raise ModelError(
                    f"its `{head}` is not what the codes `{name}` round.",
                    where=float_graph.path,
                    hint="Pass the float graph that insert_qdq left in the context.",
                )
            found[str(node.outputs[0].name)] = array
    return found


def tied_values(graph: Graph) -> dict[str, int]:
    """Value name -> number of its group: values that operators only move, and the same values dequantized."""
    pairs = ties(graph, concat_single_reader=False)
    pairs += state_pairs(graph).items()
    for node in graph.nodes():
        source = node.inputs[0] if qdq.is_quantizer(node) else None
        if source is not None and graph.const(source) is None:
            chain = quantizes(source)
            source = chain[-1].inputs[0] if chain else source
            pairs.append((str(source.name), str(node.outputs[0].name)))  # type: ignore[union-attr]
    return {name: i for i, group in enumerate(shared_groups(graph, pairs)) for name in group}


def quantizes(codes: ir.Value) -> list[ir.Node]:
    """The nodes that make the codes of an activation, the last first: [Clip,] QuantizeLinear; none if others do."""
    maker = codes.producer()
    chain = [maker] if maker is not None else []
    if maker is not None and maker.op_type == "Clip" and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
        chain += [maker] if maker is not None else []
    return chain if maker is not None and maker.op_type == "QuantizeLinear" else []


def function_body(graph: Graph, node: ir.Node) -> Graph:
    """The function body of a node as a graph with static shapes; its constant float inputs stay inputs, which may
    learn, the others are folded into the shapes that they decide."""
    alone = single_node(graph, node, constants=False)
    for value in list(alone.ir.inputs):
        original = node.inputs[int(str(value.name).removeprefix("input"))]
        if graph.const(original) is not None and value.dtype is not None and not value.dtype.is_floating_point():
            alone.ir.inputs.remove(value)
            value.const_value = original.const_value  # type: ignore[union-attr]
            alone.ir.register_initializer(value)
    for function in graph.model.functions.values():
        alone.model.functions[function.identifier()] = function.clone()
    common.InlinePass(criteria=lambda function: _key(function) not in RULES)(alone.model)
    return load_graph(alone.model, lifted=False)


def _key(function: ir.Function) -> str:
    """As `operator_key`, of a function."""
    return function.name if function.domain in ("", "ai.onnx") else f"{function.domain}::{function.name}"
