"""A small emitter of TIR: kernels with raw pointers, vectors and Python-unrolled tiles.

TVMScript costs 50 ms a kernel to parse and cannot be generated; this builds the same nodes directly.
Arithmetic is 32 or 64 bits wide only: TVM's C generator promotes narrower types without cutting them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Expr = Any
"""A TVM expression (TVM is imported inside functions only)."""

_UNBOUNDED = 1 << 30
_SCOPE = ContextVar("_SCOPE", default="global")


@contextmanager
def locals_in(scope: str) -> Iterator[None]:
    """Kernels built inside have their local arrays in this memory: generators differ in what they call it."""
    token = _SCOPE.set(scope)
    yield
    _SCOPE.reset(token)


def vector(dtype: str, lanes: int) -> str:
    """'int32', 8 -> 'int32x8'; one lane is the scalar type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


class Pointer:
    """A typed pointer parameter, or a local array: `load` and `store` runs of lanes."""

    def __init__(self, kernel: Kernel, buffer: Any, dtype: str) -> None:
        self.kernel, self.buffer, self.dtype = kernel, buffer, dtype

    def load(self, index: Expr, lanes: int = 1, stride: int = 1) -> Expr:
        """`lanes` elements at index, index + stride, ..."""
        return self.kernel.tirx.BufferLoad(self.buffer, [self.kernel.span(index, lanes, stride)])

    def store(self, index: Expr, value: Expr, lanes: int = 1, stride: int = 1) -> None:
        """Write `value` there."""
        tirx = self.kernel.tirx
        self.kernel.emit(tirx.BufferStore(self.buffer, value, [self.kernel.span(index, lanes, stride)]))


class Kernel:
    """A PrimFunc under construction; `function()` ends it.

    Every kernel does the units of work lo <= u < hi, its first two parameters; the others come in the order of the
    `pointer` and `scalar` calls, and that is the C signature.
    """

    def __init__(self, name: str) -> None:
        from tvm import ir, tirx

        self.tirx, self._ir = tirx, ir
        self.name = name
        self._params: list[Any] = []
        self._declarations: list[Any] = []
        self._blocks: list[list[Any]] = [[]]
        self._count = 0
        self.lo, self.hi = self.scalar("lo"), self.scalar("hi")

    # -- parameters and locals ---------------------------------------------------------------------------------

    def pointer(self, name: str, dtype: str) -> Pointer:
        """A pointer parameter to elements of `dtype`."""
        handle = self._ir.Var(name, self._ir.PointerType(self._ir.PrimType(dtype)))
        buffer = self.tirx.decl_buffer((_UNBOUNDED,), dtype, name=f"{name}_at")
        self._params.append(handle)
        self._declarations.append(self.tirx.DeclBuffer(buffer, data=handle))
        return Pointer(self, buffer, dtype)

    def scalar(self, name: str, dtype: str = "int32") -> Expr:
        """A parameter passed by value."""
        var = self._ir.Var(name, self._ir.PrimType(dtype))
        self._params.append(var)
        return var

    def local(self, elements: int, dtype: str) -> Pointer:
        """A register tile: an array on the stack that LLVM turns into registers when all indices are constant."""
        buffer = self.tirx.decl_buffer((elements,), dtype, name=self._name("t"), scope=_SCOPE.get())
        self.emit(self.tirx.AllocBuffer(buffer, annotations={"disable_lower_builtin": True}))
        return Pointer(self, buffer, dtype)

    # -- expressions -------------------------------------------------------------------------------------------

    def const(self, value: float, dtype: str = "int32", lanes: int = 1) -> Expr:
        """A constant, broadcast to `lanes`."""
        return self.broadcast(self.tirx.const(value, dtype), lanes)

    def broadcast(self, value: Expr, lanes: int) -> Expr:
        """A scalar in every lane."""
        return value if lanes == 1 else self.tirx.Broadcast(value, lanes)

    def cast(self, value: Expr, dtype: str, lanes: int = 1) -> Expr:
        """Convert the element type."""
        return self.tirx.Cast(vector(dtype, lanes), value)

    def reinterpret(self, value: Expr, dtype: str, lanes: int = 1) -> Expr:
        """Same bits, other type."""
        return self.tirx.reinterpret(vector(dtype, lanes), value)

    def shuffle(self, values: Sequence[Expr], indices: Sequence[int]) -> Expr:
        """Pick lanes out of the concatenation of `values`."""
        return self.tirx.Shuffle(list(values), [self.tirx.const(i, "int32") for i in indices])

    def intrinsic(self, dtype: str, lanes: int, name: str, *args: Expr) -> Expr:
        """A pure LLVM intrinsic, such as llvm.x86.avx512.vpdpbusd.512."""
        from tvm.target.codegen import llvm_lookup_intrinsic_id

        return self.tirx.call_llvm_pure_intrin(vector(dtype, lanes), llvm_lookup_intrinsic_id(name), *args)

    def extern(self, name: str, *arguments: Expr | tuple[Pointer, Expr]) -> None:
        """Call a C function that returns nothing; (pointer, index) passes the address of an element."""
        tirx = self.tirx
        spelled = []
        for argument in arguments:
            if isinstance(argument, tuple):
                pointer, index = argument
                argument = tirx.address_of(tirx.BufferLoad(pointer.buffer, [self.span(index, 1)]))
            spelled.append(tirx.const(argument, "int32") if isinstance(argument, int) else argument)
        self.emit(tirx.Evaluate(tirx.call_extern("int32", name, *spelled)))

    def span(self, index: Expr, lanes: int, stride: int = 1) -> Expr:
        """index .. as a ramp."""
        index = self.tirx.const(index, "int32") if isinstance(index, int) else index
        return index if lanes == 1 else self.tirx.Ramp(index, self.tirx.const(stride, "int32"), lanes)

    def clamp(self, value: Expr, low: float, high: float, dtype: str, lanes: int = 1) -> Expr:
        """min(max(value, low), high)."""
        at_least = self.tirx.max(value, self.const(low, dtype, lanes))
        return self.tirx.min(at_least, self.const(high, dtype, lanes))

    def select(self, condition: Expr, yes: Expr, no: Expr) -> Expr:
        """condition ? yes : no, lane by lane; both are computed."""
        return self.tirx.Select(condition, yes, no)

    def let(self, value: Expr) -> Expr:
        """Name an expression, so that it is computed once."""
        if isinstance(value, int):
            return value
        var = self._ir.Var(self._name("v"), value.ty)
        self.emit(self.tirx.Bind(var, value))
        return var

    # -- statements --------------------------------------------------------------------------------------------

    def emit(self, statement: Any) -> None:
        """Append a statement to the innermost open block."""
        self._blocks[-1].append(statement)

    @contextmanager
    def loop(self, extent: Expr, start: Expr = 0) -> Iterator[Expr]:
        """for (v = start; v < extent; ++v); an extent of one is no loop."""
        if isinstance(extent, int) and isinstance(start, int) and extent - start == 1:
            yield start
            return
        var = self._ir.Var(self._name("i"), self._ir.PrimType("int32"))
        self._blocks.append([])
        yield var
        body = self._sequence(self._blocks.pop())
        count = extent if isinstance(start, int) and start == 0 else extent - start
        first = self.tirx.const(start, "int32") if isinstance(start, int) else start
        count = self.tirx.const(count, "int32") if isinstance(count, int) else count
        self.emit(self.tirx.For(var, first, count, self.tirx.ForKind.SERIAL, body))

    def when(self, condition: Expr, then: Callable[[], None]) -> None:
        """if (condition) { then }"""
        self._blocks.append([])
        then()
        body = self._sequence(self._blocks.pop())
        self.emit(self.tirx.IfThenElse(condition, body, None))

    def function(self) -> Any:
        """The finished PrimFunc: void, plain pointers, global symbol `name`."""
        body = self.tirx.SeqStmt([*self._declarations, self._sequence(self._blocks[0])])
        attrs = {"global_symbol": self.name, "tirx.noalias": True}
        return self.tirx.PrimFunc(self._params, body, self._ir.TupleType([])).with_attr(attrs)

    # -- private -----------------------------------------------------------------------------------------------

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def _sequence(self, statements: list[Any]) -> Any:
        if not statements:
            return self.tirx.Evaluate(self.tirx.const(0, "int32"))
        return statements[0] if len(statements) == 1 else self.tirx.SeqStmt(statements)
