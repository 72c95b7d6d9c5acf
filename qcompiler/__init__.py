"""qcompiler: the quantizing compiler. A float ONNX model in, a verified integer bundle out.

This file stays free of heavy imports: `import qcompiler.runtime` runs it too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# The rooms passes/, targets/ and runtime/ lie beside this folder in a checkout and inside it in a wheel.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "passes" / "__init__.py").is_file():
    __path__.append(str(_root))

__all__ = [
    "Bundle", "Graph", "QCompilerError", "Result", "cheapest", "compile", "load_graph", "quantize", "sweep",
]  # fmt: skip

_HOMES = {
    "Bundle": "bundle",
    "Graph": "graph.model",
    "QCompilerError": "errors",
    "Result": "driver",
    "cheapest": "frontier",
    "compile": "driver",
    "load_graph": "graph.io",
    "quantize": "driver",
    "sweep": "frontier",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qcompiler' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"qcompiler.{_HOMES[name]}"), name)
