"""Where every value of an integer graph lies: memory order, borders, and views into the consumer's memory.

Values that convolutions and pools touch lie channels-last, with the border that their readers need. A value whose
only reader is a Concat, Pad, Transpose or Reshape is written straight into that reader's output.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.formats import parse_format
from qcompiler.graph.islands import is_island
from qcompiler.graph.model import attribute
from qcompiler.targets.shared.geometry import Window, window_of
from qcompiler.targets.shared.lower_clipped import overwrites
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.views import Buffer, View, allocate, channels_last, dense_strides

IN_PLACE = {"Add", "Mul", "Requantize", "Table"}
"""Operators of one pass over their elements."""
SPATIAL = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "Resize", "DepthToSpace"}
MOVING = {"Identity", "Reshape", "Slice", "Split", "Transpose"}
"""Operators whose outputs can be their inputs' memory."""
CONTIGUOUS = {"AveragePool", "Conv", "ConvTranspose", "MatMul", "MaxPool"}
"""Operators that write runs of channels."""
TIED = {
    "Add",
    "Mul",
    "Div",
    "Table",
    "Requantize",
    "Concat",
    "Split",
    "Slice",
    "Pad",
    "ReduceMean",
    "Softmax",
    "Max",
    "Min",
    "ReduceMax",
    "ReduceMin",
    "Compare",
    "Select",
    "Slope",
    "Interpolate",
    "Normalize",
    "LogEncode",
    "Piecewise",
    *SPATIAL,
}


def assign(program: Program) -> None:
    """Fill program.views for every input, output and intermediate value."""
    graph = program.graph
    last = _channels_last_values(program)
    kept = list(program.states.values())
    shown = [value for value in graph.inputs if value.name not in kept]
    for value in graph.inputs:
        shape, name = program.shape(value), str(value.name)
        kind, index = ("state", kept.index(name)) if name in kept else ("input", shown.index(value))
        program.views[name] = View(Buffer(kind, 0, name, index=index), storage_of(value), shape, dense_strides(shape))
    outputs = {value.name: i for i, value in enumerate(v for v in graph.outputs if str(v.name) not in program.states)}
    in_place = _caches_in_place(program)
    for node in reversed(graph.nodes()):
        for value in node.outputs:
            if value.name in in_place:
                program.views[str(value.name)] = program.views[in_place[str(value.name)]]
            elif value.name in program.states:
                shape, name = program.shape(value), str(value.name)
                view = allocate(f"{name}/next", storage_of(value), shape, tuple(range(len(shape))), (), 0)
                program.buffers.append(view.buffer)
                program.views[name] = view
            elif value.name in outputs:
                shape = program.shape(value)
                buffer = Buffer("output", 0, str(value.name), index=outputs[value.name])
                program.views[str(value.name)] = View(buffer, storage_of(value), shape, dense_strides(shape))
            else:
                program.views[str(value.name)] = _place(program, value, last)


def _caches_in_place(program: Program) -> dict[str, str]:
    """Caches that are kept, and outputs that are such, by name -> the state whose memory they are.

    Nobody but the CacheWrite reads the state, so that it may be written where it lies.
    """
    found: dict[str, str] = {}
    outputs = {str(value.name): value for value in program.graph.outputs}
    for output, state in program.states.items():
        copy = outputs[output].producer()
        source = copy.inputs[0] if copy is not None and copy.op_type == "Identity" else outputs[output]
        node = source.producer() if source is not None else None
        past = node.inputs[0] if node is not None and node.op_type == "CacheWrite" else None
        if past is not None and past.name == state and program.graph.sole_user(past) is node:
            found |= {output: state, str(source.name): state}  # type: ignore[union-attr]
    return found


def storage_of(value: ir.Value) -> str:
    """dtype of a value's elements: the storage of its format, else (float32 boundary, indices) its own type."""
    token = value.metadata_props.get("qcompiler.format")
    if token is not None:
        return str(parse_format(token).storage)
    if value.dtype == ir.DataType.BOOL:
        return "uint8"
    return "float32" if value.dtype is None else str(value.dtype.numpy())


def _place(program: Program, value: ir.Value, last: set[str]) -> View:
    shape = program.shape(value)
    rank = len(shape)
    order = channels_last(rank) if value.name in last else tuple(range(rank))
    inside = _inside_reader(program, value, order)
    if inside is not None:
        return inside
    border, code = _wanted_border(program, value)
    view = allocate(str(value.name), storage_of(value), shape, order, border, code)
    program.buffers.append(view.buffer)
    return view


def _inside_reader(program: Program, value: ir.Value, order: tuple[int, ...]) -> View | None:
    """The part of the sole reader's output that this value becomes, if it can be written there directly."""
    reader = program.graph.sole_user(value)
    if reader is None or len([use for use in value.uses()]) != 1 or is_island(reader):
        return None
    target = program.views[str(reader.outputs[0].name)] if reader.outputs[0].name in program.views else None
    if target is None or target.buffer.kind not in ("arena", "output"):
        return None
    shape = program.shape(value)
    if reader.op_type == "Identity":
        return target
    if reader.op_type == "Transpose":
        perm = attribute(reader, "perm", list(reversed(range(len(shape)))))
        view = View(
            target.buffer,
            target.dtype,
            shape,
            tuple(target.strides[perm.index(d)] for d in range(len(shape))),
            target.origin,
        )
        return view if not program.machine.grid or _written_there(program, value, reader, view) else None
    if reader.op_type == "Concat":
        axis = attribute(reader, "axis") % len(shape)
        before = list(reader.inputs).index(value)
        starts = [0] * len(shape)
        starts[axis] = sum(program.shape(v)[axis] for v in reader.inputs[:before] if v is not None)
        return target.window(starts, shape)
    if reader.op_type == "Pad" and attribute(reader, "mode", "constant") == "constant":
        begins, ends = pad_amounts(program, reader)
        if min(begins + ends) >= 0:
            return target.window(begins, shape)
    if reader.op_type == "Reshape" and program.machine.grid:
        inside = target.regrouped(shape)
        return inside if inside is not None and _written_there(program, value, reader, inside) else None
    if reader.op_type == "Reshape" and target.is_dense():
        size = allocate("", "uint8", shape, order)
        if size.is_dense():
            return target.reshaped(shape)
    if program.machine.in_place and _may_overwrite(program, value, reader, target):
        return replace(target, dtype=storage_of(value))
    return None


def _written_there(program: Program, value: ir.Value, reader: ir.Node, view: View) -> bool:
    """On a grid, whether `value` is made where its reader, which only moves it, has it (`view`): else the reader shows
    the value's memory, since strides cost kernels that read it little, and a copy costs a launch."""
    producer, shown = value.producer(), reader.outputs[0]
    fixed = view.buffer.kind != "arena" or view.buffer.name != shown.name
    if producer is None or producer.op_type in MOVING:
        return fixed
    if producer.op_type in CONTIGUOUS:
        channel = 1 if producer.op_type != "MatMul" else len(view.shape) - 1
        kept = [d for d in range(len(view.shape)) if d != channel and view.shape[d] != 1]
        even = all(view.strides[a] == view.strides[b] * view.shape[b] for a, b in zip(kept, kept[1:], strict=False))
        return even and (view.strides[channel] == 1 or view.shape[channel] == 1)
    return fixed or not {use.node.op_type for use in shown.uses()} <= {"BatchMatMul", "Slice", "Split", "Transpose"}


def _may_overwrite(program: Program, value: ir.Value, reader: ir.Node, target: View) -> bool:
    """Whether `reader` may write its output over `value`, its input: element by element, or as PlaneDepthwise does."""
    shape = program.shape(value)
    size = np.dtype(storage_of(value)).itemsize
    whole = target.buffer.kind == "output" or target.buffer.bytes == prod(shape) * size
    if shape != target.shape or size != target.itemsize or not whole:
        return False
    others = [program.views.get(str(v.name)) for v in reader.inputs if v is not None and v is not value]
    if any(view is not None and view.buffer is target.buffer for view in others):
        return False
    if reader.op_type == "Conv":
        return reader.inputs[0] is value and overwrites(program, reader)
    return reader.op_type in IN_PLACE


def pad_amounts(program: Program, node: ir.Node) -> tuple[list[int], list[int]]:
    """Cells before and after every dimension of a Pad node."""
    rank = len(program.shape(node.inputs[0]))  # type: ignore[arg-type]
    pads = [int(p) for p in program.graph.const(node.inputs[1]).tolist()]  # type: ignore[union-attr]
    axes_input = node.inputs[3] if len(node.inputs) > 3 else None
    axes = range(rank) if axes_input is None else [int(a) % rank for a in program.graph.const(axes_input)]  # type: ignore
    begins, ends = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[i], pads[i + len(pads) // 2]
    return begins, ends


def _wanted_border(program: Program, value: ir.Value) -> tuple[tuple[tuple[int, int], ...], int]:
    """The widest border that readers with the first reader's border code want."""
    wanted: list[tuple[Window, int]] = []
    for node in sorted({use.node for use in value.uses()}, key=lambda n: str(n.name)):
        if node.op_type in ("Conv", "MaxPool", "AveragePool") and node.inputs[0] is value and not is_island(node):
            window = window_of(program.graph, node)
            if any(before or after for before, after in window.border()):
                wanted.append((window, border_code(node, value)))
    rank = len(program.shape(value))
    if not wanted or not program.machine.borders:
        return ((0, 0),) * rank, 0
    code = wanted[0][1]
    borders = [window.border() for window, c in wanted if c == code]
    merged: list[tuple[int, int]] = [
        (max(b[d][0] for b in borders), max(b[d][1] for b in borders)) for d in range(rank)
    ]
    return tuple(merged), code


def border_code(node: ir.Node, value: ir.Value) -> int:
    """What a padded cell holds for this reader: the real 0, or what never wins a maximum."""
    if node.op_type == "MaxPool":
        return int(parse_format(value.metadata_props["qcompiler.format"]).min)
    return int(attribute(node, "x_zero_point", 0))


def _channels_last_values(program: Program) -> set[str]:
    """Names of values in layout groups that a spatial operator touches."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    seeds: list[str] = []
    for node in program.graph.nodes():
        if node.op_type not in TIED or is_island(node):
            continue
        values: list[Any] = [v for v in (*node.inputs, *node.outputs) if v is not None and not v.is_initializer()]
        values = [v for v in values if len(program.shape(v)) >= 3]
        for value in values[1:]:
            parent[find(str(value.name))] = find(str(values[0].name))
        reduces = node.op_type in ("ReduceMean", "ReduceMax", "ReduceMin")
        spatial_mean = reduces and 1 not in attribute(node, "axes", []) and len(values) > 1
        if values and (node.op_type in SPATIAL or spatial_mean and len(program.shape(values[0])) == 4):
            seeds.append(str(values[0].name))
    roots = {find(name) for name in seeds}
    return {name for name in list(parent) if find(name) in roots}
