"""Values that need more bits, or a zero point of 0, than the precision says: by the kinds of operators around them.

Wide (16 bits)
1. what a normalization reads: the residual stream of a transformer, whose few large channels would cost the others
   their precision; and the operands of an Add that makes it. A product with weights that reads such a value as well
   does so through a second quantizer of its own, at the precision's bits
2. the scores of attention: what a Softmax reads, if a product of two activations makes it. Softmax turns an absolute
   error of its input into a relative one of its output
3. a gate that a matrix product reads: a Mul of two activations, whose range is the product of two ranges (signed, with
   zero point 0, so that its products fit 32 bits)
4. arguments of Sin and Cos, and what they are computed from: an error of a phase does not shrink with its range
5. products with a constant that has an entry for each position (rotary embeddings): their sums are what is wanted
6. the values inside an unrolled recurrent cell, and between input and output of a declared state that is computed anew
   at each step: what one step loses all later ones lack
7. a length (ReduceL2) and what it or a square root reads, the squares that are summed there, what is squared and the
   input of the product that makes it (the magnitude of a spectrum): quiet values are lost otherwise
8. what the pass `spell_out` marks: squares, sums and logarithms between the parts of one operator

Products with weights read the values of 6 and 7 as they are, without a second quantizer.

Measured at w8a8 (`python -m benchmarks.accuracy`): stories260k_prefill perplexity 5.565 without, 5.49 with (float
5.38); ddpm_digits error of eps .0035 without, .0011 with; vit_hybrid and vit_digits as float either way.
silero_vad 6.2.3 on generated speech (`python -m examples.vad.detect`): 99.6 % of the decisions of float with rules 6
and 7, 63 % without.

Centred (signed, zero point 0): the right operand of a product of two activations, so that its rows need no sums.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from qcompiler.assignment import WEIGHTED, is_product_of_activations, scaled_product, softmax_mask
from qcompiler.graph.analysis import moves_only
from qcompiler.graph.model import Graph
from qcompiler.graph.state import state_pairs

WIDE_KEY = "qcompiler.wide"
"""Metadata key of a value that a float pass asks 16 bits for."""
LENGTHS = ("ReduceL2", "Sqrt")
NORMALIZATIONS = (
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LpNormalization",
    "RMSNormalization",
)


def wide_values(graph: Graph) -> dict[str, str]:
    """Value name -> format token (uint16, or int16 for gates)."""
    found = {str(value.name): value.metadata_props[WIDE_KEY] for value in _marked(graph)}
    found |= {str(value.name): "uint16" for value in _recurrent(graph)}
    for node in graph.nodes():
        for value, token in _wide(graph, node):
            if value is not None and graph.const(value) is None:
                found[str(value.name)] = token
    return found


def centred_values(graph: Graph) -> set[str]:
    """Names of values whose zero point should be 0."""
    return {
        str(node.inputs[1].name)
        for node in graph.nodes("MatMul")
        if node.inputs[1] is not None and is_product_of_activations(graph, node)
    }


def _wide(graph: Graph, node: ir.Node) -> Iterator[tuple[ir.Value | None, str]]:
    if node.op_type in NORMALIZATIONS:
        source = node.inputs[0]
        yield source, "uint16"
        maker = source.producer() if source is not None else None
        if maker is not None and maker.op_type == "Add":
            yield from ((value, "uint16") for value in maker.inputs)
    elif node.op_type in ("Softmax", "CacheSoftmax"):
        masked = softmax_mask(graph, node)
        scores = node.inputs[0] if masked is None else masked.scores
        maker = scores.producer() if scores is not None else None
        if is_product_of_activations(graph, maker) or scaled_product(graph, maker) is not None:
            yield scores, "uint16"
    elif node.op_type in ("MatMul", "Gemm"):
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        gate = maker is not None and maker.op_type == "Mul" and not any(_constant(graph, v) for v in maker.inputs)
        if gate and graph.const(node.inputs[1]) is not None:
            yield node.inputs[0], "int16"
    elif node.op_type in LENGTHS and not node.domain:
        yield from ((value, "uint16") for value in _under_root(graph, node))
    elif node.op_type == "Mul" and any(_per_position(graph, value) for value in node.inputs):
        yield node.outputs[0], "uint16"
    elif node.op_type in ("Sin", "Cos"):
        value = node.inputs[0]
        while value is not None:
            yield value, "uint16"
            maker = value.producer()
            value = maker.inputs[0] if maker is not None else None


def direct_values(graph: Graph) -> set[str]:
    """Names of wide values that products with weights read as they are: rules 6 and 7."""
    found = {str(value.name) for value in (*_marked(graph), *_recurrent(graph))}
    for node in graph.nodes(*LENGTHS):
        if not node.domain:
            found |= {str(value.name) for value in _under_root(graph, node)}
    return found


def _marked(graph: Graph) -> Iterator[ir.Value]:
    return (value for value in graph.values() if WIDE_KEY in value.metadata_props)


def _recurrent(graph: Graph) -> Iterator[ir.Value]:
    """Values between the input and the output of a state that is computed anew at each step, and what is added there.

    Not of caches, and not of a state that is only moved on (the last samples of a stream).
    """
    inputs, outputs = ({str(v.name): v for v in values} for values in (graph.inputs, graph.outputs))
    pairs = [(outputs[o], inputs[i]) for o, i in state_pairs(graph).items() if o in outputs and i in inputs]
    for output, start in pairs:
        behind: dict[ir.Value, None] = {start: None}
        for node in graph.nodes():
            if any(value in behind for value in node.inputs):
                behind.update(dict.fromkeys(node.outputs))
        path: dict[ir.Node, None] = {}
        pending = [output]
        while pending:
            maker = pending.pop().producer()
            if maker is not None and maker not in path:
                path[maker] = None
                pending += [value for value in maker.inputs if value is not None and value in behind]
        computed = any(not moves_only(node) and node.op_type != "Concat" for node in path)
        if (
            start not in {v for n in path for v in n.inputs}
            or not computed
            or any(n.op_type == "CacheWrite" for n in path)
        ):
            continue
        yield start
        for node in path:
            yield from (value for value in node.outputs if value in behind)
            if node.op_type == "Add":
                yield from (value for value in node.inputs if value is not None and not _constant(graph, value))


def _under_root(graph: Graph, node: ir.Node) -> Iterator[ir.Value]:
    """What a ReduceL2 or Sqrt reads, the terms of the sum that makes it, what is squared in them; and a length."""
    if node.op_type == "ReduceL2":
        yield node.outputs[0]
    yield from _measured(node.inputs[0]) if node.op_type == "ReduceL2" else _squares(node.inputs[0])


def _squares(value: ir.Value | None) -> Iterator[ir.Value]:
    maker = value.producer() if value is not None else None
    if value is None or maker is None:
        return
    yield value
    if maker.op_type == "Add":
        for term in maker.inputs:
            yield from _squares(term)
    elif maker.op_type == "Pow" or (maker.op_type == "Mul" and maker.inputs[0] is maker.inputs[1]):
        yield from _measured(maker.inputs[0])


def _measured(value: ir.Value | None) -> Iterator[ir.Value]:
    """A value whose square counts, through data movement, to the input of the product that makes it."""
    pending = [value]
    while pending:
        value = pending.pop()
        if value is None:
            continue
        yield value
        maker = value.producer()
        if maker is None:
            continue
        if maker.op_type == "Concat":
            pending += maker.inputs
        elif moves_only(maker):
            pending.append(maker.inputs[0])
        elif maker.op_type in WEIGHTED and maker.inputs[0] is not None:
            yield maker.inputs[0]


def _feeds_product(value: ir.Value | None) -> bool:
    return value is not None and any(use.node.op_type in WEIGHTED for use in value.uses())


def _constant(graph: Graph, value: ir.Value | None) -> bool:
    return value is None or graph.const(value) is not None


def _per_position(graph: Graph, value: ir.Value | None) -> bool:
    constant = graph.const(value)
    return constant is not None and sum(extent > 1 for extent in constant.shape) > 1
