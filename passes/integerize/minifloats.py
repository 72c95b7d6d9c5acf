"""What may stand above the quantizer of a minifloat."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompiler.assignment import WEIGHTED, scaled_product
from qcompiler.formats import Minifloat, QuantParams
from qcompiler.graph.analysis import moves_only
from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.qdq import quantizer_of
from qcompiler.passes.integerize.products import MOST_LEVELS, biased_matmul
from qcompiler.quantizer import dequantize


def all_levels(fmt: Minifloat) -> tuple[int, int]:
    """The lowest and the largest level."""
    return (-fmt.largest if fmt.signed else 0), fmt.largest


def requantizes(graph: Graph, core: ir.Node) -> bool:
    """Whether an operator makes minifloats of its accumulator: products, with their bias or scalar factor."""
    if core.op_type in WEIGHTED or scaled_product(graph, core) is not None:
        return True
    return core.op_type == "Add" and biased_matmul(graph, core) is not None


def refuses_minifloat(
    graph: Graph, params: QuantParams, core: ir.Node | None, functions: Sequence[ir.Node], source: ir.Value
) -> str:
    """Why a quantizer to a minifloat behind `functions` of `source`, which `core` makes, has no integer form, or ''."""
    fmt = params.format
    assert isinstance(fmt, Minifloat)
    if fmt.largest >= MOST_LEVELS:
        return "has levels of more than 16 bits (up to 3 exponent bits have fewer)"
    if core is None:
        return "needs a quantizer of integers before it" if functions or quantizer_of(graph, source) is None else ""
    if requantizes(graph, core):
        return ""
    if core.op_type in ("Pad", "Resize") and not _brings_zero(graph, core):
        return f"stands behind {core.op_type} `{core.name}`, which brings another value than 0 along"
    if moves_only(core) or core.op_type == "Concat":
        moved = core.inputs if core.op_type == "Concat" else core.inputs[:1]
        known = [quantizer_of(graph, value) for value in moved]
        same = not functions and all(found is not None and found.params == params for found in known)
        return "" if same else f"stands behind {core.op_type} `{core.name}`, which reads other numbers"
    return f"needs a quantizer of integers between it and {core.op_type} `{core.name}`"


def _brings_zero(graph: Graph, node: ir.Node) -> bool:
    """Whether what a Pad or Resize puts beside its input's values, if anything, is 0."""
    if node.op_type == "Resize":
        beyond = attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
        return not beyond or not attribute(node, "extrapolation_value", 0.0)
    value = node.inputs[2] if len(node.inputs) > 2 else None
    found = quantizer_of(graph, value)
    array = graph.const(value) if found is None or found.codes is None else dequantize(found.codes, found.params)
    return value is None or array is not None and not array.any()
