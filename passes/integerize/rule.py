"""What rules are made of, and the questions that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import QuantParams
from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.qdq import quantizer_of
from qcompiler.passes.integerize.writer import Writer


@dataclass(frozen=True)
class Rule:
    """refuses(graph, node) -> reason or ''; write(writer, node, output parameters, output name) -> codes."""

    write: Callable[[Writer, ir.Node, QuantParams, str], ir.Value]
    refuses: Callable[[Graph, ir.Node], str]


Lacks = Callable[[Graph, ir.Value | None], str]
"""(graph, value) -> why a float value cannot be read as codes, or ''."""


def lacks_quantizer(graph: Graph, value: ir.Value | None) -> str:
    """Why `value` cannot be read as codes of one scale, or ''."""
    if value is None:
        return "lacks an input"
    found = quantizer_of(graph, value)
    if found is None:
        return f"reads `{value.name}`, which has no quantizer"
    return f"reads `{value.name}`, which has a scale per channel" if found.params.scale.ndim else ""


def one_input(graph: Graph, node: ir.Node) -> str:
    """Refusal of an operator whose first input carries the codes."""
    return lacks_quantizer(graph, node.inputs[0])


def centred(codes: NDArray, params: QuantParams) -> NDArray[np.int64]:
    """Codes (of a minifloat its levels) with their zero point subtracted, per channel if it is."""
    zero = params.zero_point
    if zero.ndim:
        shape = [1] * codes.ndim
        shape[params.axis or 0] = -1
        zero = zero.reshape(shape)
    return np.asarray(params.format.decode(codes) - zero, np.int64)


def reach(params: QuantParams) -> int:
    """Largest |code - zero_point|."""
    zero, fmt = int(params.zero_point), params.format
    return max(zero - fmt.min, fmt.max - zero)


@dataclass(frozen=True)
class Window:
    """Explicit extents of a windowed node, one entry a spatial dimension; pads begin..., end..."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]


def window_of(graph: Graph, node: ir.Node, kernel: list[int]) -> Window:
    """Attributes with their defaults, and pads where the node says auto_pad."""
    x, y = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])  # type: ignore[arg-type]
    count = len(kernel)
    strides = attribute(node, "strides") or [1] * count
    dilations = attribute(node, "dilations") or [1] * count
    pads, auto = attribute(node, "pads") or [0] * (2 * count), attribute(node, "auto_pad", "NOTSET")
    if auto == "VALID":
        pads = [0] * (2 * count)
    elif auto.startswith("SAME"):
        begin, end = [], []
        for d in range(count):
            total = max(0, (y[d + 2] - 1) * strides[d] + (kernel[d] - 1) * dilations[d] + 1 - x[d + 2])
            small = total // 2
            begin.append(small if auto == "SAME_UPPER" else total - small)
            end.append(total - begin[-1])
        pads = begin + end
    return Window(kernel, strides, dilations, pads)
