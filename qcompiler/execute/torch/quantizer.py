"""The affine and the minifloat quantizer of qcompiler/quantizer.py in torch, with gradients.

Forward the two are equal bit for bit (tested over all codes and midpoints):

    v = x / scale    y = rint(clip(v, min - z, max - z)) * scale

Clipping before rounding gives the same codes, since the bounds are integers, and gives the gradients of LSQ:
dy/dx is 1 within the bounds and 0 beyond; dy/dscale = rint(v) - v within, min - z or max - z beyond; and, of LSQ+,
dy/dz = 0 within, -scale beyond. Levels of a minifloat are `step` apart, a power of two that follows v, and

    y = rint(clip(v, min, max) / step) * step * scale

whose gradients are the same ones: dy/dscale = level - v.

Sources: Esser et al. 2020, Learned Step Size Quantization, equations 1 to 3 and section 2.2 (gradient scale
1 / sqrt(N * max)); Bhalgat et al. 2020, LSQ+ (a learned offset), but the zero point stays an integer forward.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError
from qcompiler.execute.torch.rounding import ste_round
from qcompiler.formats import Int, QuantParams
from qcompiler.minifloat import Minifloat


class Quantizer(nn.Module):
    """Quantize and dequantize tensors [n, *shape].

    `scale` float32 [] or [C] and `zero_point` (same shape, float) are parameters that do not ask for gradients until
    `learn` says so. `enabled = False` lets values pass as they are.
    """

    def __init__(self, params: QuantParams) -> None:
        super().__init__()
        if not isinstance(params.format, Int | Minifloat):
            raise TypeError(f"{params.format} is neither integer nor minifloat")
        self.format = params.format
        self.axis = params.axis
        self.enabled = True
        self.scaled_gradient = False
        self.scale = nn.Parameter(torch.from_numpy(np.array(params.scale, np.float32)), requires_grad=False)
        zero_point = np.array(params.zero_point, np.float32)
        self.zero_point = nn.Parameter(torch.from_numpy(zero_point), requires_grad=False)

    def learn(self, *, scale: bool = True, zero_point: bool = False, scaled_gradient: bool = False) -> Quantizer:
        """Choose what learns; scaled_gradient: multiply the gradient of the scale by 1 / sqrt(N * max), N the elements
        of one sample that share it (LSQ, section 2.2). Adam moves a parameter by its learning rate, whatever its size:
        give every scale one of a percent of it or less, for they differ by orders of magnitude."""
        self.scale.requires_grad_(scale)
        self.zero_point.requires_grad_(zero_point)
        self.scaled_gradient = scaled_gradient
        return self

    def params(self) -> QuantParams:
        """The quantizer as it is now. Raises CalibrationError when a learned scale is not positive and finite."""
        scale = self.scale.detach().to(torch.float32).cpu().numpy()
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise CalibrationError(
                f"a learned scale became {float(np.min(scale)):g}.", hint="Lower the learning rate of scales."
            )
        if isinstance(self.format, Minifloat):
            return QuantParams(self.format, scale.copy(), axis=self.axis)
        zero_point = np.rint(self.zero_point.detach().double().cpu().numpy()).astype(np.int64)
        return QuantParams(self.format, scale.copy(), zero_point.clip(self.format.min, self.format.max), self.axis)

    def forward(self, x: Tensor) -> Tensor:
        """x: float [n, *shape]; returns the same shape."""
        if not self.enabled:
            return x
        return self._parts(x)[0]

    def codes(self, x: Tensor) -> Tensor:
        """The codes of x as int64, before packing into the storage type."""
        _, steps, zero_point = self._parts(x.detach())
        if isinstance(self.format, Minifloat):
            return torch.from_numpy(self.format.encode(steps.detach().cpu().numpy()).astype(np.int64)).to(x.device)
        return (steps + zero_point).to(torch.int64)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(dequantized, code - zero point or level, zero point)."""
        fmt, scale, zero_point = self.format, self._along(self.scale, x), self._along(self.zero_point, x)
        largest = fmt.largest if isinstance(fmt, Minifloat) else fmt.max
        if self.scaled_gradient and scale.requires_grad:
            shared = x[:1].numel() / max(self.scale.numel(), 1)
            scale = _scale_gradient(scale, 1.0 / math.sqrt(shared * largest))
        if isinstance(fmt, Minifloat):
            ratio = torch.clamp(x / scale, -largest if fmt.signed else 0, largest)
            step = _steps(ratio.detach(), fmt)
            levels = ste_round(ratio / step) * step + 0.0
            return levels * scale, levels, zero_point
        if self.zero_point.requires_grad:
            zero_point = ste_round(zero_point.clamp(fmt.min, fmt.max))
        ratio = torch.clamp(x / scale, fmt.min - zero_point, fmt.max - zero_point)
        # + 0.0 makes -0.0, which no code stands for, 0.0
        steps = ste_round(ratio) + 0.0
        return steps * scale, steps, zero_point

    def _along(self, values: Tensor, x: Tensor) -> Tensor:
        """[C] -> [1, .., C, .., 1] along the axis, behind the samples."""
        if self.axis is None or values.dim() == 0:
            return values
        shape = [1] * x.dim()
        shape[self.axis + 1 if self.axis >= 0 else self.axis] = -1
        return values.reshape(shape)

    def extra_repr(self) -> str:
        return f"{self.format}, axis={self.axis}"


def _steps(ratio: Tensor, fmt: Minifloat) -> Tensor:
    """How far apart levels are around each ratio."""
    exponent = torch.frexp(ratio).exponent.to(torch.int64) - 1
    above = torch.clamp(exponent - fmt.mantissa, min=0)
    return torch.bitwise_left_shift(torch.ones_like(above), above).to(ratio.dtype)


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    return _ScaleGradient.apply(x, factor)  # type: ignore[no-any-return, no-untyped-call]
