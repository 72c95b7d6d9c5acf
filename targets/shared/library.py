"""Kernels of TVM's own operator library for the nodes of float islands: ONNX node -> Relax -> TIR -> plain pointers.

The kernels that come out are what TVM's default rules give: correct loops, no tuning. Their large temporaries become
scratch memory of the arena (a thread's stack is small), and their parallel loops serial ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.graph.islands import name_of, single_node
from qcompiler.graph.model import Graph, attribute
from qcompiler.targets.shared.machine import Machine

IGNORED: dict[str, dict[str, Any]] = {
    "ConvTranspose": {"output_shape": None},
    "LpPool": {"ceil_mode": 0},
    "Resize": {"antialias": 0, "axes": None, "keep_aspect_ratio_policy": "stretch"},
    **dict.fromkeys(
        ("ReduceL1", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        {"noop_with_empty_axes": 0},
    ),
}
"""Operator -> attributes that TVM's importer takes no notice of, or gets wrong, and the only value that is right."""
STACK_BYTES = 1024
"""Temporaries up to this stay on the stack."""


@dataclass(frozen=True)
class LibraryKernel:
    """One PrimFunc of the library, plain pointers in order: its inputs, its output, its temporaries."""

    text: str
    """The function as text: what kernels are told apart by."""
    function: Any = field(compare=False, repr=False)
    temporaries: tuple[tuple[str, int], ...] = ()
    """dtype and elements of the scratch memory that it needs."""

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, pointers...); one unit does all."""
        from tvm import ir as tvm_ir
        from tvm import tirx

        lo, hi = (tvm_ir.Var(bound, tvm_ir.PrimType("int32")) for bound in ("lo", "hi"))
        function = tirx.PrimFunc([lo, hi, *self.function.params], self.function.body, tvm_ir.TupleType([]))
        return function.with_attr({"global_symbol": name, "tirx.noalias": True})


@dataclass(frozen=True)
class LibraryCall:
    """kernel(inputs..., output, temporaries...). inputs: positions of the node's inputs, names of outputs of calls
    before, or constants; output: a name, and dtype and shape."""

    kernel: LibraryKernel
    inputs: tuple[int | str | NDArray, ...]
    output: str
    dtype: str
    shape: tuple[int, ...]


def library_calls(graph: Graph, node: ir.Node) -> list[LibraryCall]:
    """The calls that compute a float node; the last one writes its output. Raises UnsupportedError."""
    for key, only in IGNORED.get(node.op_type, {}).items():
        value = attribute(node, key, only)
        if value != only:
            raise UnsupportedError(
                f"{node.op_type} (node `{name_of(node)}`) with {key} = {value} cannot be a float island.",
                where=graph.path,
                hint="Replace the node in the model, or cut the model before it.",
            )
    try:
        with redirect_stdout(StringIO()):  # the importer prints its errors
            return list(_calls(_legalized(graph, node)))
    except Exception as error:  # TVM's importer raises many types, some derived from Exception alone
        text = " ".join(str(error).split())
        raise UnsupportedError(
            f"{node.op_type} (node `{name_of(node)}`) cannot be a float island: TVM's operator library says "
            f"{type(error).__name__}: {text[:200]}.",
            where=graph.path,
            hint="Replace the node in the model, or cut the model before it.",
        ) from error


def refuses(graph: Graph, node: ir.Node) -> str:
    """Reason why the library has no kernels for a float node, or ''."""
    try:
        library_calls(graph, node)
    except UnsupportedError as error:
        return error.why
    return ""


def _legalized(graph: Graph, node: ir.Node) -> Any:
    """An IRModule of PrimFuncs and a Relax `main` that calls them."""
    import tvm
    from onnx_ir.passes import common
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    alone = single_node(graph, node, constants=True)
    if alone.model.functions:
        common.InlinePass()(alone.model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(alone.model)
    steps = relax.transform
    with tvm.target.Target("llvm"):
        return tvm.transform.Sequential(
            [
                steps.DecomposeOpsForInference(),
                relax.backend.DispatchSortScan(),
                steps.LegalizeOps(),
                steps.AnnotateTIROpPattern(),
                steps.FoldConstant(),
                steps.FuseOps(),
                steps.FuseTIR(),
                steps.DeadCodeElimination(),
                steps.CanonicalizeBindings(),
            ]
        )(from_onnx(alone.to_proto(), keep_params_in_input=False))


def _calls(module: Any) -> Iterator[LibraryCall]:
    from tvm import relax

    main = module["main"]
    known: dict[Any, int | str] = {var: int(str(var.name).removeprefix("input")) for var in main.params}
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    for i, binding in enumerate(bindings):
        call = binding.value
        if isinstance(call, relax.Var):
            known[binding.var] = known[call]
            continue
        if not isinstance(call, relax.Call) or getattr(call.op, "name", "") != "relax.call_tir":
            raise LookupError(f"there is no kernel for {call}")
        function, arguments = module[call.args[0]], call.args[1].fields
        inputs = [known[one] if isinstance(one, relax.Var) else one.value.numpy() for one in arguments]
        result = call.ty_args[0]
        name = known[binding.var] = f"value{i}"
        shape = tuple(int(extent) for extent in result.shape)
        yield LibraryCall(_kernel(function), tuple(inputs), name, str(result.dtype), shape)


def _kernel(function: Any) -> LibraryKernel:
    """Blocks lowered, buffers as pointers, temporaries as parameters."""
    import tvm
    from tvm import ir as tvm_ir
    from tvm import s_tir, tirx

    x, s = tirx.transform, s_tir.transform
    target = tvm.target.Target("llvm")
    module = x.BindTarget(target.with_host(target))(tvm.IRModule({"f": function.with_attr("global_symbol", "f")}))
    passes = [
        s.CanonicalizeLoop(),
        s.LowerCrossThreadReduction(),
        s.LowerInitBlock(),
        s.PlanAndUpdateBufferAllocationLocation(),
        s.ConvertBlocksToOpaque(),
        s.CompactBufferAllocation(),
        s.LowerMatchBuffer(),
        s.StmtSimplify(),
        s.LowerOpaqueBlock(),
        x.FlattenBuffer(),
    ]
    lowered = tvm.transform.Sequential(passes)(module)["f"]
    parameters, declarations = [], []

    def pointer(buffer: Any, name: str) -> None:
        handle = tvm_ir.Var(name, tvm_ir.PointerType(buffer.ty.dtype))
        parameters.append(handle)
        if isinstance(buffer.elem_offset, tvm_ir.Var):  # "starts anywhere": it starts where the pointer says
            declarations.append(tirx.Bind(buffer.elem_offset, tirx.const(0, str(buffer.elem_offset.ty.dtype))))
        declarations.append(tirx.DeclBuffer(buffer, data=handle))

    for i, parameter in enumerate(lowered.params):
        pointer(parameter, f"p{i}")
    found: list[Any] = []
    body = _rewrite(lowered.body, found)
    for i, buffer in enumerate(found):
        pointer(buffer, f"t{i}")
    plain = tirx.PrimFunc(parameters, tirx.SeqStmt([*declarations, body]), tvm_ir.TupleType([]))
    temporaries = tuple((_dtype(buffer), prod(int(extent) for extent in buffer.shape)) for buffer in found)
    return LibraryKernel(plain.script(), plain, temporaries)


def _dtype(buffer: Any) -> str:
    return str(buffer.dtype)


def _rewrite(statement: Any, large: list[Any]) -> Any:
    """The statement with serial loops; large temporaries are taken out and appended to `large`."""
    from tvm import tirx

    if isinstance(statement, tirx.SeqStmt):
        kept = [_rewrite(one, large) for one in statement.seq]
        return tirx.SeqStmt(kept) if len(kept) > 1 else kept[0]
    if isinstance(statement, tirx.For):
        body = _rewrite(statement.body, large)
        return tirx.For(statement.loop_var, statement.min, statement.extent, tirx.ForKind.SERIAL, body)
    if isinstance(statement, tirx.IfThenElse):
        other = None if statement.else_case is None else _rewrite(statement.else_case, large)
        return tirx.IfThenElse(statement.condition, _rewrite(statement.then_case, large), other)
    if isinstance(statement, tirx.AttrStmt):
        return _rewrite(statement.body, large)
    if isinstance(statement, tirx.AllocBuffer):
        buffer = statement.buffer
        size = prod(int(extent) for extent in buffer.shape) * np.dtype(_dtype(buffer)).itemsize
        if size > STACK_BYTES:
            large.append(buffer)
            return tirx.Evaluate(tirx.const(0, "int32"))
    return statement
