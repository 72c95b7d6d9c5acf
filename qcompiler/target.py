"""What a target is: plain data and three functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from qcompiler.graph.model import Graph

Arithmetic = Literal["float", "fixed"]


@dataclass(frozen=True)
class Capabilities:
    """What a target can do. Passes read this and never ask for a target's name."""

    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    arithmetic: tuple[Arithmetic, ...]
    """Requantizations it has; the first is its default."""
    float_boundary: bool
    """Whether QuantizeLinear and DequantizeLinear at the graph's boundary run on the target."""
    float_islands: bool = False
    """Whether float operators may stand between integer ones (qcompiler/graph/islands.py)."""
    operators: frozenset[str] = frozenset()
    """Integer operators that it lowers, as `domain::op_type` or `op_type` of the default domain."""


@dataclass(frozen=True)
class Lowered:
    """What a target hands back: files by path in the bundle, and facts for manifest and report."""

    files: dict[str, bytes]
    manifest: dict[str, Any]
    """Merged into manifest.json under the target's name."""
    sizes: dict[str, int]
    """At least weight_bytes, arena_bytes, arena_lower_bound."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the report alone: what may differ from machine to machine, such as measurements."""


def _no_check(options: Mapping[str, Any]) -> None:
    pass


@dataclass(frozen=True)
class Target:
    """One target. `build` turns an INTEGER graph into the files of a bundle.

    build(graph, options, progress) -> Lowered, raises UnsupportedError before any work is done.
    """

    name: str
    capabilities: Capabilities
    build: Callable[[Graph, dict[str, Any], Callable[[str, int, int], None]], Lowered]
    options: dict[str, str] = field(default_factory=dict)
    """Option name -> one line of help."""
    check: Callable[[Mapping[str, Any]], None] = _no_check
    """Raises QCompilerError for values of options, or tools, that `build` would fail on: called before any work."""
    runtime: bool = True
    """Whether qcompiler.runtime can load its bundles on this machine."""
    host: Callable[[Path, Mapping[str, Any]], Callable[[Mapping[str, NDArray]], list[NDArray]]] | None = None
    """Where the runtime cannot: what runs a bundle (path, manifest) on this machine all the same, floats in, floats
    out. Raises UnsupportedError where tools are missing."""
