"""TIR kernels -> object code or C text with a plain C ABI: no packed functions, no TVM at run time."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def lower_module(functions: Mapping[str, Any], target: Any, *, simplify: bool = True) -> Any:
    """PrimFuncs -> a module ready for a code generator.

    Left out on purpose: MakePackedAPI (plain ABI), LowerTVMBuiltin and StorageRewrite (with them the register
    tiles would live in memory). `simplify` also puts named expressions back into their uses.
    """
    import tvm
    from tvm import s_tir, tirx

    x, s = tirx.transform, s_tir.transform
    module = x.BindTarget(target.with_host(target))(tvm.IRModule(dict(functions)))
    passes = [
        x.FlattenBuffer(),
        x.VectorizeLoop(True),
        *([x.StmtSimplify()] if simplify else []),
        x.RemoveNoOp(),
        s.RewriteUnsafeSelect(),
        x.LowerIntrin(),
    ]
    return tvm.transform.Sequential(passes)(module)


def compile_objects(functions: Mapping[str, Any], target: Mapping[str, Any]) -> bytes:
    """One object file (ELF .o) that holds every function under its own name. `target`: a TVM LLVM target."""
    import tvm

    llvm = tvm.target.Target(dict(target))
    module = tvm.get_global_func("target.build.llvm")(lower_module(functions, llvm), llvm)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.o"
        module.write_to_file(str(path), "o")
        return path.read_bytes()


def assembly(functions: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """The assembly text of the same code, for tests that look at instructions."""
    import tvm

    llvm = tvm.target.Target(dict(target))
    return tvm.get_global_func("target.build.llvm")(lower_module(functions, llvm), llvm).inspect_source("asm")


def c_parameters(functions: Mapping[str, Any]) -> dict[str, str]:
    """Function -> its C parameters as c_source would write them, for functions that are compiled to an object."""
    found = {}
    for name, function in functions.items():
        parameters = []
        for parameter in function.params:
            pointer = getattr(parameter.ty, "element_type", None)
            kind = str((parameter.ty if pointer is None else pointer).dtype)
            parameters.append(f"{kind}_t{'' if pointer is None else '*'} {parameter.name}")
        found[name] = ", ".join(parameters)
    return found


def c_source(functions: Mapping[str, Any]) -> str:
    """C99 function definitions without TVM's prologue: plain pointers, no headers, not yet `const` or `restrict`."""
    import tvm

    target = tvm.target.Target("c")
    text = str(
        tvm.get_global_func("target.build.c")(lower_module(functions, target, simplify=False), target).inspect_source()
    )
    end_of_prologue = "__tvm_ffi__library_ctx = NULL;"
    text = text[text.index(end_of_prologue) + len(end_of_prologue) :]
    return text.replace('#ifdef __cplusplus\nextern "C"\n#endif\n', "").replace("TVM_DLL ", "")


def comment(text: str) -> str:
    """A name out of the model, harmless inside a C comment."""
    return re.sub(r"[^\x20-\x7e]", "?", text).replace("*/", "* /").replace("/*", "/ *")[:80]
