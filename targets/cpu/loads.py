"""Kernel calls as a measured table knows them: the kind of kernel, and how much it does."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.program import Call
from qcompiler.targets.shared.tir.matrix import padded_channels


@dataclass(frozen=True)
class Load:
    """kernel: key of the table. size: numbers >= 1 whose logarithms are interpolated over; products and depthwise:
    channels (whole vectors), terms of a sum, pixels; others: runs of contiguous elements and their length (of which
    sort, by kernel). count: how often."""

    kernel: str
    size: tuple[int, ...]
    count: int = 1


def load_of(call: Call, machine: Machine) -> Load:
    """The load of one call of a program for a machine with vectors."""
    spec: Any = call.spec
    kind = type(spec).__name__.lower()
    return _LOADS.get(kind, _nest)(kind, spec, machine)


def _matrix(kind: str, spec: Any, machine: Machine) -> Load:
    dot = spec.dot
    chain = f"x{dot.chain}" if dot.chain > 1 else ""
    depth = prod(extent for extent, _ in spec.taps) * spec.steps * dot.group
    pixels = spec.pixels * prod(extent for extent, _, _ in spec.rows)
    key = f"{kind}/{dot.kind}{chain}{_arithmetic(spec)}"
    return Load(key, (padded_channels(spec.channels, machine.lanes), depth, pixels), spec.groups)


def _depthwise(kind: str, spec: Any, machine: Machine) -> Load:
    pixels = spec.pixels * prod(extent for extent, _, _ in spec.rows)
    key = f"{kind}/{spec.group(machine)}/stride{spec.stride}{_arithmetic(spec)}"
    return Load(key, (padded_channels(spec.channels, machine.lanes), prod(spec.kernel), pixels))


def _pool(kind: str, spec: Any, machine: Machine) -> Load:
    key = f"{kind}/{'average' if spec.requantize else 'max'}/{_bytes(spec)}"
    return Load(key, (spec.channels, len(spec.taps), spec.pixels * prod(extent for extent, _, _ in spec.rows)))


def _reduce(kind: str, spec: Any, machine: Machine) -> Load:
    return Load(f"{kind}/{_bytes(spec)}", (prod(spec.nest.extents), prod(extent for extent, _ in spec.reduced)))


def _softmax(kind: str, spec: Any, machine: Machine) -> Load:
    contiguous = "" if spec.x_stride == spec.y_stride == 1 else "/strided"
    # Rows of a causal mask show half of their cells on average.
    length = -(-spec.length // 2) if spec.mask == "prefix" else spec.length
    return Load(f"{kind}/{_both(spec)}{contiguous}", (prod(spec.nest.extents), _whole_vectors(length, machine)))


def _normalize(kind: str, spec: Any, machine: Machine) -> Load:
    *outer, inner = (extent for extent, *_ in spec.run)
    # Short rows, a group's part of a pixel, take half as long again as the same elements in one piece.
    length = prod(outer) * inner * (3 if outer else 2) // 2
    return Load(f"{kind}/{_both(spec)}", (prod(spec.nest.extents), length))


def _pack_right(kind: str, spec: Any, machine: Machine) -> Load:
    product = spec.product
    return Load(f"{kind}/{product.dot.kind}", (prod(spec.nest.extents), product.run, product.channels))


def _gather(kind: str, spec: Any, machine: Machine) -> Load:
    return Load(f"{kind}/{_bytes(spec)}", (prod(spec.extents[:-1]), spec.extents[-1]))


def _nest(kind: str, spec: Any, machine: Machine) -> Load:
    nest = getattr(spec, "nest", None)
    if nest is None:
        return Load(kind, (1,))
    inner = [strides[-1] for strides in nest.strides]
    strided = "" if all(stride in (0, 1) for stride in inner) else "/strided"
    return Load(f"{kind}/{_bytes(spec)}{strided}", (prod(nest.extents[:-1]), nest.extents[-1]))


_LOADS = {
    "matrix": _matrix,
    "depthwise": _depthwise,
    "pool": _pool,
    "reduce": _reduce,
    "softmax": _softmax,
    "normalize": _normalize,
    "packright": _pack_right,
    "gather": _gather,
}


def _arithmetic(spec: Any) -> str:
    return "" if spec.requantize.arithmetic == "float" else "/fixed"


def _whole_vectors(length: int, machine: Machine) -> int:
    """What is left of a row behind its last whole vector takes about as long as one more."""
    return -(-length // machine.lanes) * machine.lanes


def _both(spec: Any) -> str:
    """Bytes of the codes that it reads, and of those that it writes."""
    return f"{2 if '16' in str(spec.storage) else 1}-{2 if '16' in str(spec.format.storage) else 1}"


def _bytes(spec: Any) -> int:
    """Bytes of the widest codes that it reads or writes."""
    names = ("storage", "a_storage", "b_storage", "target")
    kinds = [str(getattr(spec, name)) for name in names if isinstance(getattr(spec, name, None), str)]
    fmt = getattr(spec, "format", None) or getattr(getattr(spec, "requantize", None), "format", None)
    kinds += [str(fmt.storage)] if fmt is not None else []
    return max((2 if "16" in kind else 4 if "32" in kind else 1) for kind in kinds) if kinds else 1
