"""What each engine has to compute, in the order of streams, before it is folded.

A stream carries one tensor: pixels in raster order, the channels of a pixel in a row. Reshape, Transpose and Identity
move no data; they only change which position of the tensor each place of the stream is, and that is known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.formats import Int, Minifloat

Codes = Int | Minifloat
"""What codes of a stream are. Those of a minifloat are its own, of few bits, where the graph has levels."""


@dataclass(frozen=True, eq=False)
class Stream:
    """How a tensor is streamed. order [H, W, C]: the flat position in the tensor of each place of the stream."""

    name: str
    fmt: Codes
    order: NDArray[np.int64]

    @property
    def codes(self) -> int:
        """Codes of one tensor."""
        return int(self.order.size)

    @property
    def channels(self) -> int:
        """Codes of a pixel."""
        return int(self.order.shape[2])

    @property
    def image(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.order.shape[0]), int(self.order.shape[1])

    @property
    def pixels(self) -> int:
        """Pixels of one tensor."""
        return int(self.order.shape[0] * self.order.shape[1])


@dataclass(frozen=True)
class Window:
    """Extents in pixels, as (y, x); `before` is the padding."""

    input: tuple[int, int]
    output: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)

    @property
    def padded(self) -> bool:
        """Whether a window reaches beyond the image."""
        ends = [
            (o - 1) * s + (k - 1) * d - b
            for o, s, k, d, b in zip(
                self.output, self.strides, self.kernel, self.dilations, self.before, strict=True
            )
        ]
        return any(b > 0 for b in self.before) or any(e >= i for e, i in zip(ends, self.input, strict=True))


@dataclass(frozen=True, eq=False)
class Requantizer:
    """multiplier, shift, bias: int64 [M]; the meaning is docs/integer_operators.md's, with `bias` added before."""

    bias: NDArray[np.int64]
    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    zero_point: int
    fmt: Codes


@dataclass(frozen=True, eq=False)
class Layer:
    """One node. kind: dense, depthwise (also average pools), max, sum, add, concat, slice, pad, table or softmax.

    channels: of a group; dense layers may have several. weights: int64 [M, KH, KW, C] of dense, [C, KH, KW] of
    depthwise; levels if they have a `weight_format`. sums: least and largest value that any partial sum of accumulators
    can have, without bias. pad: the code outside the image. table: entries of table and softmax.
    """

    node: str
    op_type: str
    kind: str
    inputs: tuple[str, ...]
    output: Stream
    formats: tuple[Codes, ...]
    window: Window | None = None
    channels: int = 1
    groups: int = 1
    weights: NDArray[np.int64] | None = None
    weight_bits: int = 0
    weight_format: Minifloat | None = None
    sums: tuple[int, int] = (0, 0)
    pad: int = 0
    requantizer: Requantizer | None = None
    table: NDArray[np.int64] | None = None
    values: dict[str, int] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Products of an activation and a weight; of pools the terms."""
        if self.kind not in ("dense", "depthwise"):
            return 0
        assert self.weights is not None and self.window is not None
        return int(prod(self.window.output) * self.weights.size)


@dataclass(frozen=True, eq=False)
class Network:
    """Layers in topological order; streams of inputs by name, outputs as (name, stream that carries it)."""

    inputs: dict[str, Stream]
    outputs: dict[str, Stream]
    sources: dict[str, str]
    """Output name -> name of the stream of an input or a layer."""
    layers: list[Layer]


def refusal(node: ir.Node, why: str, hint: str = "") -> UnsupportedError:
    """The error for a node that has no engine."""
    return UnsupportedError(
        f"{node.op_type} (node `{node.name}`) {why}.",
        where="target `fpga`",
        hint=hint or "Cut the model before it, or compile for `c` or `cpu`, which have it.",
    )


def natural(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The order of a tensor's stream by its shape: [1, C, H, W] pixel by pixel, [1, C, W] likewise, else row by row."""
    flat = np.arange(prod(shape), dtype=np.int64).reshape(shape)
    if len(shape) == 4 and shape[0] == 1:
        return flat[0].transpose(1, 2, 0)
    if len(shape) == 3 and shape[0] == 1:
        return flat[0].T[None]
    return flat.reshape(1, -1, shape[-1] if shape else 1)


def exponent_bits(fmt: Codes | None) -> int:
    """Of a minifloat; 0 for integers."""
    return fmt.exponent if isinstance(fmt, Minifloat) else 0


def extent(fmt: Codes) -> tuple[int, int]:
    """The least and the largest value of codes."""
    if isinstance(fmt, Minifloat):
        return (-fmt.largest if fmt.signed else 0), fmt.largest
    return fmt.min, fmt.max


def lowest_code(fmt: Codes) -> int:
    """The code of the least value."""
    return int(fmt.encode(np.array(extent(fmt)[0]))) if isinstance(fmt, Minifloat) else fmt.min


def signed_bits(low: int, high: int) -> int:
    """Bits of two's complement that hold low and high; at least 2."""
    return max((~low if low < 0 else low).bit_length(), (~high if high < 0 else high).bit_length(), 1) + 1
