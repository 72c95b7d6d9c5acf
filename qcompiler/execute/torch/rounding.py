"""Rounding with a straight-through gradient: the gradient of the identity.

Bengio, Leonard, Courville 2013, Estimating or Propagating Gradients Through Stochastic Neurons, section 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """round(x) forward, the gradient unchanged backward. (x + (round(x) - x).detach() needs twice the memory.)"""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rounding: Any) -> Tensor:
        return rounding(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


def _through(x: Tensor, rounding: Any) -> Tensor:
    if not (x.requires_grad and torch.is_grad_enabled()):
        return rounding(x)
    return _StraightThrough.apply(x, rounding)  # type: ignore[no-any-return, no-untyped-call]


def ste_round(x: Tensor) -> Tensor:
    """Half to even, as numpy's rint and ONNX's Round."""
    return _through(x, torch.round)


def ste_floor(x: Tensor) -> Tensor:
    """The next integer below."""
    return _through(x, torch.floor)


def ste_ceil(x: Tensor) -> Tensor:
    """The next integer above."""
    return _through(x, torch.ceil)


def ste_trunc(x: Tensor) -> Tensor:
    """Towards zero, as a Cast to an integer type does."""
    return _through(x, torch.trunc)
