"""LRN, pools of norms, and windows of three spatial dimensions."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from qcompiler.graph.model import Graph, attribute, operand
from qcompiler.passes.spell_out.build import Build


def _lrn(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """x (bias + alpha / size * sum of the squares of neighbouring channels)^-beta; the sum is a 1x1 Conv with a band of
    ones, all in 16 bits up to the last product."""
    x, size = operand(node), attribute(node, "size")
    shape = graph.shape(x)
    n, c = shape[:2]
    distance = np.arange(c)[:, None] - np.arange(c)[None, :]  # output channel - input channel
    band = (distance <= (size - 1) // 2) & (-distance <= size // 2)
    weight = (band * (attribute(node, "alpha", 1e-4) / size)).astype(np.float32)
    bias = np.full(c, attribute(node, "bias", 1.0), np.float32)
    flat = build.reshape(x, [n, c, prod(shape[2:])]) if len(shape) not in (3, 4) else x
    extents = graph.shape(flat)
    spatial = len(extents) - 2
    square = build.op("Mul", [flat, flat], extents, wide="uint16")
    inputs = [square, build.const(weight.reshape(c, c, *[1] * spatial), "band"), build.const(bias, "bias")]
    total = build.op("Conv", inputs, extents, wide="uint16", kernel_shape=[1] * spatial, strides=[1] * spatial,
                     pads=[0] * 2 * spatial, dilations=[1] * spatial, group=1)  # fmt: skip
    power = build.const(np.float32(-attribute(node, "beta", 0.75)), "power")
    factor = build.op("Pow", [total, power], extents, wide="uint16")
    return build.reshape(build.op("Mul", [flat, factor], extents), shape)


def _lp_pool(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """(sum of |x|^p)^(1/p): a mean of 16-bit powers, times the number of cells."""
    x, p = operand(node), attribute(node, "p", 2)
    shape, out = graph.shape(x), graph.shape(node.outputs[0])
    power = _power(build, x, p)
    if node.op_type == "GlobalLpPool":
        total = build.reduce("ReduceSum", power, list(range(2, len(shape))), wide="uint16")
    else:
        kernel = attribute(node, "kernel_shape")
        names = ("kernel_shape", "strides", "pads", "dilations", "ceil_mode")
        given = {name: attribute(node, name) for name in names if name in node.attributes}
        mean = build.op("AveragePool", [power], out, wide="uint16", count_include_pad=1, **given)
        total = build.op("Mul", [mean, build.const(np.float32(prod(kernel)))], out, wide="uint16")
    if p == 1:
        return total
    root = build.const(np.float32(1 / p), "root")
    return build.op("Sqrt", [total], out) if p == 2 else build.op("Pow", [total, root], out)


def _power(build: Build, x: ir.Value, p: int) -> ir.Value:
    shape = build.shape(x)
    if p == 2:
        return build.op("Mul", [x, x], shape, wide="uint16")
    size = build.op("Abs", [x], shape)
    return size if p == 1 else build.op("Pow", [size, build.const(np.float32(p), "power")], shape, wide="uint16")


def _conv(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """Conv of three spatial dimensions: the slices of depth that one output sees become channels of a 2-D Conv."""
    weight = graph.const(node.inputs[1])
    if weight is None or weight.ndim != 5 or "pads" not in node.attributes:
        return None
    x = operand(node)
    strides, dilations, pads = (attribute(node, name) for name in ("strides", "dilations", "pads"))
    n, m, depth, d_out = graph.shape(x)[0], weight.shape[0], weight.shape[2], graph.shape(node.outputs[0])[2]
    images = _stacked(build, _pad_depth(build, x, pads[0], pads[3]), depth, d_out, dilations[0], strides[0])
    flat = build.const(weight.reshape(m, -1, *weight.shape[3:]), "weight")
    inputs = [images, flat, *node.inputs[2:]]
    out = graph.shape(node.outputs[0])
    product = build.op("Conv", inputs, [n * d_out, m, *out[3:]], kernel_shape=list(weight.shape[3:]),
                       strides=strides[1:], dilations=dilations[1:], pads=[*pads[1:3], *pads[4:]],
                       group=attribute(node, "group", 1))  # fmt: skip
    return build.transpose(build.reshape(product, [n, d_out, m, *out[3:]]), [0, 2, 1, 3, 4])


def _stacked(build: Build, x: ir.Value, depth: int, d_out: int, dilation: int, stride: int) -> ir.Value:
    """[N, C, D, H, W] as images [N D', C K, H, W]: the K slices of depth that each output sees, as channels."""
    n, c, _, h, w = build.shape(x)
    span = stride * (d_out - 1) + 1
    slices = [build.slice(x, 2, k * dilation, k * dilation + span, stride) for k in range(depth)]
    stacked = build.concat([build.reshape(s, [n, c, 1, d_out, h, w]) for s in slices], 2)
    return build.reshape(build.transpose(stacked, [0, 3, 1, 2, 4, 5]), [n * d_out, c * depth, h, w])


def _conv_transpose(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """ConvTranspose of three spatial dimensions: in depth, a Conv with the kernel turned round over slices with zeros
    between them; in height and width as it is."""
    weight = graph.const(node.inputs[1])
    if weight is None or weight.ndim != 5 or "pads" not in node.attributes:
        return None
    x = operand(node)
    strides, dilations, pads = (attribute(node, name) for name in ("strides", "dilations", "pads"))
    extra = attribute(node, "output_padding", [0, 0, 0])
    n, c, d, h, w = graph.shape(x)
    m, depth, d_out = weight.shape[1], weight.shape[2], graph.shape(node.outputs[0])[2]
    reach = dilations[0] * (depth - 1)
    before, after = reach - pads[0], reach - pads[3] + extra[0]
    if min(before, after) < 0:
        return None
    if strides[0] > 1:
        pads_between = build.const(np.array([0] * 9 + [strides[0] - 1, 0, 0], np.int64), "pads")
        apart = [build.reshape(x, [n, c, d, 1, h, w]), pads_between, build.const(np.float32(0))]
        spread = build.op("Pad", apart, [n, c, d, strides[0], h, w], mode="constant")
        x = build.slice(build.reshape(spread, [n, c, d * strides[0], h, w]), 2, 0, (d - 1) * strides[0] + 1)
    images = _stacked(build, _pad_depth(build, x, before, after), depth, d_out, dilations[0], 1)
    turned = np.ascontiguousarray(weight[:, :, ::-1].transpose(0, 2, 1, 3, 4)).reshape(c * depth, m, *weight.shape[3:])
    out = graph.shape(node.outputs[0])
    inputs = [images, build.const(turned, "weight"), *node.inputs[2:]]
    product = build.op("ConvTranspose", inputs, [n * d_out, out[1], *out[3:]], kernel_shape=list(weight.shape[3:]),
                       strides=strides[1:], dilations=dilations[1:], pads=[*pads[1:3], *pads[4:]],
                       output_padding=extra[1:], group=attribute(node, "group", 1))  # fmt: skip
    return build.transpose(build.reshape(product, [n, d_out, *out[1:2], *out[3:]]), [0, 2, 1, 3, 4])


def _pad_depth(build: Build, x: ir.Value, before: int, after: int) -> ir.Value:
    if not (before or after):
        return x
    shape = list(build.shape(x))
    shape[2] += before + after
    pads = build.const(np.array([0, 0, before, 0, 0, 0, 0, after, 0, 0], np.int64), "pads")
    return build.op("Pad", [x, pads, build.const(np.float32(0))], shape, mode="constant")


def _pool(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """Pools of three spatial dimensions: over height and width, then over depth. Divisors multiply."""
    x, out = operand(node), graph.shape(node.outputs[0])
    if len(out) != 5:
        return None
    n, c, d, h, w = graph.shape(x)
    kernel = attribute(node, "kernel_shape")
    pads = attribute(node, "pads") or [0] * 6
    strides, dilations = (attribute(node, name) or [1] * 3 for name in ("strides", "dilations"))
    others = {k: attribute(node, k) for k in ("ceil_mode", "count_include_pad") if k in node.attributes}
    wide = "" if node.op_type == "MaxPool" else "uint16"
    flat = build.op(node.op_type, [build.reshape(x, [n, c * d, h, w])], [n, c * d, *out[3:]], wide=wide,
                    kernel_shape=kernel[1:], strides=strides[1:], dilations=dilations[1:],
                    pads=[*pads[1:3], *pads[4:]], **others)  # fmt: skip
    lines = build.reshape(flat, [n, c, d, out[3] * out[4]])
    done = build.op(node.op_type, [lines], [n, c, out[2], out[3] * out[4]], kernel_shape=[kernel[0], 1],
                    strides=[strides[0], 1], dilations=[dilations[0], 1], pads=[pads[0], 0, pads[3], 0],
                    **others)  # fmt: skip
    return build.reshape(done, out)


def _global_max(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """Of another rank than images: ReduceMax."""
    x = operand(node)
    rank = len(graph.shape(x))
    return None if rank in (3, 4) else build.reduce("ReduceMax", x, list(range(2, rank)))


RULES = {
    "AveragePool": _pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalLpPool": _lp_pool,
    "GlobalMaxPool": _global_max,
    "LRN": _lrn,
    "LpPool": _lp_pool,
    "MaxPool": _pool,
}
