"""Chains done band by band, for less memory: convolution -> depthwise convolution -> 1x1 convolution.

The values between them never exist as a whole: some output rows at a time, the first makes the rows that the second
reads, of which the last ones are kept for the next band, and the third uses up what the second wrote. Nothing is
computed twice. Patch-based inference of MCUNetV2 (Lin et al. 2021, arXiv:2110.15352) has the same aim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import onnx_ir as ir

from qcompiler.graph.model import Graph, attribute
from qcompiler.targets.shared.geometry import Window, window_of
from qcompiler.targets.shared.lower_clipped import Piece, lower_piece
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.views import View, channels_last

BAND = 4
"""Output rows of the depthwise convolution in a band."""
Chain = tuple[str, ...]
"""Names of nodes, in order."""


def chains(graph: Graph) -> list[Chain]:
    """Every chain that may be done in bands: with both neighbours of a depthwise convolution, and with one."""
    found: list[Chain] = []
    for node in graph.nodes("Conv"):
        if not _is_depthwise(graph, node):
            continue
        before, after = _before(graph, node), _after(graph, node)
        names = [None if n is None else str(n.name) for n in (before, node, after)]
        for chain in (names, names[:2], names[1:]):
            if None not in chain:
                found.append(tuple(chain))  # type: ignore[arg-type]
    return found


def _is_depthwise(graph: Graph, node: ir.Node) -> bool:
    window = window_of(graph, node)
    groups = attribute(node, "group", 1)
    square = window.rank == 4 and window.batch == 1 and groups == window.channels > 1
    weights = graph.shape(node.inputs[1])  # type: ignore[arg-type]
    tall = window.output[0] > BAND and window.before[0] >= 0 and window.dilations == (1, 1)
    return square and weights[0] == groups and tall and window.output[1] >= 4 and window.input[1] >= 4


def _before(graph: Graph, node: ir.Node) -> ir.Node | None:
    value = node.inputs[0]
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "Conv" or not _only_use(graph, value, node):
        return None
    return None if attribute(maker, "group", 1) > 1 else maker


def _after(graph: Graph, node: ir.Node) -> ir.Node | None:
    value = node.outputs[0]
    reader = graph.sole_user(value)
    if reader is None or reader.op_type != "Conv" or not _only_use(graph, value, reader):
        return None
    window = window_of(graph, reader)
    plain = window.kernel == window.strides == (1, 1) and window.before == (0, 0) and window.input == window.output
    return reader if plain and attribute(reader, "group", 1) == 1 else None


def _only_use(graph: Graph, value: ir.Value | None, reader: ir.Node) -> bool:
    return value is not None and graph.sole_user(value) is reader and len(list(value.uses())) == 1


@dataclass(frozen=True)
class _Band:
    """Rows of one band. `source` to `behind` are the input rows that it reads, of which `kept` are there already."""

    first: int
    rows: int
    source: int
    behind: int
    above: int
    """Rows of padding above `source`."""
    kept: int
    shift: int
    """Rows by which the kept ones move up."""

    def kind(self) -> tuple[int, ...]:
        """Bands of one kind differ in where they begin alone."""
        return self.rows, self.behind - self.source, self.above, self.kept, self.shift


def _bands(window: Window) -> Iterator[_Band]:
    previous: _Band | None = None
    for first in range(0, window.output[0], BAND):
        rows = min(BAND, window.output[0] - first)
        top = first * window.strides[0] - window.before[0]
        source, behind = max(0, top), min(window.input[0], top + (rows - 1) * window.strides[0] + window.kernel[0])
        kept = max(0, previous.behind - source) if previous else 0
        shift = source - previous.source if previous else 0
        previous = _Band(first, rows, source, behind, max(0, -top), kept, shift)
        yield previous


def lower_chain(program: Program, nodes: Sequence[ir.Node]) -> None:
    """One chain of `chains`."""
    graph = program.graph
    middle = next(i for i, node in enumerate(nodes) if attribute(node, "group", 1) > 1)
    depthwise, maker = nodes[middle], nodes[0] if middle else None
    reader = nodes[middle + 1] if middle + 1 < len(nodes) else None
    window = window_of(graph, depthwise)
    bands = list(_bands(window))
    x = program.view(depthwise.inputs[0])  # type: ignore[arg-type]
    if maker is not None:
        height = max(band.behind - band.source for band in bands)
        x = _rows_of(program, depthwise.inputs[0], height)  # type: ignore[arg-type]
    y = program.view(depthwise.outputs[0])
    if reader is not None:
        y = _rows_of(program, depthwise.outputs[0], BAND)
    for _, group in groupby(bands, key=_Band.kind):
        same = list(group)
        band, count = same[0], len(same)
        stride = BAND * window.strides[0]
        with program.repeated(count):
            if maker is not None:
                program.node = str(maker.name)
                if band.kept:
                    program.copy(_rows(x, band.shift, band.kept), _rows(x, 0, band.kept))
                made = window_of(graph, maker)
                fresh = band.behind - band.source - band.kept
                piece = Piece(band.source + band.kept, fresh, stride, 0, 0, count * fresh / made.output[0])
                source = program.view(maker.inputs[0])  # type: ignore[arg-type]
                lower_piece(program, maker, made, source, _rows(x, band.kept, fresh), piece)
            program.node = str(depthwise.name)
            part = replace(
                window,
                input=(band.behind - band.source, window.input[1]),
                output=(band.rows, window.output[1]),
                before=(band.above, window.before[1]),
            )
            share = count * band.rows / window.output[0]
            x_part = x if maker is not None else _rows(x, band.source, part.input[0])
            y_part = _rows(y, 0 if reader is not None else band.first, band.rows)
            x_step = 0 if maker is not None else stride * x.strides[2] * x.itemsize
            y_step = 0 if reader is not None else BAND * y.strides[2] * y.itemsize
            lower_piece(program, depthwise, part, x_part, y_part, Piece(0, 0, 0, x_step, y_step, share))
            if reader is not None:
                program.node = str(reader.name)
                out = program.view(reader.outputs[0])
                flat = replace(window_of(graph, reader), input=part.output, output=part.output)
                step = BAND * out.strides[2] * out.itemsize
                piece = Piece(0, 0, 0, 0, step, share)
                lower_piece(program, reader, flat, y_part, _rows(out, band.first, band.rows), piece)


def _rows_of(program: Program, value: ir.Value, rows: int) -> View:
    """Memory for some rows of a value."""
    view = program.view(value)
    n, c, _, w = view.shape
    return program.scratch(f"{value.name}/rows", view.dtype, (n, c, rows, w), channels_last(4))


def _rows(view: View, first: int, count: int) -> View:
    n, c, _, w = view.shape
    return view.window([0, 0, first, 0], [n, c, count, w])


def least_memory(graph: Graph, plan: Callable[[tuple[Chain, ...]], Program], peak: Callable[[Program], str]) -> Program:
    """The program with the smallest arena that adding one chain after the other finds.

    plan: chains to do in bands -> program; peak: name of the node during which most memory is alive.
    """
    every = chains(graph)
    best = program = plan(())
    chosen: tuple[Chain, ...] = ()
    while True:
        node, taken = peak(program), {name for chain in chosen for name in chain}
        tries = [(*chosen, chain) for chain in every if node in chain and not taken & set(chain)]
        programs = [(plan(each), each) for each in tries]
        if not programs:
            return best
        # Several layers may share the peak: only when all of them are in bands does the arena become smaller.
        program, chosen = min(programs, key=lambda pair: pair[0].arena_bytes)
        if program.arena_bytes < best.arena_bytes:
            best = program
        elif program.arena_bytes > best.arena_bytes:
            return best
