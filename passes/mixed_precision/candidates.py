"""What there is to choose between: a width for each weight, and for what each product reads.

An item is a weight (of one node, or of several that share it) or the values that must share parameters, as operands of
products. What rules, `exclude` and `keep_first_last` fixed, grids that the model came with, and operands that have more
than 8 bits on purpose are items with one option: they cost what they cost. Where minifloats are on offer, a weight's
option of so many bits is the integer or the minifloat of that width, whichever has the least squared error, where they
cost the same; on targets with `formats_cost` each format is an option of its own. Values that no product reads keep
their format; where a product reads such a value as well, the width is that of the second quantizer (rule 9 of
`decide`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler import assignment as decisions
from qcompiler.assignment import WEIGHTED, Assignment
from qcompiler.cost import CostModel, Widths, Work, totals, widths_of, work_of
from qcompiler.formats import Int, Minifloat, QuantSpec, parse_format
from qcompiler.graph import qdq
from qcompiler.graph.analysis import moves_only
from qcompiler.graph.model import Graph
from qcompiler.ops.macs import float_macs
from qcompiler.passes.set_ranges import constant_params
from qcompiler.precision import weight_token
from qcompiler.quantizer import fake_quantize

FLOAT_BITS = 32
_Of = Callable[[int, int, str], float]
"""(bits of the second operand, bits of the first, format of the second if it is a minifloat) -> cost."""
WHOLE = ("ram",)
"""Costs that only a whole network has: nodes do not add up to them."""


@dataclass(frozen=True)
class Item:
    """One choice. kind: weight or activation. values: the weight's name, or the names of a group's members.
    bits: its options, rising, of equal ones the integer first. tokens: of a weight, their formats where minifloats are
    on offer. inner: products read
    these values through a second quantizer where the width is below their own. pinned: it has one option, since
    somebody fixed it."""

    name: str
    kind: str
    values: tuple[str, ...]
    bits: tuple[int, ...]
    inner: bool = False
    pinned: bool = False
    tokens: tuple[str, ...] = ()

    def token(self, option: int) -> str:
        """Format of a weight's option."""
        return self.tokens[option] if self.tokens else weight_token(self.bits[option])

    @property
    def labels(self) -> tuple[str, ...]:
        """Options by name: their bits, or the format where another one has these bits, too."""
        first = {bits: k for k, bits in reversed([*enumerate(self.bits)])}
        return tuple(str(bits) if first[bits] == k else self.token(k) for k, bits in enumerate(self.bits))


def find_items(
    graph: Graph,
    assignment: Assignment,
    weights: Sequence[int],
    activations: Sequence[int] = (),
    minifloats: Sequence[str] = (),
    apart: bool = False,
) -> list[Item]:
    """Items of a FLOAT graph behind `decide`, in topological order.

    weights, activations: widths on offer; minifloats: tokens for weights of those widths; apart: each is an option
    beside the integer of its width, whatever the widths. Without any widths, those that were decided are the only
    options.
    """
    items: dict[str, Item] = {}
    seen: set[str] = set()
    by_name = {str(value.name): value for value in graph.values()}
    for node in graph.nodes():
        for index, value in enumerate(node.inputs[:2]):
            name = str(value.name) if value is not None else ""
            if (node, index) in _operands(graph, node) and name in assignment.activations and name not in seen:
                group = tuple(n for n in assignment.group_of(name) if n in assignment.activations)
                seen.update(group)
                items[name] = _activation(graph, assignment, by_name, name, group, activations)
        weight = decisions.weight_of(graph, node)
        name = str(weight.name) if weight is not None else ""
        if name in assignment.constants and name not in items:
            fixed = name in assignment.pinned or name in assignment.params
            bits = assignment.constants[name].format.bits
            item = _item(name, "weight", (name,), weights, bits, fixed)
            if minifloats and apart and not item.pinned:
                tokens = [*map(weight_token, item.bits), *dict.fromkeys(minifloats)]
                tokens.sort(key=_bits)  # stable: the integer stays first
                item = replace(item, bits=tuple(map(_bits, tokens)), tokens=tuple(tokens))
            elif minifloats and not item.pinned:
                array = graph.const(weight)
                assert array is not None
                best = tuple(_least_error(assignment, name, array, b, minifloats) for b in item.bits)
                item = replace(item, tokens=best)
            items[name] = item
    return list(items.values())


def change(assignment: Assignment, items: Sequence[Item], choice: Sequence[int]) -> Assignment:
    """A copy of the assignment in which each item has the width that was chosen: an index into its `bits`."""
    new = copy.copy(assignment)
    new.activations, new.constants = dict(assignment.activations), dict(assignment.constants)
    new.narrowed, new.params = dict(assignment.narrowed), dict(assignment.params)
    new.narrowed_params = dict(assignment.narrowed_params)
    for item, index in zip(items, choice, strict=True):
        bits = item.bits[index]
        for name in () if item.pinned else item.values:
            if item.kind == "weight":
                new.constants[name] = replace(new.constants[name], format=parse_format(item.token(index)))
            elif item.inner:
                _narrow(new, name, bits)
            else:
                spec = new.activations[name]
                new.activations[name] = replace(spec, format=Int(bits, signed=spec.format.signed))
    return new


def width(assignment: Assignment, item: Item) -> int:
    """Bits that the assignment gives to an item."""
    if item.kind == "weight":
        return assignment.constants[item.values[0]].format.bits
    return min(_operand_bits(assignment, name) for name in item.values)


def products(graph: Graph, items: Sequence[Item]) -> list[tuple[ir.Node, Any, Any]]:
    """(node, first operand, second operand) of every product; an operand is the index of its item, or, where it has
    none, its bits as a float."""
    places = {name: i for i, item in enumerate(items) for name in item.values}

    def operand(value: ir.Value | None) -> int | float:
        name = str(value.name) if value is not None else ""
        if name in places:
            return places[name]
        given = qdq.quantizer_of(graph, value)
        return float(given.params.format.bits if given is not None else FLOAT_BITS)

    found = []
    for node in graph.nodes(*WEIGHTED):
        if decisions.weight_of(graph, node) is not None or decisions.is_product_of_activations(graph, node):
            found.append((node, operand(node.inputs[0]), operand(node.inputs[1])))
    return found


def costs(
    graph: Graph, items: Sequence[Item], assignment: Assignment | None = None, model: CostModel | None = None
) -> tuple[dict[str, list[NDArray]], dict[str, dict[tuple[int, int], NDArray]]]:
    """Costs [K] of every item by name, and costs [K_i, K_j] of pairs: see Problem.

    size: bytes of packed weight codes. bops: multiply-accumulates times the bits of both operands. With a model, also
    what it says of every product at every width, in milliseconds, bytes, ... (qcompiler.cost.totals), and of the
    conversion where a product reads a value through a second, narrower quantizer. Raises what the model raises.
    """
    linear = {"size": [np.zeros(len(item.bits)) for item in items]}
    crossed: dict[str, dict[tuple[int, int], NDArray]] = {}
    for i, item in enumerate(items):
        if item.kind == "weight":
            count = int(np.prod(graph.shape(graph.ir.initializers[item.values[0]])))
            linear["size"][i] = np.array([(count * bits + 7) // 8 for bits in item.bits], float)
    for node, first, second in products(graph, items):
        macs = float_macs(graph, node)
        tables = {"bops": _table(items, first, second, _bops(macs))}
        if model is not None and assignment is not None:
            price = _Price(graph, node, assignment, model)
            for name in price.names:
                tables[name] = _table(items, first, second, price.of(name))
        for name, table in tables.items():
            rows = linear.setdefault(name, [np.zeros(len(item.bits)) for item in items])
            _add(rows, crossed.setdefault(name, {}), first, second, table, len(items))
    if model is not None and assignment is not None:
        for i, item in enumerate(items):
            for name, row in _conversions(graph, item, assignment, model).items():
                rows = linear.setdefault(name, [np.zeros(len(one.bits)) for one in items])
                rows[i] = rows[i] + row
    return linear, {name: pairs for name, pairs in crossed.items() if pairs}


def _bits(token: str) -> int:
    return parse_format(token).bits


def _bops(macs: int) -> _Of:
    return lambda weight, activation, token: float(macs) * weight * activation


class _Price:
    """What a target's model says of one product, by the bits of its second and its first operand."""

    def __init__(self, graph: Graph, node: ir.Node, assignment: Assignment, model: CostModel) -> None:
        self.work, self.model = work_of(graph, node), model
        self.output = widths_of(graph, node, assignment).output
        self.weighted = decisions.weight_of(graph, node) is not None
        self.names = [name for name in self._at(8, 8) if name not in WHOLE]

    def _at(self, second: int, first: int, token: str = "") -> dict[str, float]:
        widths = (
            Widths(second, (first,), self.output, token) if self.weighted
            else Widths(None, (first, second), self.output)
        )  # fmt: skip
        return totals(self.model.cost(self.work, widths))

    def of(self, name: str) -> _Of:
        """See _Of."""
        return lambda second, first, token: self._at(second, first, token).get(name, 0.0)


def _conversions(graph: Graph, item: Item, assignment: Assignment, model: CostModel) -> dict[str, NDArray]:
    """What it costs to read a value anew, narrower: [K] by name. Nothing where all readers have the same width."""
    if item.kind == "weight" or not item.inner or item.pinned:
        return {}
    found: dict[str, NDArray] = {}
    by_name = {str(value.name): value for value in graph.values()}
    for member in item.values:
        shape, own = graph.shape(by_name[member]), assignment.activations[member].format.bits
        work = Work("activation", "Identity", (shape,), shape)
        for k, bits in enumerate(item.bits):
            for name, value in (totals(model.cost(work, Widths(None, (own,), bits))) if bits < own else {}).items():
                if name not in WHOLE:
                    found.setdefault(name, np.zeros(len(item.bits)))[k] += value
    return found


def _item(
    name: str, kind: str, values: tuple[str, ...], offered: Sequence[int], bits: int, fixed: bool, inner: bool = False
) -> Item:
    if fixed or not offered:
        return Item(name, kind, values, (bits,), inner, True)
    return Item(name, kind, values, tuple(sorted(set(offered))), inner)


def _least_error(assignment: Assignment, name: str, array: NDArray, bits: int, minifloats: Sequence[str]) -> str:
    """The format of so many bits, integer or one of `minifloats`, that rounds a weight with the least squared error."""
    tokens = [weight_token(bits), *(token for token in minifloats if parse_format(token).bits == bits)]
    if len(tokens) == 1:
        return tokens[0]

    def error(token: str) -> float:
        spec = replace(assignment.constants[name], format=parse_format(token))
        return float(np.square(fake_quantize(array, constant_params(assignment, spec, array)) - array).sum())

    return min(tokens, key=error)


def _activation(
    graph: Graph,
    assignment: Assignment,
    by_name: Mapping[str, ir.Value],
    name: str,
    group: tuple[str, ...],
    offered: Sequence[int],
) -> Item:
    inner = any(_reads_otherwise(graph, by_name[member]) for member in assignment.group_of(name))
    bits = _operand_bits(assignment, name)
    fixed = bits > 8 or bool(assignment.pinned.intersection(group)) or name in assignment.params
    inner = inner or bool(assignment.narrowed.keys() & {*group})
    read = tuple(member for member in group if not inner or decisions.operand_uses(graph, by_name[member]))
    return _item(name, "activation", read, offered, bits, fixed, inner)


def _operand_bits(assignment: Assignment, name: str) -> int:
    spec = assignment.narrowed.get(name) or assignment.activations[name]
    return spec.format.bits


def _operands(graph: Graph, node: ir.Node) -> list[tuple[ir.Node, int]]:
    """Inputs of a product that are activations."""
    if decisions.weight_of(graph, node) is not None:
        return [(node, 0)]
    return [(node, 0), (node, 1)] if decisions.is_product_of_activations(graph, node) else []


def _reads_otherwise(graph: Graph, value: ir.Value) -> bool:
    """Whether something but products (and what only moves it) reads a value, or it is an output."""
    readers = [
        use
        for use in value.uses()
        if (use.node, use.idx) not in _operands(graph, use.node) and not moves_only(use.node)
        and use.node.op_type != "Concat"
    ]  # fmt: skip
    return bool(readers) or value.is_graph_output()


def _narrow(assignment: Assignment, name: str, bits: int) -> None:
    own = assignment.activations[name]
    before = assignment.narrowed.pop(name, own)
    if bits < own.format.bits:
        fmt = Int(bits, signed=before.format.signed)
        assignment.narrowed[name] = QuantSpec(fmt, scale_type=own.scale_type, symmetric=before.symmetric)


def _table(items: Sequence[Item], first: Any, second: Any, cost: _Of) -> NDArray[np.float64]:
    """[K_first, K_second]."""
    widths = [items[one].bits if isinstance(one, int) else (int(one),) for one in (first, second)]
    tokens = [""] * len(widths[1])
    if isinstance(second, int):
        formats = [parse_format(token) for token in items[second].tokens]
        tokens = [fmt.token if isinstance(fmt, Minifloat) else "" for fmt in formats] or tokens
    return np.array([[cost(w, a, token) for w, token in zip(widths[1], tokens, strict=True)] for a in widths[0]])


def _add(
    rows: list[NDArray], pairs: dict[tuple[int, int], NDArray], first: Any, second: Any, table: NDArray, count: int
) -> None:
    """Put a product's costs where they belong: an operand with one option leaves a cost of the other alone."""
    if isinstance(first, int) and first == second:
        rows[first] = rows[first] + np.diag(table)
    elif isinstance(first, int) and table.shape[1] == 1:
        rows[first] = rows[first] + table[:, 0]
    elif isinstance(second, int) and table.shape[0] == 1:
        rows[second] = rows[second] + table[0]
    elif isinstance(first, int) and isinstance(second, int):
        key, one = ((first, second), table) if first < second else ((second, first), table.T)
        pairs[key] = pairs[key] + one if key in pairs else one
    elif count:
        rows[0] = rows[0] + table.item()  # two operands that nobody chooses: a constant
