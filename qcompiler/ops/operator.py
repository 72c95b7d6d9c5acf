"""What an operator of the integer graph is: a name, a meaning and a count of its multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Shape = tuple[int, ...]
Oracle = Callable[[list[NDArray | None], dict[str, Any]], list[NDArray]]
"""oracle(inputs, attributes) -> outputs. Absent optional inputs are None; attributes are plain Python values."""
Macs = Callable[[Sequence[Shape], Sequence[Shape], dict[str, Any]], int]
"""macs(input shapes, output shapes, attributes): multiplications of an activation by a weight or an activation."""


def no_macs(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: dict[str, Any]) -> int:
    """Operators that multiply nothing."""
    return 0


@dataclass(frozen=True)
class Operator:
    """One definition of an operator; lowering, cost and patterns are tables keyed by `key` in their own rooms."""

    name: str
    domain: str
    oracle: Oracle
    macs: Macs = no_macs

    @property
    def key(self) -> str:
        """`domain::name`, or the bare name for the default domain."""
        return f"{self.domain}::{self.name}" if self.domain else self.name
