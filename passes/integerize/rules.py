"""How each float operator of a QDQ graph becomes an integer operator: one rule an operator, in a plain table."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.graph.islands import is_island
from qcompiler.graph.model import DOMAIN
from qcompiler.passes.integerize import (
    choice,
    elementwise,
    gather,
    integers,
    interpolate,
    movement,
    normalization,
    products,
    reductions,
    softmax,
    windows,
)
from qcompiler.passes.integerize.island import ISLAND
from qcompiler.passes.integerize.rule import Rule

RULES: dict[str, Rule] = {
    **products.RULES,
    **elementwise.RULES,
    **windows.RULES,
    **movement.RULES,
    **gather.RULES,
    **normalization.RULES,
    **reductions.RULES,
    **softmax.RULES,
    **choice.RULES,
    **integers.RULES,
    **interpolate.RULES,
}
"""By operator name of ONNX's own domain, or `qcompiler::` and the name of our own float operators."""


def rule_of(node: ir.Node) -> Rule | None:
    """The rule of a float operator, None if it has no integer form."""
    if is_island(node):
        return ISLAND
    if node.domain == DOMAIN:
        return RULES.get(f"{DOMAIN}::{node.op_type}")
    return RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
