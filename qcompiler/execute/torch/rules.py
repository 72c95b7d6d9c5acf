"""Operator -> how torch runs it. What is not here runs by its function body, if it has one."""

from __future__ import annotations

from qcompiler.execute.torch import elementwise, movement, normalize, products, spatial
from qcompiler.execute.torch.site import Rule

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **products.RULES,
    **spatial.RULES,
    **normalize.RULES,
    **movement.RULES,
}
