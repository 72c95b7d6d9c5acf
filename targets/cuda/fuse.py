"""Which operators are done in one kernel with the product before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, prod

import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import Int, parse_format, parse_integers
from qcompiler.graph.model import Graph, attribute
from qcompiler.targets.cuda.tir.epilogue import itemsize
from qcompiler.targets.cuda.tir.tail import WIDEST, Tail
from qcompiler.targets.shared.lower_pointwise import byte_table
from qcompiler.targets.shared.program import Argument, Program
from qcompiler.targets.shared.reads import format_of
from qcompiler.targets.shared.views import View

LEAST_INPUTS, LEAST_OUTPUTS = 4, 8
"""Channels of a group from which on its products go to tensor cores."""
LEAST_INNER = 16
"""The same of the inner dimension, without groups."""


def on_tensor_cores(fmt: Int, weights: NDArray, groups: int, least: int = LEAST_INNER) -> bool:
    """Whether products of codes of `fmt` with weights [M, C / groups, KH, KW] go there: bytes, and channels enough."""
    if fmt.bits > 8 or weights.min() < -128 or weights.max() > 127:
        return False
    outputs, inputs, *kernel = weights.shape
    enough = inputs >= LEAST_INPUTS and outputs // groups >= LEAST_OUTPUTS
    return enough or groups == 1 and inputs * prod(kernel) >= least


def _is_product(graph: Graph, node: ir.Node) -> bool:
    if node.domain != "qcompiler" or node.op_type not in ("Conv", "MatMul"):
        return False
    weights = graph.const(node.inputs[1])
    if weights is None:
        return False
    if node.op_type == "MatMul":
        return on_tensor_cores(format_of(node.inputs[0]), weights.T[:, :, None, None], 1, 0)  # type: ignore[arg-type]
    return on_tensor_cores(format_of(node.inputs[0]), weights, attribute(node, "group", 1))  # type: ignore[arg-type]


class Fusion:
    """Chains of Table and Add nodes behind products: each is lowered where its last node is."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.chains: dict[str, list[ir.Node]] = {}
        self._owners: dict[str, ir.Node] = {}
        for node in graph.nodes():
            if _is_product(graph, node):
                self._follow(node)

    def chain(self, node: ir.Node) -> list[ir.Node]:
        """What is done with a product, in order."""
        return self.chains.get(str(node.name), [])

    def owner(self, node: ir.Node) -> ir.Node | None:
        """The product that a node is done with."""
        return self._owners.get(str(node.name))

    def _follow(self, product: ir.Node) -> None:
        chain: list[ir.Node] = []
        value = product.outputs[0]
        while (reader := self._reader(value)) is not None:
            before = self._owners.get(str(reader.name))
            if before is not None:  # a sum of two products: the later one does it
                earlier = self.chains[str(before.name)]
                for node in earlier[earlier.index(reader) :]:
                    del self._owners[str(node.name)]
                del earlier[earlier.index(reader) :]
            chain.append(reader)
            self._owners[str(reader.name)] = product
            value = reader.outputs[0]
        self.chains[str(product.name)] = chain

    def _reader(self, value: ir.Value) -> ir.Node | None:
        """The Table or Add that alone reads a value, element by element."""
        reader = self.graph.sole_user(value)
        if reader is None or len(list(value.uses())) != 1 or reader.domain != "qcompiler":
            return None
        if self.graph.shape(reader.outputs[0]) != self.graph.shape(value):
            return None
        if reader.op_type == "Table":
            bytes_ = parse_format(attribute(reader, "x_format")).storage.itemsize == 1
            return reader if bytes_ and reader.inputs[0] is value else None
        if reader.op_type != "Add":
            return None
        return reader


@dataclass(frozen=True)
class Step:
    """A tail with what its call passes."""

    tail: Tail
    pointer: View | Argument
    numbers: tuple[int, ...] = ()


def steps_of(program: Program, product: ir.Node, chain: Sequence[ir.Node], channels: int) -> list[Step] | None:
    """The steps of a chain; None where a value that is added does not lie as the product's pixels do. channels: of the
    product."""
    found: list[Step] = []
    value = product.outputs[0]
    for node in chain:
        storage = str(program.view(node.outputs[0]).dtype)
        if node.op_type == "Table":
            table, _ = byte_table(program, node)
            found.append(Step(Tail(storage), program.parameter(table.astype(storage), f"{node.name}/table")))
        else:
            step = _sum(program, node, value, storage, channels, product.op_type == "Conv")
            if step is None:
                return None
            found.append(step)
        value = node.outputs[0]
    return found


def _sum(program: Program, node: ir.Node, value: ir.Value, storage: str, channels: int, conv: bool) -> Step | None:
    first = node.inputs[0] is value
    other = node.inputs[1] if first else node.inputs[0]
    assert other is not None
    view, shape = program.view(other), program.shape(value)
    spread = replace(view, shape=shape, strides=view.broadcast(shape), border=())
    line = _line(spread, 1 if conv else len(shape) - 1)
    if line is None or line[1] != 1 and channels != 1:
        return None
    size, fmt = itemsize(view.dtype), parse_integers(attribute(node, "format"))
    load = gcd(channels * size, view.origin * size, line[0] * size, WIDEST)
    zero = attribute(node, "zero_point", 0)
    own, its = ("a", "b") if first else ("b", "a")
    numbers = (
        line[0], attribute(node, f"{own}_zero_point", 0), attribute(node, f"{its}_zero_point", 0),
        attribute(node, f"{own}_multiplier"), attribute(node, f"{its}_multiplier"), attribute(node, "shift"),
        fmt.min - zero, fmt.max - zero, zero,
    )  # fmt: skip
    return Step(Tail(storage, view.dtype, load), view, numbers)


def _line(view: View, channel: int) -> tuple[int, int] | None:
    """(elements between pixels, between channels), if the pixels lie at one distance from each other."""
    order = [*(d for d in range(len(view.shape)) if d != channel), channel]
    turned = view.permuted(order).regrouped((prod(view.shape) // view.shape[channel], view.shape[channel]))
    return None if turned is None else (turned.strides[0], turned.strides[1])
