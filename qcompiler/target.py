"""What a target is: plain data and three functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.cost import CostModel
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
    refuses: Callable[[Graph, ir.Node], str] | None = None
    """Reason why a node of a FLOAT graph has no form on the target, or ''; None where whatever can be integer has."""
    refuses_float: Callable[[Graph, ir.Node], str] | None = None
    """Reason why a node of a float island (qcompiler/graph/islands.py) has no lowering, or ''; None where no float
    operator may stand between integer ones."""
    weight_minifloats: tuple[str, ...] = ()
    """Tokens of the minifloats that weights may have."""
    activation_minifloats: tuple[str, ...] = ()
    """Tokens of those that products read activations in."""
    formats_cost: bool = False
    """Whether a minifloat costs other than an integer of its width: searches for a budget then offer both."""
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


@dataclass(frozen=True)
class Measured:
    """A table of costs. kept: where `cost` looks for this machine's, None without a cache; rows: kind of work, how many
    were measured."""

    text: str
    kept: Path | None
    origin: str
    rows: list[tuple[str, int]]


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
    cost: Callable[[Mapping[str, Any]], tuple[CostModel, str]] | None = None
    """options -> what choices of widths cost there (qcompiler/cost.py), and a note that says where the figures are
    from. Options are those of `build`, and for the cpu target `threads`, `table` (a file) and `arithmetic`. Raises
    QCompilerError. None: only bytes and bit operations are known (`BytesAndBops`)."""
    calibrate: Callable[[Mapping[str, Any], Callable[[str, int, int], None]], Measured] | None = None
    """options (`cpu`, `threads`, `classes`, `scale`), progress -> costs measured on this machine, for `cost`. Raises
    QCompilerError. None: nothing is to be measured."""
