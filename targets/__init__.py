"""Targets: one folder each, over one shared lowering."""

from __future__ import annotations

from importlib import import_module

from qcompiler.errors import RecipeError
from qcompiler.target import Target

NAMES = ("cpu", "c", "cuda", "fpga")


def get_target(name: str) -> Target:
    """The target called `name`. Raises RecipeError."""
    if name not in NAMES:
        raise RecipeError(f"there is no target `{name}`.", where="--target", hint=f"Choose from: {', '.join(NAMES)}.")
    target = import_module(f"qcompiler.targets.{name}").TARGET
    assert isinstance(target, Target)
    return target
