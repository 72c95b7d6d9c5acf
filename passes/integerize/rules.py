"""How each float operator of a QDQ graph becomes an integer operator: one rule an operator, in a plain table."""

from __future__ import annotations

from qcompiler.passes.integerize import elementwise, movement, products, windows
from qcompiler.passes.integerize.rule import Rule

RULES: dict[str, Rule] = {**products.RULES, **elementwise.RULES, **windows.RULES, **movement.RULES}
"""By operator name of ONNX's own domain."""
