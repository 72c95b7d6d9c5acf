"""Problems of choices: extremes, comparisons, Select, Slope, places of a maximum, interpolation, numbers as outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompiler.formats import parse_format
from qcompiler.ops.movement import coordinates
from qcompiler.ops.taps import grid_taps, resize_taps
from qcompiler.passes.integerize.interpolate import rounded
from tests.conformance.problems import Problems
from tests.conformance.sequence import indices

FLAG = {"format": "uint8"}


def add_choices(p: Problems) -> None:
    """All of them."""
    _extremes(p)
    _comparisons(p)
    _slopes(p)
    _places(p)
    _interpolation(p)


def number(p: Problems, op: str, inputs: Sequence[ir.Value], name: str, kind: ir.DataType, shape: Sequence[int],
           **attributes: object) -> None:  # fmt: skip
    """A node whose output is no code but an integer or a truth value, and an output of the graph."""
    node = p.graph.add_node(op, inputs, attributes, name=f"{name}/node", outputs=[name])
    value = node.outputs[0]
    value.shape, value.type = ir.Shape(shape), ir.TensorType(kind)
    p.graph.ir.outputs.append(value)


def _extremes(p: Problems) -> None:
    for name, op, a, b, token in (
        ("max_two", "Max", (2, 5, 33), (2, 1, 33), "uint8"),
        ("min_two_signed", "Min", (3, 20), (3, 20), "int8"),
        ("max_two_wide", "Max", (40,), (1,), "uint16"),
    ):
        sides = [p.input(f"{name}_a", a, token), p.input(f"{name}_b", b, token)]
        p.output(name, p.node(op, sides, np.broadcast_shapes(a, b), token, domain=""))
    for name, op, x, axes, keepdims, token in (
        ("reduce_max", "ReduceMax", (2, 7, 9, 35), [1, 2], 1, "uint8"),
        ("reduce_min_last", "ReduceMin", (3, 11, 21), [2], 0, "int8"),
        ("reduce_max_all", "ReduceMax", (4, 6), [0, 1], 0, "int16"),
    ):
        shape = [1 if d in axes else e for d, e in enumerate(x) if keepdims or d not in axes]
        y = p.node(op, [p.input(f"{name}_x", x, token)], shape, token, format=token, axes=axes, keepdims=keepdims)
        p.output(name, y)


def _comparisons(p: Problems) -> None:
    flags = []
    for name, kind, a, b, tokens, given in (
        ("greater", "Greater", (3, 17), (3, 1), ("uint8", "uint8"), (4, 9, 1, 1)),
        ("at_least_scaled", "GreaterOrEqual", (3, 17), (17,), ("uint16", "int8"), (300, -2, 1 << 19, 1_500_000_011)),
        ("equal", "Equal", (3, 17), (3, 17), ("int8", "int8"), (0, 0, 1, 1)),
    ):
        numbers = dict(zip(("a_zero_point", "b_zero_point", "a_multiplier", "b_multiplier"), given, strict=True))
        sides = [p.input(f"{name}_a", a, tokens[0]), p.input(f"{name}_b", b, tokens[1])]
        flags.append(p.node("Compare", sides, (3, 17), kind=kind, **numbers, **FLAG))
        p.output(name, flags[-1])
    ids = indices(p, "equal_ids", (4, 5), 6, ir.DataType.INT64)
    p.output("equal_ids_out", p.node("Compare", [ids, p.const(np.int64(-2))], (4, 5), kind="NotEqual", **FLAG))
    for name, kind in (("counts", ir.DataType.INT64), ("counts32", ir.DataType.INT32)):
        counts = [indices(p, f"{name}_ids", (3, 11), 900, kind), *p.scales(np.float32(0.31))]
        p.output(name, p.node("Requantize", counts, (3, 11), x_zero_point=0, **p.requantizing("uint8", 9)))
    number(p, "Cast", [flags[0]], "truth", ir.DataType.BOOL, (3, 17), to=int(ir.DataType.BOOL))
    for name, shape, token in (("select", (2, 3, 17), "uint8"), ("select_wide", (3, 17), "int16")):
        a, b = p.input(f"{name}_a", shape, token), p.input(f"{name}_b", shape[-1:], token)
        p.output(name, p.node("Select", [flags[1], a, b], shape, token, format=token))
    kept = p.const(np.tril(np.ones((6, 6), np.uint8)))
    zero = p.describe(p.const(np.uint8(77)), "uint8", 77, ())
    p.output("select_constant", p.node("Select", [kept, p.input("tril_x", (2, 6, 6)), zero], (2, 6, 6), **FLAG))


def _slopes(p: Problems) -> None:
    for name, x, per, tokens, shift in (
        ("prelu", (1, 19, 5, 7), (19, 1, 1), ("uint8", "uint8"), 20),
        ("prelu_signed", (2, 33), (33,), ("int8", "int8"), 20),
        ("prelu_wide", (1, 6, 8), (6, 1), ("uint16", "int16"), 29),
    ):
        fmt, to = parse_format(tokens[0]), parse_format(tokens[1])
        slopes = p.rng.integers(-(1 << shift), 1 << shift, per).astype(np.int32)
        inputs = [p.input(f"{name}_x", x, tokens[0]), p.const(slopes)]
        given = {"x_zero_point": (fmt.min + fmt.max) // 2, "multiplier": 1_234_567 << max(0, shift - 21)}
        y = p.node("Slope", inputs, x, tokens[1], shift=shift, zero_point=(to.min + to.max) // 2, format=tokens[1],
                   **given)  # fmt: skip
        p.output(name, y)


def _places(p: Problems) -> None:
    for name, op, x, axis, keepdims, last, token in (
        ("arg_max", "ArgMax", (2, 9, 6, 5), 1, 0, 0, "uint4"),
        ("arg_min_last", "ArgMin", (3, 50), 1, 1, 1, "int4"),
        ("arg_max_wide", "ArgMax", (7,), 0, 1, 0, "uint16"),
    ):
        shape = [1 if d == axis else e for d, e in enumerate(x) if keepdims or d != axis]
        given = {"axis": axis, "keepdims": keepdims, "select_last_index": last}
        number(p, op, [p.input(f"{name}_x", x, token)], name, ir.DataType.INT64, shape, **given)
    for name, x, axis, k, most, token in (
        ("top_k", (3, 40), 1, 7, 1, "uint4"),
        ("top_k_least", (2, 11, 6), 1, 11, 0, "int8"),
    ):
        shape = [k if d == axis else e for d, e in enumerate(x)]
        node = p.graph.add_node(
            "TopK", [p.input(f"{name}_x", x, token), p.const(np.array([k]))],
            {"axis": axis, "largest": most, "sorted": 1}, name=name, outputs=[f"{name}_codes", f"{name}_places"],
        )  # fmt: skip
        p.output(name, p.describe(node.outputs[0], token, 0, shape))
        node.outputs[1].shape, node.outputs[1].type = ir.Shape(shape), ir.TensorType(ir.DataType.INT64)
        number(p, "Cast", [node.outputs[1]], f"{name}_narrow", ir.DataType.INT32, shape, to=int(ir.DataType.INT32))


def _interpolation(p: Problems) -> None:
    for name, x, axis, size, tokens, mode, extra in (
        ("linear_rows", (1, 19, 6, 7), 2, 13, ("uint8", "int16n"), "linear", {}),
        ("linear_columns", (1, 19, 6, 7), 3, 4, ("int16n", "uint8"), "linear", {}),
        ("cubic", (2, 3, 9), 2, 21, ("int8", "int8"), "cubic", {}),
        ("cubic_wide", (1, 2, 5, 6), 2, 8, ("uint16", "uint16"), "cubic", {"exclude_outside": 1}),
        ("antialias", (1, 4, 50, 3), 2, 2, ("uint8", "uint8"), "linear", {"antialias": 1}),
    ):
        factor = size / x[axis]
        at = coordinates(x[axis], size, factor, (0.0, 1.0), {}, np.float64)
        index, weight = resize_taps(x[axis], at, factor, {"mode": mode, **extra})
        _interpolate(p, name, x, axis, index, weight, tokens)
    grid = p.rng.uniform(-1.3, 1.3, (4, 5, 2))
    _interpolate(p, "grid", (1, 6, 56), 2, *grid_taps((7, 8), grid, {"mode": "linear"}), ("uint8", "uint8"))


def _interpolate(p: Problems, name: str, x: Sequence[int], axis: int, index: np.ndarray, weight: np.ndarray,
                 tokens: tuple[str, str]) -> None:  # fmt: skip
    fmt, to = (parse_format(token) for token in tokens)
    ratio = (to.max - to.min) / (fmt.max - fmt.min)
    shift = (21 if fmt.bits <= 8 else 14) - max(0, to.bits - fmt.bits)
    shift = 28 if min(fmt.bits, to.bits) > 8 else shift
    inputs = [
        p.input(f"{name}_x", x, tokens[0]),
        p.const(index.astype(np.int32)),
        p.const(rounded(weight * ratio * 2.0**shift)),
    ]
    shape = [len(index) if d == axis else e for d, e in enumerate(x)]
    given = {"x_zero_point": (fmt.min + fmt.max) // 3, "zero_point": (to.min + to.max) // 2}
    p.output(name, p.node("Interpolate", inputs, shape, tokens[1], axis=axis, shift=shift, format=tokens[1], **given))
