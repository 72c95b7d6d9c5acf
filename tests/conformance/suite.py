"""The list of problems, in one place for all targets."""

from __future__ import annotations

import numpy as np

from qcompiler.graph.qdq import INDICES_KEY
from tests.conformance.choice import add_choices
from tests.conformance.logarithm import add_logarithms
from tests.conformance.minifloat import add_minifloats
from tests.conformance.problems import Problems
from tests.conformance.sequence import add_problems


def build_suite(arithmetic: str) -> Problems:
    """All problems as one INTEGER graph."""
    p = Problems(arithmetic)
    _convolutions(p)
    _elementwise(p)
    _windows(p)
    _movement(p)
    _chains(p)
    add_problems(p)
    add_choices(p)
    add_logarithms(p)
    add_minifloats(p)
    return p


def _convolutions(p: Problems) -> None:
    p.conv("conv3x3", (1, 16, 9, 11), 24, (3, 3), pads=(1, 1, 1, 1))
    p.conv("conv3x3_stride2_rgb", (1, 3, 17, 15), 10, (3, 3), strides=(2, 2), pads=(0, 0, 1, 1))
    p.conv("conv1x1", (1, 40, 7, 7), 33, (1, 1))
    p.conv("conv1x1_wide_output", (1, 8, 4, 4), 200, (1, 1))
    p.conv("conv1x1_stride2", (1, 6, 9, 9), 5, (1, 1), strides=(2, 2))
    p.conv("conv5x3_asymmetric", (2, 5, 8, 10), 7, (5, 3), pads=(2, 0, 1, 2))
    p.conv("conv_dilated", (1, 4, 13, 12), 6, (3, 3), dilations=(2, 3), pads=(2, 3, 2, 3))
    p.conv("conv_grouped", (1, 12, 6, 6), 18, (3, 3), group=3, pads=(1, 1, 1, 1))
    p.conv("conv_depth_multiplier", (1, 4, 6, 6), 8, (3, 3), group=4, pads=(1, 1, 1, 1))
    p.conv("conv1d", (1, 5, 30), 9, (4,), strides=(2,), pads=(1, 2))
    p.conv("conv_one_channel", (1, 1, 10, 10), 1, (3, 3))
    p.conv("conv_two_pixels", (1, 9, 3, 4), 20, (3, 3))
    p.conv("conv_batch", (3, 7, 5, 3), 11, (3, 3), pads=(1, 1, 1, 1))
    p.conv("conv_whole_image", (1, 3, 5, 5), 20, (5, 5))
    for bits in (2, 3, 4, 5, 6, 7):
        p.conv(f"conv_w{bits}", (1, 16, 6, 7), 17, (3, 3), pads=(1, 1, 1, 1), bits=bits)
    p.conv("conv_w4a4", (1, 16, 6, 7), 17, (3, 3), pads=(1, 1, 1, 1), bits=4, token="uint4", out="uint4")
    p.conv("conv_w2a3", (1, 9, 6, 7), 17, (3, 3), bits=2, token="uint3", out="uint3")
    p.conv("conv_signed", (1, 12, 6, 6), 12, (3, 3), pads=(1, 1, 1, 1), token="int8", out="int8")
    p.conv("conv_affine_weights", (1, 12, 6, 6), 12, (3, 3), bits=9)
    p.conv("conv_affine_128", (1, 12, 6, 6), 12, (3, 3), mirrored=True)
    p.conv("conv_a16", (1, 6, 6, 6), 9, (3, 3), pads=(1, 1, 1, 1), token="uint16", out="uint16")
    p.conv("conv_a16_signed", (1, 6, 6, 6), 9, (3, 3), token="int16", out="int8", zero=0)
    p.conv("depthwise3x3", (1, 35, 9, 9), 35, (3, 3), group=35, pads=(1, 1, 1, 1))
    p.conv("depthwise3x3_stride2", (1, 16, 11, 13), 16, (3, 3), group=16, strides=(2, 2), pads=(0, 0, 1, 1))
    p.conv("depthwise3x3_bands", (2, 8, 45, 46), 8, (3, 3), group=8, pads=(1, 1, 1, 1))
    p.conv("depthwise3x3_bands2", (1, 6, 47, 51), 6, (3, 3), group=6, strides=(2, 2), pads=(1, 0, 1, 1))
    p.conv("depthwise3x3_tall", (1, 12, 25, 5), 12, (3, 3), group=12, strides=(1, 2), pads=(1, 1, 1, 1))
    p.conv("depthwise3x3_stride3", (1, 4, 40, 40), 4, (3, 3), group=4, strides=(3, 1), pads=(0, 0, 0, 2))
    p.conv("depthwise3x3_crop", (1, 5, 9, 12), 5, (3, 3), group=5, pads=(-1, -2, 0, -1))
    p.conv("depthwise_w4a4", (1, 16, 9, 9), 16, (3, 3), group=16, pads=(1, 1, 1, 1), bits=4, token="uint4", out="uint4")
    p.conv("depthwise5x5", (2, 20, 8, 8), 20, (5, 5), group=20, pads=(2, 2, 2, 2))
    p.conv("depthwise_dilated", (1, 16, 12, 12), 16, (3, 3), group=16, dilations=(2, 2), pads=(2, 2, 2, 2))
    p.conv("depthwise1x1", (1, 18, 5, 5), 18, (1, 1), group=18)
    p.conv("depthwise1d", (1, 9, 20), 9, (5,), group=9, pads=(2, 2))
    p.conv("depthwise_signed", (1, 17, 7, 7), 17, (3, 3), group=17, pads=(1, 1, 1, 1), token="int8", out="int8")
    p.conv("depthwise_affine", (1, 17, 7, 7), 17, (3, 3), group=17, bits=9)
    p.conv("depthwise_affine_128", (1, 17, 7, 7), 17, (3, 3), group=17, mirrored=True)
    p.conv("depthwise_a16", (1, 5, 7, 7), 5, (3, 3), group=5, token="uint16", out="uint8")
    p.conv("transposed", (1, 6, 5, 5), 8, (3, 3), strides=(2, 2), pads=(1, 1, 1, 1), padding=(1, 1), transposed=True)
    p.conv("transposed_crop", (1, 4, 5, 6), 5, (2, 2), strides=(2, 2), transposed=True)
    p.conv("transposed_grouped", (1, 6, 4, 4), 4, (4, 4), strides=(2, 2), pads=(1, 1, 1, 1), group=2, transposed=True)
    p.conv("transposed1d", (1, 3, 9), 4, (3,), strides=(3,), pads=(0, 1), transposed=True)
    p.matmul("matmul", (1, 37), 19)
    p.matmul("matmul_batch", (3, 5, 24), 40)
    p.matmul("matmul_w4", (2, 64), 10, bits=4)
    p.matmul("matmul_w3", (1, 61), 11, bits=3)
    p.matmul("matmul_w2", (1, 38), 7, bits=2)
    p.matmul("matmul_signed", (1, 30), 8, token="int8", out="int8")
    p.matmul("matmul_a16", (1, 30), 8, token="uint16", out="uint16")


def _elementwise(p: Problems) -> None:
    p.add("add", (1, 5, 6, 7), (1, 5, 6, 7))
    p.add("sub", (3, 40), (3, 40), sign=-1)
    p.add("add_channel", (1, 8, 5, 5), (1, 8, 1, 1))
    p.add("add_last", (2, 3, 19), (19,), constant=True)
    p.add("add_signed", (70,), (70,), ("int8", "uint8", "int8"))
    p.add("add16", (4, 9), (4, 9), ("uint16", "int16", "uint16"))
    p.mul("mul", (1, 6, 5, 4), (1, 6, 5, 4))
    p.mul("mul_gate", (1, 20, 5, 5), (1, 20, 1, 1))
    p.mul("mul_constant", (2, 33), (1, 33), "int8", constant=True)
    p.mul("mul16", (2, 9), (2, 9), "uint16")
    p.table("table", (1, 300), "uint8", "uint8")
    p.table("table_image", (1, 21, 5, 5), "uint8", "uint8")
    p.table("table_signed", (2, 100), "int8", "int8")
    p.table("table4", (50,), "uint4", "uint4")
    p.table("table_widen", (50,), "uint8", "uint16")
    p.table("table16", (60,), "uint16", "uint8")
    p.table("table_int4", (80,), "int4", "uint8")
    p.rescale("requantize16", (1, 4, 5, 5), "uint16", "uint8")
    p.rescale("requantize16_signed", (77,), "int16", "int16")


def _windows(p: Problems) -> None:
    p.pool("maxpool", (1, 21, 8, 8), (2, 2), average=False)
    p.pool("maxpool_padded", (1, 70, 9, 9), (3, 3), average=False, strides=(2, 2), pads=(1, 1, 1, 1))
    p.pool("maxpool_signed", (1, 9, 7, 7), (3, 3), average=False, strides=(1, 1), pads=(1, 1, 1, 1), token="int8")
    p.pool("maxpool1d", (1, 3, 12), (3,), average=False)
    p.pool("maxpool16", (1, 3, 6, 6), (2, 2), average=False, token="uint16")
    p.pool("averagepool", (1, 18, 8, 8), (4, 4), average=True)
    p.pool("averagepool_padded", (1, 5, 7, 7), (3, 3), average=True, strides=(2, 2), pads=(1, 1, 1, 1))
    p.pool(
        "averagepool_counts", (2, 5, 7, 7), (3, 3), average=True, strides=(2, 2), pads=(1, 1, 1, 1), per_position=True
    )
    p.pool("averagepool1d", (1, 5, 12), (3,), average=True)
    p.mean("global_mean", (1, 40, 7, 7), (2, 3))
    p.mean("mean_flat", (2, 40, 5, 3), (2, 3), keepdims=0)
    p.mean("mean_last", (3, 4, 50), (2,))
    p.mean("mean_first", (5, 6), (0,), keepdims=0)
    p.mean("mean_channels", (1, 12, 4, 4), (1,))
    p.mean("mean16", (1, 6, 5, 5), (2, 3), token="uint16")
    p.softmax("softmax", (2, 33), 1)
    p.softmax("softmax_middle", (2, 5, 3), 1)
    p.softmax("softmax_signed", (1, 10), 1, "int8")
    p.softmax("softmax16", (1, 10), 1, "uint16")


def _movement(p: Problems) -> None:
    i = lambda *values: np.array(values, np.int64)  # noqa: E731
    p.movement("reshape", "Reshape", (2, 3, 4, 5), (6, 20), [i(6, 20)])
    p.movement("transpose", "Transpose", (2, 3, 4, 5), (5, 2, 4, 3), perm=[3, 0, 2, 1])
    p.movement("slice", "Slice", (2, 9, 8, 7), (1, 3, 8, 4), [i(1, 1, -1), i(2, 9, -99), i(0, 1, 3), i(1, 3, -2)])
    p.movement("pad", "Pad", (1, 3, 4, 5), (1, 5, 6, 6), [i(0, 1, 2, 0, 0, 1, 0, 1), np.uint8(9)], mode="constant")
    p.movement(
        "pad_crop", "Pad", (1, 3, 4, 5), (1, 3, 3, 6), [i(0, 0, -1, 2, 0, 0, 0, -1), np.uint8(4)], mode="constant"
    )
    p.movement("pad_reflect", "Pad", (1, 2, 5, 6), (1, 2, 8, 9), [i(0, 0, 1, 2, 0, 0, 2, 1)], mode="reflect")
    p.movement("pad_edge", "Pad", (1, 2, 5, 6), (1, 2, 6, 9), [i(0, 0, 1, 2, 0, 0, 0, 1)], mode="edge")
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    p.movement("resize2", "Resize", (1, 20, 4, 5), (1, 20, 8, 10), [None, None, i(1, 20, 8, 10)], **nearest)
    half = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"}
    p.movement("resize_down", "Resize", (1, 3, 9, 7), (1, 3, 4, 5), [None, None, i(1, 3, 4, 5)], **half)
    p.movement("depth_to_space", "DepthToSpace", (1, 12, 3, 4), (1, 3, 6, 8), blocksize=2, mode="DCR")
    p.movement("depth_to_space_crd", "DepthToSpace", (1, 12, 3, 4), (1, 3, 6, 8), blocksize=2, mode="CRD")
    p.movement("expand", "Expand", (1, 3, 1, 4), (2, 3, 5, 4), [i(2, 3, 5, 4)])
    p.movement("identity", "Identity", (2, 3), (2, 3))


def _chains(p: Problems) -> None:
    """Movement between other operators: views, borders and writes into the reader's memory."""
    x = p.input("chain_x", (1, 8, 6, 6))
    table = [np.random.default_rng(i).integers(0, 256, 256).astype(np.uint8) for i in range(4)]

    def look(value: object, shape: tuple[int, ...], i: int) -> object:
        return p.node("Table", [value, p.const(table[i])], shape, x_format="uint8", format="uint8", zero_point=0)

    a, b = look(x, (1, 8, 6, 6), 0), look(x, (1, 8, 6, 6), 1)
    joined = p.node("Concat", [a, b, x], (1, 24, 6, 6), domain="", axis=1)
    padded = p.node(
        "Pad",
        [look(joined, (1, 24, 6, 6), 2), p.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])), p.const(np.uint8(3))],
        (1, 24, 8, 8),
        domain="",
        mode="constant",
    )
    pooled = p.node("MaxPool", [padded], (1, 24, 4, 4), kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0])
    turned = p.node("Transpose", [pooled], (1, 4, 4, 24), domain="", perm=[0, 2, 3, 1])
    flat = p.node("Reshape", [turned, p.const(np.array([1, 384]))], (1, 384), domain="", allowzero=1)
    p.output("chain", look(flat, (1, 384), 3))
    y = p.input("split_x", (1, 10, 4, 4))
    node = p.graph.add_node(
        "Split", [y, p.const(np.array([4, 6]))], {"axis": 1}, name="split", outputs=["split_a", "split_b"]
    )
    first = p.describe(node.outputs[0], "uint8", 0, (1, 4, 4, 4))
    second = p.describe(node.outputs[1], "uint8", 0, (1, 6, 4, 4))
    weights = p.const(p.rng.integers(-127, 128, (5, 6, 3, 3)).astype(np.int8))
    bias = p.const(np.zeros(5, np.int32))
    conv = p.node(
        "Conv",
        [second, weights, bias, *p.scales(np.full(5, 0.002))],
        (1, 5, 4, 4),
        strides=[1, 1],
        pads=[1, 1, 1, 1],
        dilations=[1, 1],
        group=1,
        x_zero_point=100,
        **p.requantizing("uint8", 0),
    )
    p.output("split_then_conv", conv)
    p.output("split_first", first)
    both = p.node("Concat", [conv, first], (1, 9, 4, 4), domain="", axis=1)
    p.output("concat_of_shared", both)


def samples(problems: Problems, count: int) -> list[dict[str, np.ndarray]]:
    """Random codes as floats, extremes in the first sample; indices within their range and beyond both ends."""
    rng = np.random.default_rng(3)
    found = []
    for i in range(count):
        sample = {}
        for value in problems.graph.inputs:
            shape = problems.graph.shape(value)
            if INDICES_KEY in value.metadata_props:
                count = int(value.metadata_props[INDICES_KEY])
                ids = rng.integers(-count - 3, count + 3, shape)
                extreme = np.iinfo(value.dtype.numpy())
                ids = np.where(rng.random(shape) < 0.3, rng.choice([extreme.min, extreme.max], shape), ids)
                sample[str(value.name)] = ids.astype(value.dtype.numpy())
                continue
            fmt = problems.formats[str(value.name)]
            codes = rng.integers(fmt.min, fmt.max + 1, shape)
            if i == 0:
                codes = np.where(rng.random(shape) < 0.5, fmt.min, fmt.max)
            sample[str(value.name)] = codes.astype(np.float32)
        found.append(sample)
    return found
