"""What a choice of widths costs: vocabulary of cost models, and the one that works for every target.

`work_of` says what a node of a FLOAT graph has to do (shapes, weights, products) without its bits; a model prices work
at widths, by itself and so additively; `whole` prices a finished INTEGER graph, with what only the whole shows (the
arena, conversions between neighbours, kernels that are shared). Models are pure: equal arguments, equal costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import onnx_ir as ir

from qcompiler.assignment import (
    Assignment,
    bias_add,
    fused_clip,
    is_product_of_activations,
    scaled_product,
    softmax_mask,
    weight_of,
)
from qcompiler.formats import Minifloat, parse_format
from qcompiler.graph.islands import is_island
from qcompiler.graph.model import Graph, attribute, attributes
from qcompiler.graph.qdq import FORMAT_KEY, MINIFLOAT_KEY, is_quantizer
from qcompiler.ops.macs import float_macs, node_macs


@dataclass(frozen=True)
class Cost:
    """latency: milliseconds; weight_bytes: constants as stored; peak_bytes: memory of values that live at once;
    resources: everything else by name (bops, instructions, flash_bytes, ...)."""

    latency: float = 0.0
    weight_bytes: int = 0
    peak_bytes: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Cost) -> Cost:
        """One after the other: all add up but the peak, which is the larger one."""
        names = [*self.resources, *(name for name in other.resources if name not in self.resources)]
        both = {name: self.resources.get(name, 0) + other.resources.get(name, 0) for name in names}
        latency, weights = self.latency + other.latency, self.weight_bytes + other.weight_bytes
        return Cost(latency, weights, max(self.peak_bytes, other.peak_bytes), both)


@dataclass(frozen=True)
class Widths:
    """Bits of a node's weight (None: it has none), of the activations it reads, in order, and of what it writes.

    weight_format: token of the weight's format where that is a minifloat.
    """

    weight: int | None
    inputs: tuple[int, ...]
    output: int
    weight_format: str = ""


@dataclass(frozen=True)
class Work:
    """What a node has to do.

    kind: conv, dense (a constant matrix), matmul (of two activations), add, mul, activation (a function of one value),
    softmax, norm, pool, mean, move, free (done by another node's kernel, or by no kernel) or other (not priced).
    inputs: shapes of activations (a constant operand of add and mul counts as one); output: shape; weight: [M, C/g, *K]
    of conv ([C, M/g, *K] if transposed), [K, N] of dense, else (); attributes: sorted, values hashable.
    """

    kind: str
    op_type: str
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    weight: tuple[int, ...] = ()
    attributes: tuple[tuple[str, Any], ...] = ()
    macs: int = 0

    @property
    def channels(self) -> int:
        """Output channels of conv and dense, else 0."""
        if not self.weight:
            return 0
        return self.output[1] if self.kind == "conv" else self.weight[1]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; tuples as lists."""
        value = dict(self.attributes).get(name, default)
        return list(value) if isinstance(value, tuple) else value


def totals(cost: Cost) -> dict[str, float]:
    """What budgets are held against, by their names: latency (ms), ram, flash (bytes), instructions, energy, lut (of a
    circuit); those that the cost tells. `ram` is that of a whole graph where the model knows it, else the peak. With
    room for the error of what is estimated of them (resources `flash_error`, `ram_error`)."""
    found = {"latency": cost.latency, "ram": float(cost.resources.get("ram_bytes", cost.peak_bytes))}
    keys = {"flash": "flash_bytes", "instructions": "instructions", "energy": "energy", "lut": "lut"}
    for name, key in keys.items():
        if key in cost.resources:
            found[name] = float(cost.resources[key])
    found = {name: value + cost.resources.get(f"{name}_error", 0) for name, value in found.items()}
    return {name: value for name, value in found.items() if value or name not in ("latency", "ram")}


class CostModel(Protocol):
    """Prices work at widths. `origin`: device, date and how it was measured, '' for what needs no measurement."""

    @property
    def origin(self) -> str:
        """See above."""
        ...

    def cost(self, work: Work, widths: Widths) -> Cost:
        """Of one node alone; costs of a graph's nodes add up to about that of the whole."""
        ...

    def whole(self, graph: Graph) -> Cost:
        """Of an INTEGER graph."""
        ...


PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "BatchMatMul")
"""Integer operators that multiply."""
FREE = ("Constant", "Dropout", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze")
MOVES = ("Concat", "DepthToSpace", "Expand", "Gather", "Pad", "Resize", "Slice", "Split", "Tile", "Transpose")
NORMS = ("GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")
ACTIVATIONS = (
    "Abs", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
    "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_KINDS = {
    "Add": "add", "Sub": "add", "Mul": "mul", "Softmax": "softmax", "MaxPool": "pool", "AveragePool": "pool",
    "GlobalAveragePool": "mean", "ReduceMean": "mean",
    **dict.fromkeys(FREE, "free"), **dict.fromkeys(MOVES, "move"), **dict.fromkeys(NORMS, "norm"),
    **dict.fromkeys(ACTIVATIONS, "activation"),
}  # fmt: skip


def work_of(graph: Graph, node: ir.Node) -> Work:
    """The work of a node of a FLOAT graph (prepared: BatchNorm folded). Raises ModelError for unknown shapes.

    A Relu, Clip, bias or scalar factor that the kernel before performs is `free`; so are quantizers.
    """
    kind = _kind_of(graph, node)
    output = graph.shape(node.outputs[0])
    weight = weight_of(graph, node)
    shape: tuple[int, ...] = ()
    values = [v for v in node.inputs if v is not None and v is not weight]
    if weight is not None:
        shape = graph.shape(weight)
        if node.op_type == "Gemm" and attribute(node, "transB", 0):
            shape = shape[::-1]
    taken = 2 if kind in ("add", "mul", "matmul") else 1
    read = tuple(graph.shape(v) for v in values[:taken]) if kind not in ("free", "other") else ()
    kept = tuple(sorted((k, _frozen(v)) for k, v in attributes(node).items())) if kind not in ("free", "other") else ()
    return Work(kind, node.op_type, read, output, shape, kept, float_macs(graph, node))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value if isinstance(value, int | float | str) else str(value)


def _kind_of(graph: Graph, node: ir.Node) -> str:
    if is_quantizer(node):
        return "free"
    if node.domain not in ("", "ai.onnx", "com.microsoft") or is_island(node):
        return "other"
    if weight_of(graph, node) is not None:
        return "conv" if node.op_type in ("Conv", "ConvTranspose") else "dense"
    if node.op_type == "MatMul":
        return "matmul"
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        if maker is not None and node in (fused_clip(graph, maker), bias_add(graph, maker)):
            return "free"
    user = graph.sole_user(node.outputs[0])
    masked = softmax_mask(graph, user)
    if scaled_product(graph, node) is not None or (masked is not None and masked.add is node):
        return "free"
    return _KINDS.get(node.op_type, "other")


def widths_of(graph: Graph, node: ir.Node, assignment: Assignment, unknown: int = 8) -> Widths:
    """The bits that an assignment gives a node of the FLOAT graph that it was decided on.

    Products read a value through its second, narrower quantizer where it has one. The output is what leaves the node's
    kernel, behind a bias, factor or clip. unknown: bits of values without a format. Activations in a minifloat have the
    bits of its levels, which kernels read and write.
    """
    weight = weight_of(graph, node)
    spec = assignment.constants.get(str(weight.name)) if weight is not None else None
    product = weight is not None or is_product_of_activations(graph, node)

    def bits(value: ir.Value, narrow: bool) -> int:
        name = str(value.name)
        found = assignment.narrowed.get(name) if narrow else None
        found = found or assignment.activations.get(name) or assignment.constants.get(name)
        if found is None:
            return unknown
        fmt = found.format
        return fmt.level_bits if isinstance(fmt, Minifloat) else fmt.bits

    work = work_of(graph, node)
    read = [v for v in node.inputs if v is not None and v is not weight][: len(work.inputs)]
    value = node.outputs[0]
    while str(value.name) not in assignment.activations:
        user = graph.sole_user(value)
        if user is None or work_of(graph, user).kind != "free":
            break
        value = user.outputs[0]
    width = None if weight is None else (spec.format.bits if spec is not None else unknown)
    token = spec.format.token if spec is not None and isinstance(spec.format, Minifloat) else ""
    return Widths(width, tuple(bits(v, product) for v in read), bits(value, False), token)


def additive(model: CostModel, graph: Graph, assignment: Assignment) -> Cost:
    """The sum over all nodes of the FLOAT graph that an assignment was decided on."""
    total = Cost()
    for node in graph.nodes():
        total += model.cost(work_of(graph, node), widths_of(graph, node, assignment))
    return total


def stored_bytes(bits: int) -> int:
    """Bytes of an activation's element: one up to 8 bits, else two."""
    return 1 if bits <= 8 else 2


def value_bytes(work: Work, widths: Widths) -> int:
    """Bytes of what a node reads and writes, all of which lives while it runs."""
    sizes = zip(work.inputs, widths.inputs, strict=False)
    return sum(prod(s) * stored_bytes(b) for s, b in sizes) + prod(work.output) * stored_bytes(widths.output)


def bops(work: Work, widths: Widths) -> int:
    """Bit operations: products times the bits of both factors (HAWQ-V3, arXiv:2011.10680, section 3.4)."""
    if not work.macs or not widths.inputs:
        return 0
    other = widths.weight if widths.weight is not None else widths.inputs[-1]
    return work.macs * other * widths.inputs[0]


@dataclass(frozen=True)
class BytesAndBops:
    """Bytes of weights and bit operations, from shapes alone: no latency.

    packed: weights of less than 8 bits share bytes (each weight rounded up to whole bytes at its end), else a byte each
    up to 8 bits. Biases are int32. resources: `bops`.
    """

    packed: bool = True
    origin: str = ""

    def cost(self, work: Work, widths: Widths) -> Cost:
        """Of one node; a weight of None bits is none."""
        size = 0
        if widths.weight is not None:
            bits = widths.weight if self.packed else 8 * stored_bytes(widths.weight)
            size = -(-prod(work.weight) * bits // 8) + 4 * work.channels if work.weight else 0
        peak = value_bytes(work, widths) if work.kind not in ("free", "other") else 0
        return Cost(0.0, size, peak, {"bops": bops(work, widths)})

    def whole(self, graph: Graph) -> Cost:
        """Of an INTEGER graph, whose values carry their formats."""
        total = Cost()
        for products, size, peak in products_of(graph, self.packed):
            count = products.count * products.weight * products.activation
            total += Cost(0.0, size, peak, {"bops": count})
        return total


@dataclass(frozen=True)
class Products:
    """Multiply-accumulates of a node and the bits of their factors."""

    count: int
    weight: int
    activation: int


def products_of(graph: Graph, packed: bool = True) -> list[tuple[Products, int, int]]:
    """Of each node of an INTEGER graph, whose values carry their formats: its products, bytes of its weights with the
    biases, and bytes of what it reads and writes."""
    found = []
    for node in graph.nodes():
        activation, weight_bits = (_bits_of(value) for value in (*node.inputs[:2], None, None)[:2])
        count = node_macs(graph, node) if node.op_type in PRODUCTS else 0
        weight = node.inputs[1] if count and node.op_type != "BatchMatMul" else None
        size = 0
        if weight is not None:
            told = weight.metadata_props.get(MINIFLOAT_KEY)
            codes = parse_format(told).bits if told else weight_bits
            width = codes if packed else 8 * stored_bytes(weight_bits)
            size = -(-prod(graph.shape(weight)) * width // 8) + 4 * prod(graph.shape(node.inputs[2]))
        values = [v for v in (*node.inputs, *node.outputs) if v is not None and graph.const(v) is None]
        coded = [v for v in values if FORMAT_KEY in v.metadata_props]
        moved = sum(prod(graph.shape(v)) * stored_bytes(_bits_of(v)) for v in coded)
        found.append((Products(count, weight_bits, activation), size, moved))
    return found


def _bits_of(value: ir.Value | None) -> int:
    token = value.metadata_props.get(FORMAT_KEY) if value is not None else None
    return parse_format(token).bits if token else 8
