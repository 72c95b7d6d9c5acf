"""Integer graph -> layers: one rule an operator; what has no engine is refused by the name of its node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.formats import Int, Minifloat, parse_format, parse_integers
from qcompiler.graph.model import Graph, attribute, operator_key
from qcompiler.graph.qdq import FORMAT_KEY, MINIFLOAT_KEY
from qcompiler.targets.fpga.engines import coded
from qcompiler.targets.fpga.layers import (
    Codes,
    Layer,
    Network,
    Requantizer,
    Stream,
    Window,
    extent,
    lowest_code,
    natural,
    refusal,
    signed_bits,
)
from qcompiler.targets.shared.geometry import window_of

TABLE_BITS = 10
"""Inputs up to this wide are looked up."""


def network_of(graph: Graph) -> Network:
    """The layers of an INTEGER graph without its boundary. Raises UnsupportedError that names all nodes in the way."""
    unknown = [n for n in graph.nodes() if operator_key(n) not in RULES and n.op_type not in MOVES]
    if unknown:
        names = ", ".join(f"{node.op_type} (node `{node.name}`)" for node in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise UnsupportedError(
            f"there is no engine for {names}{more}.",
            where="target `fpga`",
            hint="Cut the model before these nodes, or compile for `c` or `cpu`, which have them.",
        )
    reader = _Reader(graph)
    for node in graph.nodes():
        reader.read(node)
    # The boundary speaks integers.
    found = {str(v.name): reader.integers(str(v.name)) for v in graph.outputs}
    outputs = {name: stream for name, (stream, _) in found.items()}
    sources = {name: source for name, (_, source) in found.items()}
    return Network(reader.inputs, outputs, sources, reader.layers)


class _Reader:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.layers: list[Layer] = []
        self.streams: dict[str, Stream] = {}
        self.source: dict[str, str] = {}
        self.inputs: dict[str, Stream] = {}
        self._levels: dict[str, tuple[Stream, str]] = {}
        for value in graph.inputs:
            name = str(value.name)
            if FORMAT_KEY not in value.metadata_props:
                raise UnsupportedError(
                    f"the input `{name}` holds indices, which no engine reads.", where="target `fpga`",
                    hint="Cut the model behind the Gather that reads them.",
                )  # fmt: skip
            self.inputs[name] = self.streams[name] = Stream(name, _integers(value), self._first_order(value))
            self.source[name] = name

    def _first_order(self, value: ir.Value) -> NDArray[np.int64]:
        """The order in which an input's first engine wants it."""
        flat = np.arange(prod(self.graph.shape(value)), dtype=np.int64).reshape(self.graph.shape(value))
        while (node := self.graph.sole_user(value)) is not None and node.op_type in MOVES:
            flat, value = _moved(self.graph, node, flat), node.outputs[0]
        return flat.reshape(-1)[natural(flat.shape)]

    def read(self, node: ir.Node) -> None:
        """Raises UnsupportedError."""
        if node.op_type in MOVES and not node.domain:
            value, result = node.inputs[0], node.outputs[0]
            assert value is not None
            stream = self.streams[str(value.name)]
            shape = self.graph.shape(value)
            places = _moved(self.graph, node, np.arange(prod(shape), dtype=np.int64).reshape(shape)).reshape(-1)
            where = np.empty_like(places)
            where[places] = np.arange(places.size)
            self.streams[str(result.name)] = replace(stream, order=where[stream.order])
            self.source[str(result.name)] = self.source[str(value.name)]
            return
        layer = RULES[operator_key(node)](self, node)
        self.layers.append(layer)
        self.streams[layer.output.name] = layer.output
        self.source[layer.output.name] = layer.output.name

    # -- pieces of rules -----------------------------------------------------------------------------------------

    def integers(self, name: str) -> tuple[Stream, str]:
        """A value as a stream of integers, and its source: levels, where its stream has the codes of a minifloat."""
        stream = self.streams[name]
        fmt = stream.fmt
        if not isinstance(fmt, Minifloat):
            return stream, self.source[name]
        if name not in self._levels:
            levels = replace(stream, name=f"{name}/levels", fmt=fmt.integers)
            self.layers.append(
                Layer(
                    f"{name}/levels", "Table", "table", (self.source[name],), levels, (fmt,),
                    channels=stream.channels, table=fmt.decode(np.arange(1 << fmt.bits)),
                )
            )  # fmt: skip
            self._levels[name] = levels, levels.name
        return self._levels[name]

    def common(self, node: ir.Node, count: int = 1, *, integers: bool = False) -> dict[str, Any]:
        """Fields that all layers have; the first `count` inputs are streams. integers: they have to be that."""
        values = [value for value in node.inputs[:count] if value is not None]
        for value in values:
            if str(value.name) not in self.streams:
                raise refusal(node, f"reads the constant `{value.name}`, and its engine takes streams")
        names = [str(value.name) for value in values]
        pairs = [self.integers(name) if integers else (self.streams[name], self.source[name]) for name in names]
        result = node.outputs[0]
        stream = Stream(str(result.name), _made(node), natural(self.graph.shape(result)))
        return {
            "node": node.name or node.op_type, "op_type": node.op_type,
            "inputs": tuple(source for _, source in pairs),
            "formats": tuple(one.fmt for one, _ in pairs), "output": stream,
        }  # fmt: skip

    def given(self, node: ir.Node, index: int = 0) -> Stream:
        """The stream of an input."""
        value = node.inputs[index]
        assert value is not None
        return self.streams[str(value.name)]

    def const(self, node: ir.Node, index: int) -> NDArray[np.int64]:
        """A constant input."""
        array = self.graph.const(node.inputs[index])
        if array is None:
            raise refusal(node, "multiplies two activations")
        return array.astype(np.int64)

    def in_order(self, node: ir.Node, index: int = 0) -> Stream:
        """The stream of an input, which must come pixel by pixel."""
        stream, shape = self.given(node, index), self.graph.shape(node.inputs[index])
        if not np.array_equal(stream.order.reshape(-1), natural(shape).reshape(-1)):
            raise refusal(node, "needs its input pixel by pixel, and it arrives in another order",
                          "Leave out the Transpose or Reshape before it.")  # fmt: skip
        return replace(stream, order=natural(shape))

    def requantizer(self, node: ir.Node, first: int, channels: int, bias: NDArray[np.int64]) -> Requantizer:
        """The last inputs of a node, one entry a channel."""
        if attribute(node, "arithmetic", "float") != "fixed":
            raise refusal(node, "requantizes in float", "Compile with --arithmetic fixed.")
        multiplier, shift = self.const(node, first), self.const(node, first + 1)
        if multiplier.size not in (1, channels):
            raise refusal(node, "divides by another number at every position", "Give it count_include_pad.")
        full = [np.broadcast_to(array.reshape(-1), channels) for array in (multiplier, shift)]
        return Requantizer(bias, full[0], full[1], _int(node, "zero_point"), _made(node))


def _integers(value: ir.Value) -> Int:
    return parse_integers(value.metadata_props[FORMAT_KEY])


def _minifloat(value: ir.Value | None) -> Minifloat | None:
    """The format that levels are of. Those of block scales count as integers."""
    token = value.metadata_props.get(MINIFLOAT_KEY) if value is not None else None
    fmt = None if token is None else parse_format(token)
    return fmt if isinstance(fmt, Minifloat) else None


def _made(node: ir.Node) -> Codes:
    """The codes that a node writes."""
    token = attribute(node, "format", "")
    fmt = parse_format(token) if token else None
    return fmt if isinstance(fmt, Minifloat) else _minifloat(node.outputs[0]) or _integers(node.outputs[0])


def _int(node: ir.Node, name: str) -> int:
    return int(attribute(node, name, 0))


def _moved(graph: Graph, node: ir.Node, flat: NDArray[np.int64]) -> NDArray[np.int64]:
    if node.op_type == "Transpose":
        return flat.transpose(attribute(node, "perm") or list(range(flat.ndim))[::-1])
    return flat.reshape(graph.shape(node.outputs[0]))


def _bounds(weights: NDArray[np.int64], fmt: Codes) -> tuple[int, int]:
    """Least and largest partial sum of weights [M, ...] times what codes stand for."""
    rows = weights.reshape(len(weights), -1)
    low, high = extent(fmt)
    ends = np.stack([rows * low, rows * high, np.zeros_like(rows)])
    return int(ends.min(0).sum(1).min()), int(ends.max(0).sum(1).max())


def _product(reader: _Reader, node: ir.Node, common: dict[str, Any], weights: NDArray[np.int64], kind: str,
             window: Window, bias: NDArray[np.int64], first: int) -> Layer:  # fmt: skip
    """weights: [M, KH, KW, C] or [C, KH, KW]; x - zx becomes x, with zx outside the image and in the bias."""
    fmt, zero = common["formats"][0], _int(node, "x_zero_point")
    mini = _minifloat(node.inputs[1]) if first == 3 else None
    if not fmt.min <= zero <= fmt.max:
        raise refusal(node, f"pads with {zero}, which is no {fmt.token} code")
    folded = bias - zero * weights.reshape(len(weights), -1).sum(1)
    return Layer(
        **common, kind=kind, window=window, channels=weights.shape[-1] if kind == "dense" else len(weights),
        weights=weights, weight_bits=mini.bits if mini else signed_bits(int(weights.min()), int(weights.max())),
        weight_format=mini, sums=_bounds(weights, fmt), pad=zero,
        requantizer=reader.requantizer(node, first, len(weights), folded),
    )  # fmt: skip


def _window(reader: _Reader, node: ir.Node) -> Window:
    """The window of a Conv or pool; its ring needs padding narrower than the kernel."""
    found = window_of(reader.graph, node)
    if found.batch != 1:
        raise refusal(node, f"has a batch of {found.batch}", "Compile for one image at a time: --dim batch=1.")
    window = Window(found.input, found.output, found.kernel, found.strides, found.dilations, found.before)
    reach = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    after = found.after()
    if any(b >= r or a >= r for b, a, r in zip(window.before, after, reach, strict=True)):
        raise refusal(node, "pads more than its kernel covers")
    return window


def _conv(reader: _Reader, node: ir.Node) -> Layer:
    window, common = _window(reader, node), reader.common(node)
    stream, weights, bias = reader.in_order(node), reader.const(node, 1), reader.const(node, 2)
    group, channels = _int(node, "group") or 1, stream.channels
    weights = weights.reshape(*weights.shape[:2], *window.kernel)
    if group == 1:
        return _product(reader, node, common, weights.transpose(0, 2, 3, 1), "dense", window, bias, 3)
    if group == channels == len(weights):
        return _product(reader, node, common, weights[:, 0], "depthwise", window, bias, 3)
    dense = _product(reader, node, common, weights.transpose(0, 2, 3, 1), "dense", window, bias, 3)
    return replace(dense, groups=group)


def _matmul(reader: _Reader, node: ir.Node) -> Layer:
    common, weights, bias = reader.common(node), reader.const(node, 1), reader.const(node, 2)
    stream, rows = reader.given(node), weights.shape[0]
    if stream.codes == rows:  # one row: weights follow whatever order the codes come in
        weights, pixels = weights[stream.order.reshape(-1)], 1
        common["output"] = replace(common["output"], order=np.arange(weights.shape[1])[None, None])
    else:
        if not np.array_equal(stream.order.reshape(-1), np.arange(stream.codes)):
            raise refusal(node, "needs its input row by row, and it arrives in another order")
        pixels = stream.codes // rows
        common["output"] = replace(
            common["output"], order=np.arange(pixels * weights.shape[1]).reshape(1, pixels, weights.shape[1])
        )
    window = Window((1, pixels), (1, pixels))
    return _product(reader, node, common, weights.T[:, None, None], "dense", window, bias, 3)


def _average(reader: _Reader, node: ir.Node) -> Layer:
    window, stream = _window(reader, node), reader.in_order(node)
    if window.output == (1, 1) and window.kernel == window.input and not window.padded:
        return _sum(reader, node, stream)
    ones = np.ones((stream.channels, *window.kernel), np.int64)
    bias = np.zeros(stream.channels, np.int64)
    return _product(reader, node, reader.common(node), ones, "depthwise", window, bias, 1)


def _mean(reader: _Reader, node: ir.Node) -> Layer:
    shape = reader.graph.shape(node.inputs[0])
    if list(attribute(node, "axes")) != list(range(2, len(shape))) or len(shape) not in (3, 4) or shape[0] != 1:
        raise refusal(node, "reduces other axes than all positions of an image")
    return _sum(reader, node, reader.in_order(node))


def _sum(reader: _Reader, node: ir.Node, stream: Stream) -> Layer:
    common = reader.common(node, integers=True)
    common["output"] = replace(common["output"], order=np.arange(stream.channels)[None, None])
    zero, fmt = _int(node, "x_zero_point"), common["formats"][0]
    bias = np.full(stream.channels, -zero * stream.pixels, np.int64)
    ends = min(0, fmt.min) * stream.pixels, max(0, fmt.max) * stream.pixels
    return Layer(
        **common, kind="sum", window=Window(stream.image, (1, 1)), channels=stream.channels, sums=ends,
        requantizer=reader.requantizer(node, 1, stream.channels, bias),
    )  # fmt: skip


def _requantize(reader: _Reader, node: ir.Node) -> Layer:
    stream, common = reader.given(node), reader.common(node)
    common["output"] = replace(common["output"], order=stream.order)
    ones, bias = np.ones((stream.channels, 1, 1), np.int64), np.zeros(stream.channels, np.int64)
    window = Window(stream.image, stream.image)
    return _product(reader, node, common, ones, "depthwise", window, bias, 1)


def _max_pool(reader: _Reader, node: ir.Node) -> Layer:
    window, stream, common = _window(reader, node), reader.in_order(node), reader.common(node)
    common["output"] = replace(common["output"], fmt=stream.fmt)
    return Layer(**common, kind="max", window=window, channels=stream.channels, pad=lowest_code(stream.fmt))


def _add(reader: _Reader, node: ir.Node) -> Layer:
    common = reader.common(node, 2, integers=True)
    a, b = reader.given(node), reader.given(node, 1)
    if not np.array_equal(a.order, b.order):
        raise refusal(node, "adds tensors of different shape or order")
    common["output"] = replace(common["output"], order=a.order)
    shift, ma, mb = (_int(node, name) for name in ("shift", "a_multiplier", "b_multiplier"))
    fmt, zero = _integers(node.outputs[0]), _int(node, "zero_point")
    offset = -_int(node, "a_zero_point") * ma - _int(node, "b_zero_point") * mb + (1 << (shift - 1)) + (zero << shift)
    ends = [[m * given.min, m * given.max] for m, given in zip((ma, mb), common["formats"], strict=True)]
    sums = sum(map(min, ends)) + min(offset, 0), sum(map(max, ends)) + max(offset, 0)
    values = {"ma": ma, "mb": mb, "shift": shift, "offset": offset, "low": fmt.min, "high": fmt.max}
    return Layer(**common, kind="add", channels=a.channels, sums=sums, values=values)


def _concat(reader: _Reader, node: ir.Node) -> Layer:
    count = len(node.inputs)
    streams = [reader.in_order(node, i) for i in range(count)]
    rank = len(reader.graph.shape(node.outputs[0]))
    if attribute(node, "axis") % rank != (1 if rank in (3, 4) else rank - 1) or count != 2:
        raise refusal(node, "joins other than two tensors along channels", "Join two at a time along channels.")
    values = {"a": streams[0].channels, "b": streams[1].channels}
    common = reader.common(node, 2, integers=streams[0].fmt != streams[1].fmt)
    common["output"] = replace(common["output"], fmt=common["formats"][0])
    return Layer(**common, kind="concat", channels=sum(values.values()), values=values)


def _slice(reader: _Reader, node: ir.Node) -> Layer:
    shape, rank = reader.graph.shape(node.inputs[0]), len(reader.graph.shape(node.inputs[0]))
    starts, ends = reader.const(node, 1), reader.const(node, 2)
    axes = reader.const(node, 3) if len(node.inputs) > 3 and node.inputs[3] is not None else np.arange(len(starts))
    steps = reader.const(node, 4) if len(node.inputs) > 4 and node.inputs[4] is not None else np.ones(len(starts))
    ranges = [range(extent) for extent in shape]
    for axis, start, end, step in zip(axes.tolist(), starts.tolist(), ends.tolist(), steps.tolist(), strict=True):
        ranges[axis % rank] = ranges[axis % rank][start : end : int(step)]
    places = _places(node, shape)
    chosen = [ranges[axis] if axis is not None else range(1) for axis in places]
    if any(step <= 0 or not one for one, step in ((one, one.step) for one in chosen)) or chosen[2].step != 1:
        raise refusal(node, "takes channels that are not in a row, or goes backwards")
    stream = reader.in_order(node)
    window = Window(
        stream.image, (len(chosen[0]), len(chosen[1])), strides=(chosen[0].step, chosen[1].step),
        before=(-chosen[0].start, -chosen[1].start),
    )  # fmt: skip
    common = reader.common(node)
    common["output"] = replace(common["output"], fmt=stream.fmt)
    values = {"channels": stream.channels, "first": chosen[2].start, "count": len(chosen[2])}
    return Layer(**common, kind="slice", window=window, channels=stream.channels, values=values)


def _pad(reader: _Reader, node: ir.Node) -> Layer:
    shape = reader.graph.shape(node.inputs[0])
    rank, pads = len(shape), reader.const(node, 1)
    axes = reader.const(node, 3) if len(node.inputs) > 3 and node.inputs[3] is not None else np.arange(rank)
    value = reader.const(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1, np.int64)
    if attribute(node, "mode", "constant") != "constant" or pads.min(initial=0) < 0:
        raise refusal(node, "repeats or cuts instead of putting one value beside")
    ends = {axis % rank: (int(pads[i]), int(pads[i + len(axes)])) for i, axis in enumerate(axes.tolist())}
    places = _places(node, shape)
    if any(sum(pair) and axis not in places for axis, pair in ends.items()):
        raise refusal(node, "pads along the batch")
    y, x, c = (ends.get(axis, (0, 0)) if axis is not None else (0, 0) for axis in places)
    stream, common = reader.in_order(node), reader.common(node)
    common["output"] = replace(common["output"], fmt=stream.fmt)
    size = stream.image[0] + sum(y), stream.image[1] + sum(x)
    values = {"channels": stream.channels, "first": c[0], "count": stream.channels + sum(c)}
    code = int(coded(value.reshape(-1)[:1], stream.fmt)[0])
    return Layer(
        **common, kind="pad", window=Window(stream.image, size, before=(y[0], x[0])), channels=stream.channels,
        values=values, pad=code,
    )  # fmt: skip


def _places(node: ir.Node, shape: tuple[int, ...]) -> tuple[int | None, int | None, int | None]:
    """Axes that are rows, columns and channels of a stream (`natural`)."""
    if len(shape) == 4 and shape[0] == 1:
        return 2, 3, 1
    if len(shape) == 3 and shape[0] == 1:
        return None, 2, 1
    if len(shape) <= 2:
        return None, 0 if len(shape) == 2 else None, len(shape) - 1
    raise refusal(node, f"works on a tensor of shape {list(shape)}, which is no image")


def _table(reader: _Reader, node: ir.Node) -> Layer:
    stream, common = reader.given(node), reader.common(node)
    if stream.fmt.bits > TABLE_BITS:
        raise refusal(node, f"is a function of {stream.fmt.bits}-bit codes; tables end at {TABLE_BITS} bits",
                      "Give its input 8 bits: --precision, or a rule for the value.")  # fmt: skip
    common["output"] = replace(common["output"], order=stream.order)
    entries, fmt = reader.const(node, 1), stream.fmt
    if isinstance(fmt, Minifloat):  # entries are told by level, the stream has codes
        first = parse_integers(attribute(node, "x_format")).min
        table = entries[fmt.decode(np.arange(1 << fmt.bits)) - first]
    else:
        table = np.roll(entries, fmt.min)
    return Layer(**common, kind="table", channels=stream.channels, table=table)


def _softmax(reader: _Reader, node: ir.Node) -> Layer:
    stream, common = reader.given(node), reader.common(node, integers=True)
    shape = reader.graph.shape(node.inputs[0])
    row_by_row = np.arange(stream.codes).reshape(1, -1, shape[-1])
    if len([v for v in node.inputs if v is not None]) > 2 or stream.fmt.bits > 8:
        raise refusal(node, "has a mask or inputs above 8 bits")
    if _int(node, "axis") != len(shape) - 1 or not np.array_equal(stream.order.reshape(-1), row_by_row.reshape(-1)):
        raise refusal(node, "is not over the channels of a pixel")
    common["output"] = replace(common["output"], order=row_by_row)
    values = {"numerator": _int(node, "numerator"), "zero": _int(node, "zero_point")}
    return Layer(**common, kind="softmax", channels=shape[-1], table=reader.const(node, 1), values=values)


MOVES = ("Identity", "Reshape", "Transpose")
"""What moves no data in a stream."""
RULES = {
    "qcompiler::Add": _add,
    "qcompiler::AveragePool": _average,
    "qcompiler::Conv": _conv,
    "qcompiler::MatMul": _matmul,
    "qcompiler::MaxPool": _max_pool,
    "qcompiler::ReduceMean": _mean,
    "qcompiler::Requantize": _requantize,
    "qcompiler::Softmax": _softmax,
    "qcompiler::Table": _table,
    "Concat": _concat,
    "Pad": _pad,
    "Slice": _slice,
}


def refuse_states(pairs: Mapping[str, str]) -> None:
    """Raise UnsupportedError for a network that keeps states between steps."""
    if pairs:
        raise UnsupportedError(
            f"it keeps no state between images, and `{next(iter(pairs))}` is one.", where="target `fpga`",
            hint="Compile without --state, which makes states inputs and outputs, or for `c`.",
        )  # fmt: skip
