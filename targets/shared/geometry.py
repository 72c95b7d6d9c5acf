"""Windows of convolutions and pools: extents, strides, the border that they read."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.graph.model import Graph, attribute


@dataclass(frozen=True)
class Window:
    """A 1-D window counts as 2-D with a first extent of 1. All pairs are (y, x)."""

    rank: int
    batch: int
    channels: int
    input: tuple[int, int]
    output: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    before: tuple[int, int]
    """Padding before; negative ones crop."""

    def after(self) -> tuple[int, int]:
        """Cells that the last window reads behind the input (not the declared padding, which may be more)."""
        y, x = (
            (self.output[d] - 1) * self.strides[d]
            + (self.kernel[d] - 1) * self.dilations[d]
            + 1
            - self.input[d]
            - self.before[d]
            for d in (0, 1)
        )
        return max(0, y), max(0, x)

    def border(self) -> tuple[tuple[int, int], ...]:
        """Cells around every dimension of the input as the graph has it."""
        pairs = [(max(0, b), a) for b, a in zip(self.before, self.after(), strict=True)]
        return ((0, 0), (0, 0), *(pairs[1:] if self.rank == 3 else pairs))


def _pair(values: list[int], fill: int) -> tuple[int, int]:
    return (fill, values[0]) if len(values) == 1 else (values[0], values[1])


def window_of(graph: Graph, node: ir.Node) -> Window:
    """The window of a Conv, MaxPool or AveragePool node."""
    x, y = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])  # type: ignore[arg-type]
    spatial = len(x) - 2
    kernel = attribute(node, "kernel_shape") or list(graph.shape(node.inputs[1]))[2:]  # type: ignore[arg-type]
    pads = attribute(node, "pads") or [0] * (2 * spatial)
    return Window(
        rank=len(x),
        batch=x[0],
        channels=x[1],
        input=_pair(list(x[2:]), 1),
        output=_pair(list(y[2:]), 1),
        kernel=_pair(kernel, 1),
        strides=_pair(attribute(node, "strides") or [1] * spatial, 1),
        dilations=_pair(attribute(node, "dilations") or [1] * spatial, 1),
        before=_pair(pads[:spatial], 0),
    )
