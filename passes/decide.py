"""Choose the format of every value by rules; leave an Assignment in the context.

1. `precision` gives the formats of weights (symmetric, per output channel, narrow at 8 bits) and activations
   (asymmetric, unsigned, per tensor).
2. Below 8 bits the first and last weighted layers, and the values they read, stay at 8 bits (`keep_first_last`).
3. Rules refine it; the last one that matches a node wins, key by key. `activation` is the format of what the node
   writes (for a matched graph input: of that input).
4. Nodes that `exclude` matches, and the values they read and write, get `exclude_bits`.
5. Values that must share parameters get the widest format among them.
6. Values with a quantizer that the model came with are not decided here, and constants on a given grid keep it.
7. Before the rules, `wide` gives 16 bits to the values of `qcompiler.widths`, if the target has them.
8. What rules, `exclude` and `keep_first_last` (at any precision) fix is marked, so that a search leaves it alone.
9. The precision is that of the operands of products. Below 8 bits, values that no product reads (what is added, pooled
   or normalized) keep `inner_bits`; where a product reads such a value as well, it does so through a second quantizer.
10. A minifloat of activations is that of what products read. Values that a product with weights makes and only products
   read are in it; others have `inner_bits` (16 where the minifloat has more than 2 exponent bits, if the target has
   them), and products read them through a second quantizer. Where nothing is negative the sign's bit goes to the
   mantissa: e2m1 becomes ue2m2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from qcompiler import assignment as decisions
from qcompiler import widths
from qcompiler.assignment import WEIGHTED, Assignment
from qcompiler.context import Context
from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.formats import Blocks, Int, Minifloat, QuantSpec, ScaleType, parse_format, per_channel
from qcompiler.graph import qdq
from qcompiler.graph.analysis import moves_only
from qcompiler.graph.given import GIVEN_KEY, given_params
from qcompiler.graph.islands import is_island
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage
from qcompiler.precision import activation_token, check_minifloats, parse_formats, weight_token, without_sign
from qcompiler.rules import checked_rule, compiled

STAGE = (Stage.FLOAT, Stage.FLOAT)


@dataclass(frozen=True, kw_only=True)
class Options:
    precision: str = "w8a8"
    """Bits of weights and activations, as w4a8, or their formats, as e2m1w-int8a."""
    keep_first_last: bool = True
    """Below 8 bits, keep the first and the last weighted layer at 8 bits."""
    exclude: tuple[str, ...] = ()
    """Regular expressions of node names that are not quantized below `exclude_bits`."""
    exclude_bits: int = 8
    """8, or 16 (activations only; weights then have 8)."""
    symmetric: bool = False
    """Signed activations with zero point 0."""
    per_tensor: bool = False
    """One scale for all channels of a weight, for tools and chips that have no per-channel scales."""
    power_of_two: bool = False
    """Scales of activations and weights are powers of two."""
    inner_bits: int = 8
    """Least bits of values that no product reads; 2 to give all values the bits of the precision."""
    wide: bool = True
    """16 bits for inputs of normalizations, scores of attention, gates and phases; see qcompiler/widths.py."""
    rules: tuple[Mapping[str, Any], ...] = ()
    """Tables with `match` (regular expression of node names) and/or `op_type`, and `weight`, `activation`, `method`."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """Leave `context.assignment`. Raises RecipeError (bad rule), UnsupportedError (bits that the target lacks)."""
    rules = [checked_rule(rule, i) for i, rule in enumerate(options.rules)]
    excluded = [compiled(pattern, "exclude") for pattern in options.exclude]
    can = context.capabilities
    draft = _Draft(graph, options, wide=can is None or 16 in can.activation_bits)
    if isinstance(draft.activation, Minifloat):
        draft.give_minifloat(draft.activation, list(draft.activations))
    elif draft.activation.bits < options.inner_bits:
        draft.keep_inner()
    if options.wide and draft.wide:
        draft.give_wide()
    for name in draft.centred:
        if isinstance(fmt := parse_format(draft.activations[name]), Int):
            draft.activations[name] = activation_token(fmt.bits, symmetric=True)
    for node in {draft.weighted[0], draft.weighted[-1]} if draft.weighted and options.keep_first_last else ():
        draft.widen(node, 8, outputs=False)
    subjects: list[ir.Node | ir.Value] = [*graph.inputs, *graph.nodes()]
    for subject in subjects:
        draft.apply_rules(subject, rules)
    for node in graph.nodes():
        if any(pattern.search(node.name or "") for pattern in excluded):
            draft.widen(node, options.exclude_bits, outputs=True)
    for pattern in excluded:
        if not any(pattern.search(node.name or "") for node in graph.nodes()):
            raise RecipeError(
                f"`{pattern.pattern}` matches no node.",
                where="exclude",
                hint="`qcompile inspect` lists the names of all nodes.",
            )
    result = draft.settle()
    for node in draft.weighted:
        value = decisions.weight_of(graph, node)
        assert value is not None
        if _keep_grid(graph, value, decisions.channel_axis(node, len(graph.shape(value))), result, context):
            continue
        token, per_tensor = draft.weights[value.name or ""], options.per_tensor
        spec = decisions.weight_spec(node, len(graph.shape(value)), token, per_tensor=per_tensor)
        result.constants[value.name or ""] = QuantSpec(spec.format, spec.granularity, draft.scale_type, symmetric=True)
    _assign_operands(graph, draft.weighted, result, context)
    _check_capabilities(graph, draft.weighted, result, context)
    context.assignment = result
    return graph


class _Draft:
    """Format tokens of values and weights by name, until they are settled."""

    def __init__(self, graph: Graph, options: Options, wide: bool) -> None:
        self.graph, self.options, self.wide = graph, options, wide
        weight, self.activation = parse_formats(options.precision)
        self.scale_type: ScaleType = "power_of_two" if options.power_of_two else "float32"
        self.by_name = {str(value.name): value for value in graph.values()}
        self.weighted = [node for node in graph.nodes(*WEIGHTED) if decisions.weight_of(graph, node) is not None]
        token = weight_token(weight.bits) if weight == Int(weight.bits) else weight.token
        self.weights = {_weight_name(graph, node): token for node in self.weighted}
        saturating = not (options.symmetric or options.power_of_two)
        names = decisions.activations(graph, saturating=saturating)
        self.activations = dict.fromkeys(names, activation_token(self.activation.bits, options.symmetric))
        self.centred = widths.centred_values(graph) & set(names)
        self.fine: set[str] = set()
        """Values that have 16 bits for a minifloat alone."""
        self.result = Assignment(groups=decisions.shared_groups(graph))

    def keep_inner(self) -> None:
        """Rule 9."""
        wanted = activation_token(self.options.inner_bits, self.options.symmetric)
        for name, token in self.activations.items():
            group = [self.by_name[member] for member in self.result.group_of(name)]
            readers = {_reader(self.graph, use.node, use.idx) for value in group for use in value.uses()}
            if "other" not in readers and not any(value.is_graph_output() for value in group):
                continue
            self.activations[name] = wanted
            if "product" in readers and decisions.operand_uses(self.graph, self.by_name[name]):
                symmetric = self.options.symmetric or name in self.centred
                self._narrow(name, activation_token(parse_format(token).bits, symmetric), symmetric)

    def give_minifloat(self, fmt: Minifloat, names: Iterable[str]) -> None:
        """Rule 10."""
        symmetric = self.options.symmetric
        inner = activation_token(max(self.options.inner_bits, 8), symmetric)
        fine = activation_token(16, symmetric) if fmt.exponent > 2 and self.wide else inner
        made = {name for node in self.weighted for name in self._written(node)}
        for name in names:
            group = self.result.group_of(name)
            values = [self.by_name[member] for member in group]
            sources = decisions.sources(self.graph, group)
            token = fmt.token
            if all(_never_negative(self.graph, self.by_name[source]) for source in sources):
                token = without_sign(fmt).token
            elif not fmt.signed:
                hint = "Choose a format with a sign, as e2m1."
                raise RecipeError(f"`{name}` may be negative, which {fmt.token} cannot be.", where="rule", hint=hint)
            readers = {_reader(self.graph, use.node, use.idx) for value in values for use in value.uses()}
            alone = readers <= {"product", ""} and not any(value.is_graph_output() for value in values)
            self.result.narrowed.pop(name, None)
            if alone and "product" in readers and made.issuperset(sources):
                self.activations[name] = token
                continue
            read = any(decisions.operand_uses(self.graph, value) for value in values)
            self.activations[name] = fine if read else inner
            if read and fine != inner:
                self.fine.add(name)
            if decisions.operand_uses(self.graph, self.by_name[name]):
                self._narrow(name, token, symmetric)

    def give_wide(self) -> None:
        """Rule 7."""
        direct = widths.direct_values(self.graph)
        for name, token in widths.wide_values(self.graph).items():
            if name not in self.activations:
                continue
            products = decisions.product_uses(self.graph, self.by_name[name])
            if name not in self.result.narrowed and token.startswith("uint") and name not in direct and products:
                self._narrow(name, self.activations[name], self.options.symmetric)
            symmetric = self.options.symmetric or token.startswith("int")
            self.activations[name] = activation_token(parse_format(token).bits, symmetric)
            if token.startswith("int"):
                self.centred.add(name)

    def widen(self, node: ir.Node, bits: int, *, outputs: bool) -> None:
        """Give a node's weight at least 8 bits and the values it reads (and writes) at least `bits`."""
        weight, symmetric = _weight_name(self.graph, node), self.options.symmetric
        if weight in self.weights and parse_format(self.weights[weight]).bits < 8:
            self.weights[weight] = weight_token(8)
        read = [str(value.name) for value in node.inputs if value is not None and value.name in self.activations]
        names = [*read, *(self._written(node) if outputs else ())]
        self.result.pinned |= {weight, *names} - {""}
        for name in names:
            if parse_format(self.activations[name]).bits < bits:
                self.activations[name] = activation_token(bits, symmetric)
        for name in read:
            second = self.result.narrowed.get(name)
            if second is None or second.format.bits >= bits:
                continue
            group = self.result.group_of(name)
            if name in self.fine and not any(other in self.result.narrowed for other in group if other != name):
                fits = activation_token(bits, symmetric)
                self.activations.update({other: fits for other in group if other in self.fine})
            if parse_format(self.activations[name]).bits <= bits:
                del self.result.narrowed[name]
            else:
                kept = symmetric if isinstance(second.format, Minifloat) else second.symmetric
                self._narrow(name, activation_token(bits, kept), kept)

    def apply_rules(self, subject: ir.Node | ir.Value, rules: list[dict[str, Any]]) -> None:
        """What the rules say of a node, or of a graph input."""
        node = subject if isinstance(subject, ir.Node) else None
        for rule in rules:
            if "op_type" in rule and (node is None or node.op_type != rule["op_type"]):
                continue
            if not rule["match"].search(subject.name or ""):
                continue
            written = self._written(node) if node is not None else [subject.name or ""]
            if "activation" in rule:
                written = [name for name in written if name in self.activations]
                self.activations.update(dict.fromkeys(written, rule["activation"]))
                for name in written:
                    self.result.narrowed.pop(name, None)
                if isinstance(fmt := parse_format(rule["activation"]), Minifloat):
                    self.give_minifloat(fmt, written)
                self.result.pinned.update(written)
            if "method" in rule:
                self.result.methods.update(dict.fromkeys(written, rule["method"]))
            weight = _weight_name(self.graph, node) if node is not None else ""
            if "weight" in rule and weight in self.weights:
                self.weights[weight] = rule["weight"]
                self.result.pinned.add(weight)

    def settle(self) -> Assignment:
        """The assignment with all activations: rule 5."""
        for group in self.result.groups:
            members = [name for name in group if name in self.activations]
            tokens = [self.activations[name] for name in members]
            integers = [token for token in tokens if isinstance(parse_format(token), Int)]
            widest = max(integers or tokens, key=lambda token: parse_format(token).bits, default="")
            if integers and self.centred & set(members):
                self.centred |= set(members)
                widest = activation_token(parse_format(widest).bits, symmetric=True)
            self.activations.update(dict.fromkeys(members, widest))
        for name, token in self.activations.items():
            fmt = parse_format(token)
            symmetric = isinstance(fmt, Minifloat) or fmt.signed and (self.options.symmetric or name in self.centred)
            self.result.activations[name] = QuantSpec(fmt, scale_type=self.scale_type, symmetric=symmetric)
        return self.result

    def _narrow(self, name: str, token: str, symmetric: bool) -> None:
        fmt = parse_format(token)
        spec = QuantSpec(fmt, scale_type=self.scale_type, symmetric=symmetric or isinstance(fmt, Minifloat))
        self.result.narrowed[name] = spec

    def _written(self, node: ir.Node) -> list[str]:
        """Names of the quantized values that hold what `node` writes: behind its bias and fused clip."""
        add = decisions.bias_add(self.graph, node)
        node = add if add is not None else node
        clip = decisions.fused_clip(self.graph, node)
        names = [str(value.name) for value in (*node.outputs, *(clip.outputs[:1] if clip is not None else ()))]
        return [name for name in names if name in self.activations]


def _reader(graph: Graph, node: ir.Node, index: int) -> str:
    """How a node reads a value: as operand of a product, only to move it, or otherwise."""
    if decisions.is_product_of_activations(graph, node) or (
        index == 0 and decisions.weight_of(graph, node) is not None
    ):
        return "product"
    return "" if moves_only(node) or node.op_type == "Concat" else "other"


def _never_negative(graph: Graph, value: ir.Value) -> bool:
    """Whether a Relu, a Clip from 0 on, a Sigmoid or a Softmax makes the value."""
    maker = value.producer()
    bounds = decisions.clip_bounds(graph, maker)
    return (bounds is not None and bounds[0] == 0) or maker is not None and maker.op_type in ("Sigmoid", "Softmax")


def _weight_name(graph: Graph, node: ir.Node) -> str:
    value = decisions.weight_of(graph, node)
    return (value.name or "") if value is not None else ""


def _assign_operands(graph: Graph, weighted: list[ir.Node], result: Assignment, context: Context) -> None:
    """Constants beside activations (x + c, x * c, Concat, PRelu's slope stays float): the format of the other side."""
    for node in graph.nodes("Add", "Sub", "Mul", "Div", "Sum", "Concat", "MatMul", "Gemm", "Min", "Max", "Where"):
        if node in weighted or any(decisions.bias_add(graph, w) is node for w in weighted if w.op_type == "MatMul"):
            continue
        if is_island(node):
            continue  # it reads constants as they are
        if decisions.scaled_product(graph, node) is not None:
            continue  # the factor goes into the requantization
        if decisions.softmax_mask(graph, graph.sole_user(node.outputs[0])) is not None:
            continue  # the constant is a mask, not a number
        formats = [spec for value in node.inputs if (spec := _spec_of(graph, value, result)) is not None]
        for value in node.inputs:
            if value is None or not decisions.is_float(value) or graph.const(value) is None or not formats:
                continue
            if _keep_grid(graph, value, None, result, context):
                continue
            widest = max(formats, key=lambda spec: spec.format.bits)
            fmt = widest.format
            if fmt.bits < 8 or not isinstance(fmt, Int):
                fmt = Int(8, signed=fmt.signed)
            result.constants[value.name or ""] = QuantSpec(fmt, symmetric=widest.symmetric)


def _spec_of(graph: Graph, value: ir.Value | None, result: Assignment) -> QuantSpec | None:
    """The format of a value, chosen here or given."""
    given = qdq.quantizer_of(graph, value)
    if given is not None:
        fmt = given.params.format
        return QuantSpec(fmt, symmetric=fmt.signed and not given.params.zero_point.any())
    return result.activations.get(value.name or "") if value is not None else None


def _keep_grid(graph: Graph, value: ir.Value, axis: int | None, result: Assignment, context: Context) -> bool:
    """Whether a constant keeps the grid that it came with."""
    name, array = value.name or "", graph.const(value)
    assert array is not None
    params = given_params(value, array, axis)
    if params is None:
        if GIVEN_KEY in value.metadata_props:
            context.note(value, "left the grid that it came with; quantized anew")
        return False
    can, fmt = context.capabilities, params.format
    if can is not None and isinstance(fmt, Minifloat | Blocks) and fmt.token not in can.weight_minifloats:
        context.note(value, f"came in {fmt}, which the target lacks; quantized anew")
        return False
    granularity = QuantSpec(params.format).granularity if params.axis is None else per_channel(params.axis)
    result.constants[name] = QuantSpec(params.format, granularity, symmetric=not params.zero_point.any())
    result.params[name] = params
    return True


def _check_capabilities(graph: Graph, weighted: list[ir.Node], result: Assignment, context: Context) -> None:
    can, where = context.capabilities, str(graph.path or "")
    names = {_weight_name(graph, node): node for node in weighted}
    check_minifloats(can, "weights", ((name, result.constants[name].format) for name in names), where)
    read = [*result.activations.items(), *result.narrowed.items()]
    check_minifloats(can, "activations", ((name, spec.format) for name, spec in read), where)
    if can is None:
        return
    for what, specs, offered in (
        ("weights", {n: result.constants[n] for n in names}, can.weight_bits),
        ("activations", result.activations, can.activation_bits),
    ):
        lacking = {name: spec.format.bits for name, spec in specs.items() if spec.format.bits not in offered}
        if lacking:
            name, bits = next(iter(lacking.items()))
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise UnsupportedError(
                f"the target has no {bits}-bit {what} (`{name}`{more}).",
                where=graph.path,
                hint=f"It offers {', '.join(map(str, offered))} bits; choose another --precision.",
            )
