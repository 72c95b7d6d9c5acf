"""One PrimFunc, one engine: the kernels of the C twin beside the engines of the circuit, which have to say the same.

Target c lowers the very same integer graph by the rules of targets/shared: a product is a call of a PrimFunc with a
table of extents (targets/shared/tir/scalar.py). Engines are read from the graph in the order of streams. Both are
compared before anything is written, so neither can be of another layer than the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.errors import BundleError
from qcompiler.formats import Minifloat
from qcompiler.targets.fpga.layers import Codes, Layer, Network
from qcompiler.targets.shared.program import Call, Program
from qcompiler.targets.shared.tir.scalar import FIELDS

PRODUCTS = ("dense", "depthwise")
Extents = Mapping[str, object]


def kernels_of(network: Network, program: Program) -> dict[str, list[str]]:
    """Names of the PrimFuncs that do the work of each node, in the order of their calls.

    Raises BundleError where extents or types of a product are not those of its engine.
    """
    calls: dict[str, list[Call]] = {}
    for call in program.calls:
        calls.setdefault(call.node, []).append(call)
    for layer in (layer for layer in network.layers if layer.kind in PRODUCTS):
        told = [kernel_extents(call, program) for call in calls.get(layer.node, ()) if _table(call, program)]
        if told and (ours := engine_extents(layer)) not in told:
            raise BundleError(
                f"the engine of {layer.op_type} (node `{layer.node}`) has {ours}, its kernel {told[0]}.",
                where="target `fpga`",
                hint="This is a fault of the compiler: please report it with the model.",
            )
    return {node: list(dict.fromkeys(call.kernel for call in some)) for node, some in calls.items()}


def engine_extents(layer: Layer) -> Extents:
    """Of a product's engine."""
    w = layer.window
    assert w is not None and layer.weights is not None and layer.requantizer is not None
    axes = zip(w.output, w.input, w.kernel, w.strides, w.dilations, w.before, strict=True)
    channels = layer.channels * layer.groups if layer.kind == "dense" else len(layer.weights)
    return {
        "axes": sorted(axes), "inputs": channels, "outputs": len(layer.weights),
        "types": (_storage(layer.formats[0]), _storage(layer.requantizer.fmt)),
    }  # fmt: skip


def kernel_extents(call: Call, program: Program) -> Extents:
    """Of a call with a table of extents. Axes are sorted: kernels may go by columns where engines go by rows."""
    table = dict(zip(FIELDS, _table(call, program), strict=True))
    sides = (("rows", "height", "y"), ("columns", "width", "x"))
    axes = [
        (table[out], table[into], *(table[f"{what}_{axis}"] for what in ("kernel", "stride", "dilation", "before")))
        for out, into, axis in sides
    ]
    inputs, outputs = (table["groups"] * table[what] for what in ("inputs", "outputs"))
    types = call.spec.storage, call.spec.requantize.storage  # type: ignore[attr-defined]
    return {"axes": sorted(axes), "inputs": inputs, "outputs": outputs, "types": types}


def _table(call: Call, program: Program) -> list[int]:
    """The table of extents that a call is given; empty for kernels without."""
    buffer = call.arguments[0].buffer
    if buffer.kind != "constant" or not buffer.name.endswith("/shape"):
        return []
    return [int(value) for value in program.constants.arrays[buffer.index]]


def _storage(fmt: Codes) -> str:
    return str(fmt.integers.storage if isinstance(fmt, Minifloat) else fmt.storage)
