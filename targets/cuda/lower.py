"""Rules of the cuda target: products on tensor cores, windows with a thread an element.

Everything else is the shared lowering's, one thread a unit (grid.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import Int
from qcompiler.graph.model import Graph, attribute
from qcompiler.targets.cuda.fuse import Fusion, on_tensor_cores, steps_of
from qcompiler.targets.cuda.lower_attention import find_heads, lower_heads
from qcompiler.targets.cuda.lower_batched import lower_batch_matmul
from qcompiler.targets.cuda.lower_product import grain_of, product, store_of
from qcompiler.targets.cuda.machine import has_tensor_cores
from qcompiler.targets.cuda.tir.depthwise import Depthwise
from qcompiler.targets.cuda.tir.direct import WINDOW, DirectConv, DirectPool, elements_launch
from qcompiler.targets.cuda.tir.epilogue import Codes, code_numbers, itemsize
from qcompiler.targets.shared.geometry import Window, window_of
from qcompiler.targets.shared.lower import RULES, Rule
from qcompiler.targets.shared.lower_clipped import evenly
from qcompiler.targets.shared.lower_products import transposed_window
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.reads import (
    feed,
    format_of,
    requantize_inputs,
    requantize_of,
    settle,
    sums_fit,
    target_of,
)
from qcompiler.targets.shared.views import View, as_image


def _format(node: ir.Node) -> Int:
    return format_of(node.outputs[0])


def lower_conv(program: Program, node: ir.Node, chain: Sequence[ir.Node] = ()) -> bool:
    """Conv, with the nodes of `chain`; False where those have to be done by themselves, which are not done then."""
    value, weights = node.inputs[0], program.graph.const(node.inputs[1])
    assert value is not None and weights is not None
    if weights.ndim == 3:
        weights = weights[:, :, None, :]
    window, groups = window_of(program.graph, node), attribute(node, "group", 1)
    return _convolve(program, node, value, weights, window, groups, chain)


def lower_conv_transpose(program: Program, node: ir.Node) -> None:
    """ConvTranspose: a convolution of the input with zeros between its cells."""
    value = node.inputs[0]
    assert value is not None
    window, weights, groups, spread = transposed_window(program, node)
    own = program.view(value)
    program.views[str(value.name)] = spread
    _convolve(program, node, value, weights, window, groups)
    program.views[str(value.name)] = own


def _convolve(
    program: Program,
    node: ir.Node,
    value: ir.Value,
    weights: NDArray,
    window: Window,
    groups: int,
    chain: Sequence[ir.Node] = (),
) -> bool:
    """weights: [M, C / groups, KH, KW]."""
    x = feed(program, value, program.view(value).dtype, 0, ((0, 0),) * window.rank, 0)
    if on_tensor_cores(format_of(value), weights, groups):
        steps = steps_of(program, node, chain, len(weights) // groups)
        last = (chain[-1] if chain and steps is not None else node).outputs[0]
        y = evenly(program, last, window)
        product(program, node, x, y, weights, window, groups, steps or ())
        settle(program, last, y)
        return steps is not None
    y = target_of(program, node.outputs[0], 1)
    bytes_ = format_of(value).bits <= 8 and weights.min() >= -128 and weights.max() <= 127
    depthwise = bytes_ and groups == window.channels == len(weights) and _fours(x, y)
    (_depthwise if depthwise else _direct)(program, node, value, x, y, weights, window, groups)
    settle(program, node.outputs[0], y)
    return True


def _fours(x: View, y: View) -> bool:
    """Whether four channels are a word, in x and in y."""
    size = itemsize(y.dtype)
    return x.shape[1] % 4 == 0 and grain_of(x, x.shape[1]) >= 4 and store_of(y, y.shape[1], size) >= 4 * size


def _depthwise(
    program: Program, node: ir.Node, value: ir.Value, x: View, y: View, weights: NDArray, window: Window, groups: int
) -> None:
    rows, columns = window.output
    pixels = min(columns, 4 if window.strides[1] == 1 else 2)
    codes = Codes.of(requantize_of(node))
    spec = Depthwise(x.dtype, codes, window.kernel, window.strides[1], window.dilations, pixels)
    zero, taps = attribute(node, "x_zero_point", 0), weights[:, 0]
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    folded = (bias.astype(np.int64) - zero * taps.astype(np.int64).sum(axis=(1, 2))).astype(np.int32)
    total = window.batch * rows * columns * groups
    fill = int(np.full(4, zero, x.dtype).view(np.int32)[0])
    arrays = [spec.pack(taps), folded, *requantize_inputs(program, node, 3)]
    program.call(
        spec,
        total,
        x,
        y,
        *(program.parameter(p, f"{node.name}/parameters") for p in arrays),
        numbers=[
            *_window_numbers(node, window, x, y, 1, 1, total),
            groups,
            -(-columns // pixels),
            fill,
            *code_numbers(requantize_of(node)),
        ],
        launch=spec.launch(window.batch, rows, columns, groups),
    )


def _window_numbers(
    node: ir.Node, window: Window, x: View, y: View, inputs: int, outputs: int, total: int
) -> list[int]:
    xi, yi = as_image(x).strides, as_image(y).strides
    values = [
        *window.output, *window.input, *window.kernel, *window.strides, *window.dilations, *window.before,
        xi[0], xi[2], xi[3], yi[0], yi[2], yi[3], inputs, outputs, total, attribute(node, "x_zero_point", 0),
    ]  # fmt: skip
    assert len(values) == len(WINDOW)
    return values


def _direct(
    program: Program, node: ir.Node, value: ir.Value, x: View, y: View, weights: NDArray, window: Window, groups: int
) -> None:
    m, c = weights.shape[:2]
    fmt, zero = format_of(value), attribute(node, "x_zero_point", 0)
    wide = fmt.bits > 8 and not sums_fit(program, node, fmt, zero, weights)
    kind = "int8" if weights.min() >= -128 and weights.max() <= 127 else "int16"
    spec = DirectConv(x.dtype, kind, Codes.of(requantize_of(node), wide=wide))
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    arrays = [weights.transpose(2, 3, 1, 0).astype(kind), bias.astype("int64" if wide else "int32")]
    total = window.batch * prod(window.output) * m
    program.call(
        spec,
        total,
        x,
        y,
        *(program.parameter(p, f"{node.name}/parameters") for p in (*arrays, *requantize_inputs(program, node, 3))),
        numbers=[
            *_window_numbers(node, window, x, y, c, m // groups, total),
            m,
            *code_numbers(requantize_of(node)),
        ],
        launch=elements_launch(total),
    )


def lower_matmul(program: Program, node: ir.Node, chain: Sequence[ir.Node] = ()) -> bool:
    """x [..., K] @ w [K, N]: a 1x1 convolution over a line of pixels. chain, result: as lower_conv has them."""
    value, weights = node.inputs[0], program.graph.const(node.inputs[1])
    assert value is not None and weights is not None
    x = program.view(value)
    (k, n), rows = weights.shape, prod(x.shape[:-1])
    if not x.is_dense():
        dense = program.scratch(f"{value.name}/dense", x.dtype, x.shape, range(len(x.shape)))
        program.copy(x, dense)
        x = dense
    tensor = on_tensor_cores(format_of(value), weights.T[:, :, None, None], 1, least=0)
    steps = steps_of(program, node, chain, n) if tensor else []
    last = (chain[-1] if chain and steps is not None else node).outputs[0]
    y = target = program.view(last)
    if not target.is_dense():
        y = program.scratch(f"{last.name}/dense", target.dtype, target.shape, range(len(target.shape)))
    line = replace(x, shape=(1, k, 1, rows), strides=(rows * k, 1, rows * k, k), border=())
    out = replace(y, shape=(1, n, 1, rows), strides=(rows * n, 1, rows * n, n), border=())
    window = Window(4, 1, k, (1, rows), (1, rows), (1, 1), (1, 1), (1, 1), (0, 0))
    turned = np.ascontiguousarray(weights.T)[:, :, None, None]
    if tensor:
        product(program, node, line, out, turned, window, 1, steps or ())
    else:
        _direct(program, node, value, line, out, turned, window, 1)
    settle(program, last, y)
    return steps is not None


def lower_pool(program: Program, node: ir.Node) -> None:
    """MaxPool and AveragePool."""
    value = node.inputs[0]
    assert value is not None
    window = window_of(program.graph, node)
    x = feed(program, value, program.view(value).dtype, 0, ((0, 0),) * window.rank, 0)
    y = target_of(program, node.outputs[0], 1)
    average = node.op_type == "AveragePool"
    scales = requantize_inputs(program, node, 1) if average else []
    per_position = bool(scales) and scales[0].size > 1
    spec = DirectPool(x.dtype, Codes.of(requantize_of(node)) if average else None, per_position)
    total = window.batch * prod(window.output) * window.channels
    codes = code_numbers(requantize_of(node)) if average else ()
    program.call(
        spec,
        total,
        x,
        y,
        *(program.parameter(p.ravel(), f"{node.name}/scale") for p in scales),
        numbers=[*_window_numbers(node, window, x, y, window.channels, window.channels, total), *codes],
        launch=elements_launch(total),
    )
    settle(program, node.outputs[0], y)


def _alone(program: Program, node: ir.Node) -> None:
    (lower_conv if node.op_type == "Conv" else lower_matmul)(program, node)


OWN: dict[str, Rule] = {
    "qcompiler::AveragePool": lower_pool,
    "qcompiler::BatchMatMul": lower_batch_matmul,
    "qcompiler::Conv": _alone,
    "qcompiler::ConvTranspose": lower_conv_transpose,
    "qcompiler::MatMul": _alone,
    "qcompiler::MaxPool": lower_pool,
}


def rules_for(graph: Graph, machine: Machine) -> dict[str, Rule]:
    """Operator -> rule, of a graph: products are lowered where the last node of their chain is (fuse.py).

    Attention in one kernel needs tensor cores; without them it is two products with a softmax between them.
    """
    fusion = Fusion(graph)
    rules: dict[str, Rule] = {**RULES, **OWN}

    def make(program: Program, node: ir.Node) -> None:
        if not fusion.chain(node):
            _alone(program, node)

    def follow(program: Program, node: ir.Node) -> None:
        product = fusion.owner(node)
        if product is None:
            rules_before[f"qcompiler::{node.op_type}"](program, node)
            return
        chain = fusion.chain(product)
        if node is not chain[-1]:
            return
        program.node = str(product.name)
        if not (lower_conv if product.op_type == "Conv" else lower_matmul)(program, product, chain):
            for one in chain:
                program.node = str(one.name)
                rules_before[f"qcompiler::{one.op_type}"](program, one)

    def batch(program: Program, node: ir.Node) -> None:
        if node.name in ends:
            lower_heads(program, ends[str(node.name)])
        elif node.name not in inside:
            lower_batch_matmul(program, node)

    def inside_or(program: Program, node: ir.Node) -> None:
        if node.name not in inside:
            (follow if node.op_type == "Table" else RULES["qcompiler::Softmax"])(program, node)

    rules_before = dict(rules)
    taken = {str(node.name) for chain in fusion.chains.values() for node in chain}
    ends, inside = {}, set()
    for node in graph.nodes():
        candidate = node.op_type == "BatchMatMul" and has_tensor_cores(machine)
        heads = find_heads(graph, node, taken) if candidate else None
        if heads is not None and node.name not in inside:
            ends[str(node.name)] = heads
            inside |= {str(one.name) for one in heads.inside()}
    own: dict[str, Rule] = {
        "Conv": make, "MatMul": make, "Add": follow, "Table": inside_or, "Softmax": inside_or, "BatchMatMul": batch,
    }  # fmt: skip
    return {**rules, **{f"qcompiler::{name}": rule for name, rule in own.items()}}
