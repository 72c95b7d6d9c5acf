"""The one carrier of quantization decisions: value name -> QuantSpec, and later -> QuantParams.

Which values get a quantizer follows from the graph's structure (`activations`), what they get is decided by rules or by
a search (`passes/decide.py`), the numbers come from statistics (`passes/set_ranges.py`), and `passes/insert_qdq.py`
writes them into the graph. From then on the nodes are the truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qcompiler.formats import QuantParams, QuantSpec, parse_format, per_channel
from qcompiler.graph import analysis
from qcompiler.graph.analysis import moves_only, ties
from qcompiler.graph.islands import inside, is_island
from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.qdq import is_quantizer
from qcompiler.graph.state import state_pairs

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose constant second input is a weight, quantized per output channel, with a bias of 32 bits."""
FUSES_CLIP = (*WEIGHTED, "Add", "Sub", "Mul", "Sum")
"""Operators that saturate as part of requantization, so that a Relu or Clip behind them needs no quantizer between."""


@dataclass(eq=False)
class Assignment:
    """Decisions by value name; `activations` and `constants` are the values with a quantizer.

    groups: names that must share parameters (each name is in at most one). methods: range method of a value, when it
    differs from the default. narrowed: a second, narrower quantizer of a value, through which products read it.
    pinned: names of values and weights whose format the user fixed; a search leaves them alone.
    weight_method, weight_power: how ranges of constants are found; passes that change a weight after set_ranges find
    its range in the same way.
    """

    activations: dict[str, QuantSpec] = field(default_factory=dict)
    constants: dict[str, QuantSpec] = field(default_factory=dict)
    groups: list[list[str]] = field(default_factory=list)
    methods: dict[str, str] = field(default_factory=dict)
    narrowed: dict[str, QuantSpec] = field(default_factory=dict)
    narrowed_params: dict[str, QuantParams] = field(default_factory=dict)
    params: dict[str, QuantParams] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    weight_method: str = "auto"
    weight_power: float = 2.4

    def group_of(self, name: str) -> list[str]:
        """The names that share parameters with `name`, itself included."""
        return next((group for group in self.groups if name in group), [name])

    def operand(self, name: str) -> QuantSpec | None:
        """The format that products read a value in; None for one that is not quantized."""
        return self.narrowed.get(name) or self.activations.get(name)

    def describe(self) -> dict[str, str]:
        """Value name -> format token, for the report."""
        return {name: spec.format.token for name, spec in (*self.activations.items(), *self.constants.items())}


def is_float(value: ir.Value | None) -> bool:
    """Whether `value` is a float32 tensor (unknown types count as float)."""
    return value is not None and value.dtype in (None, ir.DataType.FLOAT)


def has_quantizer(value: ir.Value) -> bool:
    """Whether a quantizer reads the value: the model came with it."""
    return any(is_quantizer(use.node) for use in value.uses())


def _only_clipped(graph: Graph, value: ir.Value) -> bool:
    """Whether only a Relu or Clip reads the value, and a quantizer what it makes: saturation performs the clip."""
    user = graph.sole_user(value)
    return user is not None and clip_bounds(graph, user) is not None and has_quantizer(user.outputs[0])


def weight_of(graph: Graph, node: ir.Node) -> ir.Value | None:
    """The constant weight of a Conv, ConvTranspose, Gemm or MatMul, else None."""
    if node.op_type not in WEIGHTED or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2 or is_island(node):
        return None
    weight = node.inputs[1]
    return weight if weight is not None and graph.const(weight) is not None else None


def channel_axis(node: ir.Node, rank: int) -> int | None:
    """The axis of a weight that holds output channels, None if there is none with a scale of its own.

    Conv [M, C/group, ...]: 0. ConvTranspose [C, M/group, ...]: 1, unless grouped. Gemm [K, N]: 1, transposed 0.
    MatMul [K, N]: 1.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if rank == 2 else None


def weight_spec(node: ir.Node, rank: int, token: str, *, per_tensor: bool = False) -> QuantSpec:
    """Symmetric, per output channel unless `per_tensor`."""
    axis = None if per_tensor else channel_axis(node, rank)
    granularity = QuantSpec(parse_format(token)).granularity if axis is None else per_channel(axis)
    return QuantSpec(parse_format(token), granularity, symmetric=True)


def clip_bounds(graph: Graph, node: ir.Node | None) -> tuple[float, float] | None:
    """Bounds of a Relu or of a Clip with constant bounds around 0, else None."""
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    bounds = []
    for i, default in ((1, -np.inf), (2, np.inf)):
        given = node.inputs[i] if len(node.inputs) > i else None
        constant = graph.const(given)
        if given is not None and constant is None:
            return None
        bounds.append(default if constant is None else float(constant.reshape(-1)[0]))
    low, high = bounds
    return (low, high) if low <= 0.0 <= high else None


def fused_clip(graph: Graph, node: ir.Node) -> ir.Node | None:
    """The Relu or Clip that requantization behind `node` can perform, else None."""
    if node.op_type not in FUSES_CLIP or node.domain not in ("", "ai.onnx") or is_island(node):
        return None
    user = graph.sole_user(node.outputs[0])
    return user if user is not None and clip_bounds(graph, user) is not None else None


def product_uses(graph: Graph, value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Where products with weights read a value: (node, index of the input)."""
    return [(use.node, use.idx) for use in value.uses() if use.idx == 0 and weight_of(graph, use.node) is not None]


def operand_uses(graph: Graph, value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Where products read a value, with weights or of two activations: (node, index of the input)."""
    others = [(use.node, use.idx) for use in value.uses() if is_product_of_activations(graph, use.node)]
    return product_uses(graph, value) + others


def bias_add(graph: Graph, node: ir.Node) -> ir.Node | None:
    """The Add of a constant [N] right behind a MatMul with constant weight: its bias. Else None."""
    weight = weight_of(graph, node)
    if node.op_type != "MatMul" or weight is None:
        return None
    add = graph.sole_user(node.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    other = next((value for value in add.inputs if value is not node.outputs[0]), None)
    bias = graph.const(other)
    columns = graph.shape(weight)[-1]
    return add if bias is not None and bias.size == columns and bias.shape[-1:] == (columns,) else None


def is_product_of_activations(graph: Graph, node: ir.Node | None) -> bool:
    """Whether `node` is a MatMul neither of whose operands is a constant."""
    return (
        node is not None
        and node.op_type == "MatMul"
        and node.domain in ("", "ai.onnx")
        and not any(_is_constant(graph, value) for value in node.inputs)
    )


def _is_constant(graph: Graph, value: ir.Value | None) -> bool:
    """A constant, or (in a QDQ graph) its codes behind a DequantizeLinear."""
    if value is None or graph.const(value) is not None:
        return True
    producer = value.producer()
    quantized = producer is not None and producer.op_type == "DequantizeLinear"
    return quantized and graph.const(producer.inputs[0]) is not None  # type: ignore[union-attr]


def scaled_product(graph: Graph, node: ir.Node | None) -> tuple[ir.Node, float] | None:
    """(MatMul, factor) if `node` is a Mul, by a positive scalar, of a MatMul of two activations that nothing else
    reads: requantization multiplies by the factor. Else None."""
    if node is None or node.op_type != "Mul" or node.domain not in ("", "ai.onnx"):
        return None
    for product, other in (node.inputs[:2], node.inputs[1::-1]):
        factor = graph.const(other)
        if factor is None and other is not None and other.producer() is not None:
            factor = _dequantized(graph, other.producer())
        maker = product.producer() if product is not None else None
        if factor is None or factor.size != 1 or not factor.item() > 0 or not is_product_of_activations(graph, maker):
            continue
        if graph.sole_user(product) is node and graph.shape(product) == graph.shape(node.outputs[0]):
            return maker, float(factor.item())  # type: ignore[return-value]
    return None


def _dequantized(graph: Graph, node: ir.Node | None) -> np.ndarray | None:
    from qcompiler.graph.qdq import is_quantizer, read_bias, read_quantizer
    from qcompiler.quantizer import dequantize

    if node is None or not is_quantizer(node) or read_bias(graph, node) is not None:
        return None
    found = read_quantizer(graph, node)
    return None if found.codes is None else dequantize(found.codes, found.params)


MASKED = -1e4
"""What is added to a score before a Softmax to hide it is at most this."""
HIDDEN = -30.0
"""A quantized mask hides where it is at most this: exp(-30) is nothing beside the codes of a probability."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Softmax reads `add` = scores + mask; `cells` is True where a constant mask hides, None for one that is computed.

    Cells and mask broadcast to the scores.
    """

    add: ir.Node
    scores: ir.Value
    mask: ir.Value
    cells: np.ndarray | None


def softmax_mask(graph: Graph, node: ir.Node | None) -> Mask | None:
    """The mask before a Softmax: a constant of zeros and large negative values, or a value that is made by a factor
    (or a choice) of such a value. Else None."""
    if node is None or node.op_type != "Softmax" or node.domain not in ("", "ai.onnx"):
        return None
    add = node.inputs[0].producer() if node.inputs[0] is not None else None
    if add is None or graph.sole_user(add.outputs[0]) is not node:
        return None
    if add.op_type == "Where":
        return _chosen_mask(graph, add)
    if add.op_type != "Add":
        return None
    for scores, other in (add.inputs[:2], add.inputs[1::-1]):
        if scores is None or other is None or graph.shape(scores) != graph.shape(add.outputs[0]):
            continue
        constant = graph.const(other)
        if constant is not None:
            hidden = constant <= MASKED
            if hidden.any() and ((constant == 0) | hidden).all():
                return Mask(add, scores, other, hidden)
        elif _makes_mask(graph, other):
            return Mask(add, scores, other, None)
    return None


def _chosen_mask(graph: Graph, where: ir.Node) -> Mask | None:
    """Where(constant condition, scores, large negative value), or the other way round."""
    condition = graph.const(where.inputs[0])
    for scores, other, hides in ((where.inputs[1], where.inputs[2], False), (where.inputs[2], where.inputs[1], True)):
        far = graph.const(other)
        if condition is None or far is None or scores is None or other is None or not (far <= MASKED).all():
            continue
        if graph.const(scores) is None and graph.shape(scores) == graph.shape(where.outputs[0]):
            return Mask(where, scores, other, condition.astype(bool) == hides)
    return None


def _makes_mask(graph: Graph, value: ir.Value) -> bool:
    while (node := value.producer()) is not None:
        scalars = [graph.const(v) if v is not None else None for v in node.inputs]
        dequantized = [_dequantized(graph, v.producer()) if v is not None else None for v in node.inputs]
        known = [a if a is not None else b for a, b in zip(scalars, dequantized, strict=True)]
        if node.op_type in ("Mul", "Where") and any(
            c is not None and c.size == 1 and c.item() <= MASKED for c in known
        ):
            return True
        rest = [v for v, c in zip(node.inputs, known, strict=True) if c is None and v is not None]
        if len(rest) != 1 or not (moves_only(node) or node.op_type in ("QuantizeLinear", "DequantizeLinear", "Clip")):
            return False
        value = rest[0]
    return False


def activations(graph: Graph, *, saturating: bool = True) -> list[str]:
    """Names of the float values that get a quantizer, in topological order: graph inputs and every node output, except
    the output of a node whose Relu or Clip is performed by saturation, of a MatMul before its bias or its scalar
    factor, of scores with a mask before a Softmax, values within a float island, and values that the model came with
    a quantizer for.

    saturating: whether ranges end at the bounds of a clip (not so for symmetric formats).
    """
    mixed = _mixed_groups(graph) if saturating else set()
    names = [v.name for v in graph.inputs if is_float(v) and not has_quantizer(v) and not _only_clipped(graph, v)]
    for node in graph.nodes():
        if bias_add(graph, node) is not None or is_quantizer(node):
            continue
        user = graph.sole_user(node.outputs[0])
        if scaled_product(graph, user) is not None or _masks(graph, node, user):
            continue
        clip = fused_clip(graph, node) if saturating else None
        if clip is not None and clip.outputs[0].name not in mixed:
            continue
        names += [v.name for v in node.outputs if is_float(v) and v.name and not has_quantizer(v) and not inside(v)]
    return [name for name in names if name is not None]


def _masks(graph: Graph, node: ir.Node, user: ir.Node | None) -> bool:
    found = softmax_mask(graph, user)
    return found is not None and found.add is node


def shared_groups(graph: Graph) -> list[list[str]]:
    """Names of values that must share parameters, since some operator moves codes between them; in graph order.

    All inputs of a Concat share, whoever else reads them, constants too.
    """
    pairs = ties(graph, concat_single_reader=False)
    for node in graph.nodes("Concat"):
        constants = [v for v in node.inputs if is_float(v) and graph.const(v) is not None]
        pairs += [(str(value.name), str(node.outputs[0].name)) for value in constants if value is not None]
    pairs += state_pairs(graph).items()  # the codes of one step are those of the next
    by_name = {value.name: value for value in graph.values()}
    pairs = [(a, b) for a, b in pairs if is_float(by_name.get(a)) and is_float(by_name.get(b))]
    order = {value.name: i for i, value in enumerate(graph.values())}
    return [sorted(group, key=lambda name: order.get(name, 0)) for group in analysis.shared_groups(graph, pairs)]


def sources(graph: Graph, group: Iterable[str]) -> list[str]:
    """Members of a group that data movement does not make: their ranges decide."""
    group = list(group)
    moved = {
        value.name
        for node in graph.nodes()
        if node.op_type in ("Concat", "CacheWrite") or moves_only(node)
        for value in node.outputs
    }
    return [name for name in group if name not in moved] or group[:1]


def _mixed_groups(graph: Graph) -> set[str]:
    """Values behind a clip whose group also holds values with other bounds: the shared range leaves the bounds."""
    bounds: dict[str, tuple[float, float] | None] = {}
    for node in graph.nodes("Relu", "Clip"):
        bounds[node.outputs[0].name or ""] = clip_bounds(graph, node)
    mixed: set[str] = set()
    for group in shared_groups(graph):
        of_group = {bounds.get(name) for name in sources(graph, group)}
        if len(of_group) > 1:
            mixed.update(name for name in group if bounds.get(name) is not None)
    return mixed
