"""Attention as one call: which nodes it takes in, and how it reads their operands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod

import onnx_ir as ir

from qcompiler.formats import parse_format
from qcompiler.graph.model import Graph, attribute
from qcompiler.targets.cuda.tir.attention import MOST, Attention, Operand, room_of
from qcompiler.targets.cuda.tir.epilogue import Codes, code_numbers, itemsize
from qcompiler.targets.shared.lower_attention import batch_nest, batched
from qcompiler.targets.shared.lower_pointwise import byte_table
from qcompiler.targets.shared.lower_sequence import mask_of, softmax_of
from qcompiler.targets.shared.program import Argument, Program
from qcompiler.targets.shared.reads import format_of, requantize_inputs, requantize_of
from qcompiler.targets.shared.tir.nest import Nest
from qcompiler.targets.shared.views import View


@dataclass(frozen=True)
class Heads:
    """The nodes: scores and values are BatchMatMul nodes, table is one on the queries, or None."""

    scores: ir.Node
    softmax: ir.Node
    values: ir.Node
    table: ir.Node | None

    def inside(self) -> list[ir.Node]:
        """Those that are done where `values` is."""
        return [node for node in (self.table, self.scores, self.softmax) if node is not None]


def find_heads(graph: Graph, values: ir.Node, taken: set[str]) -> Heads | None:
    """Attention that ends in a BatchMatMul, where one kernel can do it. taken: Tables that other kernels do."""
    softmax = _sole(graph, values.inputs[0], "Softmax")
    scores = _sole(graph, softmax.inputs[0], "BatchMatMul") if softmax is not None else None
    if softmax is None or scores is None or values.inputs[1] is values.inputs[0]:
        return None
    shape, y = graph.shape(scores.outputs[0]), graph.shape(values.outputs[0])
    if attribute(softmax, "axis", -1) % len(shape) != len(shape) - 1 or shape[:-2] != y[:-2] or len(shape) > 5:
        return None
    if any(format_of(v).bits > 8 for v in (*scores.inputs[:2], *values.inputs[:2])):  # type: ignore[arg-type]
        return None
    inputs = [*softmax.inputs, None, None][:4]
    if inputs[2] is not None and (inputs[3] is not None or mask_of(graph, softmax) != "prefix"):
        return None
    inner, outer = graph.shape(scores.inputs[0])[-1], y[-1]
    if room_of(shape[-1], inner, outer, itemsize(str(format_of(scores.outputs[0]).storage))) > MOST:
        return None
    table = _sole(graph, scores.inputs[0], "Table")
    if table is not None:
        storages = parse_format(attribute(table, "x_format")).storage, format_of(table.outputs[0]).storage
        same = graph.shape(table.inputs[0]) == graph.shape(table.outputs[0])
        if not same or str(table.name) in taken or any(s.itemsize > 1 for s in storages):
            table = None
    return Heads(scores, softmax, values, table)


def _sole(graph: Graph, value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node of this type that makes a value for one use."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != op_type or producer.domain != "qcompiler":
        return None
    return producer if graph.sole_user(value) is not None and len(list(value.uses())) == 1 else None


def lower_heads(program: Program, heads: Heads) -> None:
    """The call."""
    scores, values = heads.scores, heads.values
    given = heads.table.inputs[0] if heads.table is not None else scores.inputs[0]
    q, k, v = (program.view(value) for value in (given, scores.inputs[1], values.inputs[1]))  # type: ignore[arg-type]
    y = program.view(values.outputs[0])
    batch = y.shape[:-2]
    q, k, v = (batched(view, batch) for view in (q, k, v))
    k = replace(k, shape=(*batch, k.shape[-1], k.shape[-2]), strides=(*k.strides[:-2], k.strides[-1], k.strides[-2]))
    nest = batch_nest(batch, *(view.strides[:-2] for view in (q, k, v, y)))
    operands = [_operand(view, nest.strides[i]) for i, view in enumerate((q, k, v, y))]
    own, arguments = softmax_of(program, heads.softmax)
    rows = own.nest.strides[2] if own.mask == "prefix" else (0,)
    softmax = replace(
        own, nest=Nest(own.nest.extents if own.mask == "prefix" else (1,), (rows,)), y_stride=1, x_stride=1
    )
    zeros = (
        attribute(scores, "a_zero_point", 0),
        attribute(scores, "b_zero_point", 0) - (128 if k.dtype == "uint8" else 0),
        attribute(values, "a_zero_point", 0),
        attribute(values, "b_zero_point", 0) - (128 if v.dtype == "uint8" else 0),
    )
    tables: list[Argument] = []
    stored = ""
    if heads.table is not None:
        table, _ = byte_table(program, heads.table)
        stored = str(format_of(heads.table.outputs[0]).storage)
        tables.append(program.parameter(table.astype(stored), f"{heads.table.name}/table"))
    spec = Attention(
        (nest.extents[0], nest.extents[1], nest.extents[2]),
        queries=q.shape[-2],
        tokens=k.shape[-2],
        inner=q.shape[-1],
        outer=v.shape[-1],
        q=operands[0],
        k=operands[1],
        v=operands[2],
        y=operands[3],
        q_table=stored,
        scores=Codes.of(requantize_of(scores)),
        softmax=softmax,
        codes=Codes.of(requantize_of(values)),
        centred=tuple(zero == 0 for zero in zeros),  # type: ignore[arg-type]
    )
    first, second = (
        [program.parameter(p, f"{node.name}/scale") for p in requantize_inputs(program, node, 2)]
        for node in (scores, values)
    )
    *mask, exponentials = arguments
    numbers = [
        *zeros,
        *(n for node in (scores, values)
          for n in code_numbers(requantize_of(node))),
    ]  # fmt: skip
    units = prod(batch) * spec.queries
    program.call(
        spec, units, q, k, v, y, *tables, *first, exponentials, *mask, *second, numbers=numbers, launch=spec.launch()
    )


def _operand(view: View, strides: tuple[int, ...]) -> Operand:
    """strides: of three batch dimensions."""
    row, column = view.strides[-2:]
    size = view.itemsize
    places = gcd(view.origin * size, row * size if view.shape[-2] > 1 else 0, *(s * size for s in strides[:3]))
    words = column == 1 and size == 1 and view.shape[-1] % 4 == 0 and places % 4 == 0
    return Operand(view.dtype, strides[:3], row, column, words)  # type: ignore[arg-type]
