"""Products of two activations as calls: on tensor cores where both are bytes, else with a thread an element."""

from __future__ import annotations

from math import gcd, prod

import numpy as np
import onnx_ir as ir

from qcompiler.graph.model import attribute
from qcompiler.targets.cuda.tile import Shape, choose_tile
from qcompiler.targets.cuda.tir.batched import NUMBERS, BatchedProduct, Operand
from qcompiler.targets.cuda.tir.direct import BATCHED, DirectProduct, elements_launch
from qcompiler.targets.cuda.tir.epilogue import Codes, code_numbers, itemsize
from qcompiler.targets.cuda.tir.tile import CHUNK, LINE, LINES
from qcompiler.targets.shared.lower_attention import batch_nest, batched, sums_of_products_fit
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.reads import format_of, requantize_inputs, requantize_of
from qcompiler.targets.shared.views import View

LEAST_INNER, LEAST_PRODUCTS = 16, 1024
"""Inner dimension, and products of a matrix of y, from which on they go to tensor cores."""
MOST_BATCH = 65535
"""Matrices that a grid can number."""


def lower_batch_matmul(program: Program, node: ir.Node) -> None:
    """a [..., M, K] @ b [..., K, N]."""
    a, b = (program.view(value) for value in node.inputs[:2])  # type: ignore[arg-type]
    y = program.view(node.outputs[0])
    batch = y.shape[:-2]
    a, b = batched(a, batch), batched(b, batch)
    nest = batch_nest(batch, a.strides[:-2], b.strides[:-2], y.strides[:-2])
    bytes_ = max(format_of(v).bits for v in node.inputs[:2]) <= 8  # type: ignore[arg-type]
    total, (rows, columns), inner = prod(y.shape), y.shape[-2:], a.shape[-1]
    values = {
        "total": total,
        "rows": rows,
        "inner": inner,
        "columns": columns,
        "a_zero_point": attribute(node, "a_zero_point", 0),
        "b_zero_point": attribute(node, "b_zero_point", 0),
        **dict(zip(("a_row", "a_k"), a.strides[-2:], strict=True)),
        **dict(zip(("b_k", "b_n"), b.strides[-2:], strict=True)),
        **dict(zip(("y_row", "y_n"), y.strides[-2:], strict=True)),
        "extent1": nest.extents[1],
        "extent2": nest.extents[2],
        **{f"{v}{d}": nest.strides[i][d] for i, v in enumerate("aby") for d in range(3)},
    }
    scales = [program.parameter(p, f"{node.name}/scale") for p in requantize_inputs(program, node, 2)]
    codes = code_numbers(requantize_of(node))
    enough = inner >= LEAST_INNER and rows * columns * inner >= LEAST_PRODUCTS
    if bytes_ and enough and prod(batch) <= MOST_BATCH:
        tile = choose_tile("sm_75" if program.machine.name == "sm_90a" else program.machine.name,
                           Shape(rows, columns, inner, prod(batch)), split=False).tile  # fmt: skip
        spec = BatchedProduct(
            operand_of(a, -2, -1, nest.strides[0]),
            operand_of(b, -1, -2, nest.strides[1]),
            Codes.of(requantize_of(node)),
            tile,
            _store(y, nest.strides[2]),
            not values["a_zero_point"],
            not values["b_zero_point"],
        )
        values["tiles"] = -(-inner // tile.step)
        zeros = program.parameter(np.zeros(LINES * LINE, np.uint8), f"{node.name}/zeros")
        numbers = [*(values[name] for name in NUMBERS), *codes]
        launch = spec.launch(prod(batch), rows, columns)
        program.call(spec, 0, a, b, y, *scales, zeros, numbers=numbers, launch=launch)
        return
    wide = not bytes_ and not sums_of_products_fit(node, inner)
    direct = DirectProduct(a.dtype, b.dtype, Codes.of(requantize_of(node), wide=wide))
    numbers = [*(values[name] for name in BATCHED), *codes]
    program.call(direct, total, a, b, y, *scales, numbers=numbers, launch=elements_launch(total))


def operand_of(view: View, row: int, inner: int, batch: tuple[int, ...]) -> Operand:
    """How bytes lie. row, inner: dimensions of the view; batch: elements between matrices."""
    rows, length = view.shape[row], view.shape[inner]
    step, along = view.strides[row] if rows > 1 else 0, view.strides[inner] if length > 1 else 1
    if along == 1:
        grain = gcd(length, view.origin, step, *batch, CHUNK)
        return Operand(view.dtype, grain if grain >= 4 else 0)
    words = step == 1 and gcd(rows, view.origin, along, *batch) % 4 == 0
    return Operand(view.dtype, 0, words)


def _store(y: View, batch: tuple[int, ...]) -> int:
    """Bytes of y that may be written at once."""
    size = itemsize(y.dtype)
    if y.strides[-1] != 1 and y.shape[-1] > 1:
        return size
    return size * gcd(y.shape[-1], y.origin, y.strides[-2] if y.shape[-2] > 1 else 0, *batch, CHUNK // size)
