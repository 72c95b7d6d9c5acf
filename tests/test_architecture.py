"""The layer table of the architecture, held by walking every import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("passes", "targets", "runtime")
DRIVER = {
    "__main__", "budget", "choose", "cli", "driver", "frontier", "inspect", "pipeline", "plan", "recipe", "selection",
}  # fmt: skip
"""Modules of `qcompiler/` that may import every room and that nobody imports; the others are the vocabulary."""

MAY_IMPORT = {
    "vocabulary": {"vocabulary"},
    "passes": {"vocabulary", "passes"},
    "targets": {"vocabulary", "targets"},
    "runtime": {"runtime"},
    "driver": {"vocabulary", "passes", "targets", "runtime", "driver"},
}
ALLOWED = {
    ("qcompiler/__init__.py", "driver"): "the public names, looked up on first use",
    ("qcompiler/bundle.py", "runtime"): "Bundle.load gives the runtime's session",
    ("targets/cuda/emulate.py", "runtime"): "a bundle is emulated by its own loader, given another driver",
    ("targets/cpu/isa.py", "runtime"): "one list of the features of a processor, read where bundles run",
}
"""Exceptions with their reasons: (file, layer that it may import besides)."""

HOMES = {
    "onnxruntime": {"qcompiler/execute/ort.py"},
    "tvm": {"targets/"},
    "torch": {"qcompiler/execute/torch/", "passes/"},
    "networkx": {"qcompiler/graph/"},
    "rich": {"qcompiler/cli/"},
}
"""Third-party packages and the only places that import them."""

LAZY = {"onnxruntime", "openvino", "torch", "tvm", "rich", "PIL"}
"""Packages that are imported inside functions only."""

LEARNING = "qcompiler/execute/torch/"
"""The room that is about torch and imports it at once; so the others import this room inside functions only."""

RUNTIME = {"numpy", "ctypes", *sys.stdlib_module_names}
"""All that the runtime needs: its loader is copied into bundles."""

HEAVY = ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "tvm", "networkx", "scipy", "rich", "PIL")


def files() -> list[Path]:
    """Every module of the product."""
    folders = [ROOT / "qcompiler", *(ROOT / room for room in ROOMS)]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def name_of(path: Path) -> str:
    """targets/cpu/emit.py -> targets/cpu/emit.py, relative to the root, with slashes."""
    return path.relative_to(ROOT).as_posix()


def layer_of_module(module: str) -> str | None:
    """The layer of a dotted name of ours, None for other packages."""
    parts = module.split(".")
    if parts[0] != "qcompiler":
        return None
    if len(parts) == 1:
        return "vocabulary"
    if parts[1] in ROOMS:
        return parts[1]
    return "driver" if parts[1] in DRIVER else "vocabulary"


def layer_of_file(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("").parts
    if relative[0] in ROOMS:
        return relative[0]
    return "driver" if relative[1] in DRIVER else "vocabulary"


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether at import time) of every import; those for type checkers only are left out."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                yield from walk(child, at_import)
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            # `from qcompiler import passes` names a module, `from qcompiler.errors import X` does not.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "qcompiler" else [module]
            yield from ((name, at_import) for name in names)
        inner = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inner)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_layers(path: Path):
    layer = layer_of_file(path)
    for module, _ in imports(path):
        other = layer_of_module(module)
        if other is None or (name_of(path), other) in ALLOWED:
            continue
        assert other in MAY_IMPORT[layer], f"{name_of(path)} ({layer}) imports {module} ({other})"


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_third_party_packages_stay_at_home(path: Path):
    for module, at_import in imports(path):
        package = module.split(".")[0]
        if package in HOMES:
            assert any(name_of(path).startswith(home) for home in HOMES[package]), f"{name_of(path)} imports {module}"
        if (package in LAZY or module.startswith("qcompiler.execute.torch")) and not name_of(path).startswith(LEARNING):
            assert not at_import, f"{name_of(path)} imports {module} outside functions"
        if layer_of_file(path) == "runtime":
            assert package in RUNTIME or package == "qcompiler", f"{name_of(path)} imports {module}"


def test_exceptions_are_still_needed():
    for name, layer in ALLOWED:
        source = (ROOT / name).read_text(encoding="utf-8")
        found = {layer_of_module(module) for module, _ in imports(ROOT / name)}
        assert layer in found or "import_module" in source, f"{name} no longer needs {layer}"


@pytest.mark.parametrize("module", ["qcompiler", "qcompiler.runtime", "qcompiler.cli"])
def test_import_is_light(module: str):
    """In a fresh interpreter: none of the packages that take long."""
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
