"""Kernels over a grid of threads: shared kernels bound to it, and the emitter of those that are written for it.

A shared kernel does units lo <= u < hi of a call; bound to a grid, every thread does one unit. Kernels of targets/cuda
say themselves what a block does: they take pointers, then int32 numbers, and know blockIdx and threadIdx.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from qcompiler.targets.shared.tir.builder import Expr, Kernel, Pointer
from qcompiler.targets.shared.tir.interpolate import Interpolate
from qcompiler.targets.shared.tir.nest import Nest

MOST = (1 << 31) - 1
"""Blocks that the simplifier has to reckon with: how many there are is not part of a kernel."""
THREADS = 128
"""Of a block of a shared kernel."""
DEVICE_LAUNCH = 2
"""TVM's calling convention of a kernel that a host launches."""


@dataclass(frozen=True)
class Launch:
    """How often a kernel's body runs at once. shared: bytes of shared memory."""

    grid: tuple[int, int, int]
    threads: int
    shared: int = 0


def _device_function(name: str, params: Sequence[Any], body: Any, indices: Sequence[tuple[Any, str, int]]) -> Any:
    """The PrimFunc of a kernel. indices: (variable, "blockIdx.x" or the like, extent)."""
    from tvm import ir, tirx

    for var, tag, extent in reversed(indices):
        axis = tirx.IterVar(ir.Range(0, extent), var, tirx.IterVar.ThreadIndex, tag)
        body = tirx.AttrStmt(axis, "thread_extent", tirx.const(extent, "int32"), body)
    function = tirx.PrimFunc(list(params), body, ir.TupleType([]))
    tags = [tag for _, tag, _ in indices]
    attrs = {"global_symbol": name, "tirx.noalias": True, "calling_conv": DEVICE_LAUNCH}
    return function.with_attr({**attrs, "tirx.kernel_launch_params": tags})


def bind(function: Any, name: str, units: int) -> Any:
    """A shared kernel (lo, hi, pointers...) with one thread a unit: (pointers...)."""
    from tvm import ir, tirx

    lo, hi, *pointers = function.params
    block, thread = (ir.Var(index, ir.PrimType("int32")) for index in ("block", "thread"))
    unit = block * THREADS + thread
    body = tirx.SeqStmt([tirx.Bind(lo, unit), tirx.Bind(hi, lo + 1), function.body])
    blocks = -(-units // THREADS)
    guarded = tirx.IfThenElse(unit < units, body, None) if units % THREADS else body
    return _device_function(name, pointers, guarded, [(block, "blockIdx.x", blocks), (thread, "threadIdx.x", THREADS)])


def launch_of(units: int) -> Launch:
    """Of a bound kernel."""
    return Launch((-(-units // THREADS), 1, 1), THREADS)


class GridKernel(Kernel):
    """A kernel under construction whose body one thread runs. Parameters: those of `pointer` and `number` calls.

    Functions that `call` and `value` name are those of templates/qc_device.h.
    """

    def __init__(self, name: str, threads: int, dims: int = 1) -> None:
        super().__init__(name)
        self._params.clear()  # lo and hi
        self.threads = threads
        self.thread = self._var("thread")
        self.blocks = [self._var(f"block{axis}") for axis in "xyz"[:dims]]

    def _var(self, name: str) -> Any:
        return self._ir.Var(name, self._ir.PrimType("int32"))

    def number(self, name: str) -> Expr:
        """An int32 parameter."""
        return self.scalar(name)

    def shared(self) -> Pointer:
        """The block's shared memory, as bytes; how many there are is part of the launch."""
        buffer = self.tirx.decl_buffer((1 << 20,), "uint8", name="qc_shared", scope="shared.dyn")
        self.emit(self.tirx.AllocBuffer(buffer, annotations={"disable_lower_builtin": True}))
        return Pointer(self, buffer, "uint8")

    def at(self, pointer: Pointer, index: Expr) -> Expr:
        """The address of an element."""
        return self.tirx.address_of(self.tirx.BufferLoad(pointer.buffer, [self.span(index, 1)]))

    def call(self, name: str, *arguments: Expr) -> None:
        """A statement: a device function."""
        spelled = [self.const(a) if isinstance(a, int) else a for a in arguments]
        self.emit(self.tirx.Evaluate(self.tirx.call_extern("int32", name, *spelled)))

    def value(self, name: str, *arguments: Expr, dtype: str = "int32") -> Expr:
        """What a device function returns."""
        spelled = [self.const(a) if isinstance(a, int) else a for a in arguments]
        return self.tirx.call_pure_extern(dtype, name, *spelled)

    def sync(self) -> None:
        """All threads of the block reach this before any goes on."""
        self.call("__syncthreads")

    @contextmanager
    def unrolled(self, extent: int) -> Iterator[Expr]:
        """A loop that the compiler writes out."""
        if extent == 1:
            yield 0
            return
        var = self._ir.Var(self._name("i"), self._ir.PrimType("int32"))
        self._blocks.append([])
        yield var
        body = self._sequence(self._blocks.pop())
        kind = self.tirx.ForKind.UNROLLED
        self.emit(self.tirx.For(var, self.const(0), self.const(extent), kind, body))

    def otherwise(self, condition: Expr, then: Callable[[], None], other: Callable[[], None]) -> None:
        """if (condition) { then } else { other }"""
        bodies = []
        for branch in (then, other):
            self._blocks.append([])
            branch()
            bodies.append(self._sequence(self._blocks.pop()))
        self.emit(self.tirx.IfThenElse(condition, bodies[0], bodies[1]))

    def function(self) -> Any:
        """The finished PrimFunc."""
        body = self.tirx.SeqStmt([*self._declarations, self._sequence(self._blocks[0])])
        blocks = [(var, f"blockIdx.{axis}", MOST) for var, axis in zip(self.blocks, "xyz", strict=False)]
        return _device_function(self.name, self._params, body, [*blocks, (self.thread, "threadIdx.x", self.threads)])


@dataclass(frozen=True)
class Thread:
    """A shared kernel on a grid, with one thread a unit."""

    spec: Any
    units: int

    def build(self, name: str, machine: Any) -> Any:
        """void name(pointers...)."""
        return bind(self.spec.build(name, machine), name, self.units)


def spread(spec: Any, units: int) -> Thread:
    """`spec` with units of one element, where its units are runs of elements that do not depend on each other."""
    if isinstance(getattr(spec, "nest", None), Nest) and spec.nest.extents[-1] > 1:
        spec = replace(spec, nest=_split(spec.nest))
        return Thread(spec, spec.nest.units)
    if isinstance(spec, Interpolate) and spec.extents[-1] > 1:
        y_strides, x_strides = (*spec.y_strides, 1), (*spec.x_strides, 1)
        spec = replace(spec, extents=(*spec.extents, 1), y_strides=y_strides, x_strides=x_strides)
        return Thread(spec, spec.units)
    return Thread(spec, units)


def _split(nest: Nest) -> Nest:
    return Nest((*nest.extents, 1), tuple((*strides, 1) for strides in nest.strides))
