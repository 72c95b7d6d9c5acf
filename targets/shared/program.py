"""A program: kernel calls in order, on an arena, constants, inputs and outputs.

Built by the rules in `lower_*.py`, one call at a time; lifetimes follow from the calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.model import Graph
from qcompiler.targets.shared import arena
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.pack import Constants
from qcompiler.targets.shared.tir.nest import collapse
from qcompiler.targets.shared.tir.pointwise import Convert, Fill
from qcompiler.targets.shared.views import Buffer, View, allocate, dense_strides


class Spec(Protocol):
    """What a kernel does, as a hashable value: equal specs share code."""

    def build(self, name: str, machine: Machine) -> Any:
        """The PrimFunc."""


@dataclass(frozen=True)
class Argument:
    """A pointer: a buffer and an offset in bytes; in a loop it moves on by `step` bytes each time."""

    buffer: Buffer
    offset: int = 0
    step: int = 0


@dataclass(eq=False)
class Loop:
    """Consecutive calls that are done `count` times, one after the other each time."""

    count: int
    first: int
    """Index of its first call."""


@dataclass
class Call:
    """kernel(start, start + units, arguments...); in a loop `start` moves on by `advance` units each time."""

    spec: Spec
    units: int
    arguments: list[Argument]
    node: str
    kernel: str = ""
    start: int = 0
    advance: int = 0
    loop: Loop | None = None
    share: float = 1.0
    """How much of the node's work it does, all times together."""
    numbers: tuple[int, ...] = ()
    """int32 values behind the pointers, of kernels that take some."""
    launch: Any = None
    """How a grid of threads does it, where the rule says so."""


@dataclass
class Program:
    """Calls, memory and constants under construction."""

    graph: Graph
    machine: Machine
    constants: Constants = field(default_factory=Constants)
    calls: list[Call] = field(default_factory=list)
    states: Mapping[str, str] = field(default_factory=dict)
    """Outputs that are kept for the next run -> the inputs that they become: memory of kind `state`."""
    views: dict[str, View] = field(default_factory=dict)
    buffers: list[Buffer] = field(default_factory=list)
    node: str = ""
    """Name of the node being lowered."""
    arena_bytes: int = 0
    arena_bound: int = 0
    """Bytes of the most values that live at once, scratch memory aside."""
    loop: Loop | None = None
    """The loop that calls are put into."""

    # -- values ------------------------------------------------------------------------------------------------

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Static shape."""
        return self.graph.shape(value)

    def view(self, value: ir.Value) -> View:
        """Where a value lies; constants are put into the blob in logical order."""
        assert value.name is not None
        if value.name not in self.views:
            array = self.graph.const(value)
            assert array is not None, f"{value.name} has no place"
            self.views[value.name] = self.constant(array, value.name)
        return self.views[value.name]

    def constant(self, array: NDArray, name: str) -> View:
        """A view of an array in the blob."""
        buffer = self.constants.add(array, name)
        return View(buffer, str(array.dtype), array.shape, dense_strides(array.shape))

    def scratch(
        self,
        name: str,
        dtype: str,
        shape: Sequence[int],
        order: Sequence[int],
        border: Sequence[tuple[int, int]] = (),
        border_code: int = 0,
    ) -> View:
        """Memory that lives from its first to its last use."""
        view = allocate(name, dtype, shape, order, border, border_code)
        self.buffers.append(view.buffer)
        return view

    # -- calls -------------------------------------------------------------------------------------------------

    def call(
        self,
        spec: Spec,
        units: int,
        *arguments: Argument | View,
        start: int = 0,
        advance: int = 0,
        share: float = 1.0,
        numbers: Sequence[int] = (),
        launch: Any = None,
    ) -> None:
        """Append a kernel call; views stand for the address of their first element."""
        pointers = [Argument(a.buffer, a.origin * a.itemsize) if isinstance(a, View) else a for a in arguments]
        if self.loop is None:
            pointers, advance = [replace(pointer, step=0) for pointer in pointers], 0
        for pointer in pointers:
            pointer.buffer.touch(len(self.calls))
        self.calls.append(
            Call(spec, units, pointers, self.node, "", start, advance, self.loop, share, tuple(numbers), launch)
        )

    @contextmanager
    def repeated(self, count: int) -> Iterator[None]:
        """Calls made inside are done `count` times; what was there before lives from the first to the last of them."""
        first, known = len(self.calls), len(self.buffers)
        self.loop = Loop(count, first) if count > 1 else None
        yield
        if self.loop is not None:
            temporary = set(map(id, self.buffers[known:]))
            for argument in (argument for call in self.calls[first:] for argument in call.arguments):
                if id(argument.buffer) not in temporary:
                    argument.buffer.touch(first)
                    argument.buffer.touch(len(self.calls) - 1)
        self.loop = None

    def parameter(self, array: NDArray, name: str) -> Argument:
        """A constant array as a pointer argument."""
        return Argument(self.constants.add(array, name))

    def copy(self, source: View, target: View, zero_point: int = 0) -> None:
        """target = source - zero_point, converting the storage."""
        order = sorted(range(len(target.shape)), key=lambda d: -target.strides[d])
        nest = collapse(
            [target.shape[d] for d in order],
            [target.strides[d] for d in order],
            [source.broadcast(target.shape)[d] for d in order],
        )
        self.call(Convert(nest, source.dtype, target.dtype, zero_point), nest.units, target, source)

    def fill(self, target: View, code: int) -> None:
        """Every element = code."""
        order = sorted(range(len(target.shape)), key=lambda d: -target.strides[d])
        nest = collapse([target.shape[d] for d in order], [target.strides[d] for d in order])
        self.call(Fill(nest, target.dtype, code), nest.units, target)

    def fill_border(self, view: View) -> None:
        """Write border_code into the border cells, slab by slab."""
        if not any(before or after for before, after in view.border):
            return
        starts = [0] * len(view.shape)
        shape = list(view.shape)
        # Outer dimensions in memory take whole slabs, inner ones only what those leave.
        order = sorted(range(len(shape)), key=lambda d: -view.strides[d])
        full = {d: (-view.border[d][0], view.shape[d] + sum(view.border[d])) for d in order}
        for d in order:
            before, after = view.border[d]
            for begin, extent in ((-before, before), (view.shape[d], after)):
                if extent:
                    box_start, box_shape = list(starts), list(shape)
                    for inner in order[order.index(d) + 1 :]:
                        box_start[inner], box_shape[inner] = full[inner]
                    box_start[d], box_shape[d] = begin, extent
                    self.fill(view.window(box_start, box_shape), view.border_code)

    def keep_states(self) -> None:
        """What the next run finds: copies of the states that are not written where they lie."""
        outputs = {str(value.name): value for value in self.graph.outputs}
        for output, name in self.states.items():
            made, kept = self.views[output], self.views[name]
            if made.buffer is not kept.buffer:
                producer = outputs[output].producer()
                self.node = str(producer.name) if producer is not None else output
                self.copy(made, kept)

    # -- finishing ---------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Name kernels, place the arena."""
        self.name_kernels()
        used = [buffer for buffer in self.buffers if buffer.first >= 0]
        self.arena_bytes = arena.place(used, self.machine.alignment, self.machine.slack)
        values = {id(view.buffer) for view in self.views.values()}
        self.arena_bound = arena.lower_bound([buffer for buffer in used if id(buffer) in values])

    def name_kernels(self) -> None:
        """Equal specs have one kernel."""
        names: dict[Spec, str] = {}
        for call in self.calls:
            if call.spec not in names:
                names[call.spec] = f"qc_{type(call.spec).__name__.lower()}_{len(names)}"
            call.kernel = names[call.spec]

    def constants_read(self) -> list[int]:
        """Indices of the constants that calls read, in order."""
        passed = (argument.buffer for call in self.calls for argument in call.arguments)
        return sorted({buffer.index for buffer in passed if buffer.kind == "constant"})

    def constant_bytes(self) -> int:
        """Bytes of these."""
        return sum(int(self.constants.arrays[index].nbytes) for index in self.constants_read())

    def kernels(self) -> dict[str, Any]:
        """Kernel name -> PrimFunc, every spec once."""
        functions: dict[str, Any] = {}
        for call in self.calls:
            if call.kernel not in functions:
                functions[call.kernel] = call.spec.build(call.kernel, self.machine)
        return functions


def as_int32(array: NDArray) -> NDArray[np.int32]:
    """Checked narrowing of parameters."""
    narrow = np.asarray(array).astype(np.int32)
    assert np.array_equal(narrow, array), "a parameter does not fit int32"
    return narrow
