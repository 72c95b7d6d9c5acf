"""QONNX's quantizer, `Quant`, lifted like ONNX's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.formats import Int, QuantParams
from qcompiler.graph.model import attribute, operand

if TYPE_CHECKING:
    from qcompiler.graph.lift import Lifter


def quant(lifter: Lifter, node: ir.Node) -> None:
    """QONNX: y = (clip(round(x / s + z)) - z) s."""
    scale, zero_point, bits = (lifter.constant(node, operand(node, i)) for i in (1, 2, 3))
    mode = str(attribute(node, "rounding_mode", "ROUND")).upper()
    whole = bits.size == 1 and float(bits.reshape(-1)[0]).is_integer() and (zero_point == np.rint(zero_point)).all()
    if not whole:
        raise lifter.unsupported(node, "has a width or a zero point that is not an integer")
    width, signed = int(bits.reshape(-1)[0]), bool(attribute(node, "signed", 1))
    x, array = operand(node), lifter.graph.const(node.inputs[0])
    if array is None and mode not in ("ROUND", "HALF_EVEN"):
        raise lifter.unsupported(node, f"rounds an activation with mode {mode}")
    if width < 2 or (array is None and width > 16):
        raise lifter.unsupported(node, f"quantizes to {width} bits")
    narrow = bool(attribute(node, "narrow", 0))
    if array is not None and width > 16:  # biases: as good as float
        codes = _rounded(array / scale + zero_point, mode)
        span = float(2 ** (width - signed))
        codes = np.clip(codes, -span + narrow if signed else 0, span - 1 - (narrow and not signed))
        lifter.replace(node, lifter.graph.add_const(f"{x.name}_quantized", ((codes - zero_point) * scale).astype("f")))
        return
    if narrow and not signed:
        raise lifter.unsupported(node, "is narrow and unsigned")
    fmt = Int(width, signed, narrow)
    axes = [axis for axis, size in enumerate(scale.shape) if size > 1]
    if len(axes) > 1:
        raise lifter.unsupported(node, "has a scale along more than one axis")
    axis = axes[0] if axes else None
    s = scale.reshape(-1) if axes else scale.reshape(-1)[0]
    z = np.broadcast_to(zero_point.reshape(-1), s.shape) if axes else zero_point.reshape(-1)[0]
    params = QuantParams(fmt, s, np.asarray(z).astype(np.int64), axis)
    if array is None:
        lifter.quantized(node, x, params)
        lifter.replace(node, lifter.lifted.pop(node.outputs[0]).value)
        return
    codes = np.clip(_rounded(array / scale + zero_point, mode), fmt.min, fmt.max).astype(fmt.storage)
    lifter.replace(node, lifter.real_constant(lifter.graph.add_const(f"{x.name}_codes", codes), params, node))


def _rounded(steps: NDArray, mode: str) -> NDArray:
    functions: dict[str, Callable[[NDArray], NDArray]] = {
        "ROUND": np.rint, "HALF_EVEN": np.rint, "CEIL": np.ceil, "FLOOR": np.floor,
        "ROUND_TO_ZERO": np.trunc, "DOWN": np.trunc, "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)),
        "HALF_UP": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5),
        "HALF_DOWN": lambda x: np.sign(x) * np.ceil(np.abs(x) - 0.5),
    }  # fmt: skip
    if mode not in functions:
        raise UnsupportedError(
            f"rounding mode {mode} is not known.", hint="QONNX defines ROUND, CEIL, FLOOR and others."
        )
    return functions[mode](steps)
