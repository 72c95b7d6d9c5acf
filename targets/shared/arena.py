"""One arena for all intermediate values: offsets by liveness."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from qcompiler.targets.shared.views import Buffer

SEARCH, SEARCHED = 600, 120
"""Orders tried, and up to how many buffers it is worth the time."""


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """Bytes of the largest set of buffers that live at once: no arena can be smaller."""
    steps = {buffer.first for buffer in buffers}
    return max((sum(b.bytes for b in buffers if b.first <= step <= b.last) for step in steps), default=0)


def place(buffers: Sequence[Buffer], alignment: int, slack: int) -> int:
    """Set every buffer's offset, a multiple of `alignment`; returns the arena's bytes, `slack` behind it included.

    First fit over several orders (largest first, earliest first, longest first), then a seeded local search over
    orders until the lower bound is met.
    """
    orders = [
        lambda b: (-b.bytes, b.first),
        lambda b: (b.first, -b.bytes),
        lambda b: (-(b.last - b.first), -b.bytes),
        lambda b: (-b.bytes * (b.last - b.first + 1), b.first),
    ]
    tries = [sorted(range(len(buffers)), key=lambda i, key=key: (key(buffers[i]), i)) for key in orders]  # type: ignore[misc]
    bound = lower_bound(buffers)
    best = min((_fit(buffers, order, alignment) for order in tries), key=lambda fit: fit[0], default=(0, [], []))
    random = Random(0)
    for _ in range(SEARCH if len(buffers) <= SEARCHED else 0):
        if best[0] <= _aligned(bound, alignment):
            break
        order = list(best[2])
        for _ in range(random.randint(1, 3)):  # move one buffer to another place in the order
            order.insert(random.randrange(len(order)), order.pop(random.randrange(len(order))))
        fit = _fit(buffers, order, alignment)
        if fit[0] <= best[0]:
            best = fit
    for buffer, offset in zip(buffers, best[1], strict=True):
        buffer.offset = offset
    return best[0] + slack


def _fit(buffers: Sequence[Buffer], order: list[int], alignment: int) -> tuple[int, list[int], list[int]]:
    """(bytes, offsets, order)."""
    offsets = _first_fit(buffers, order, alignment)
    return max((o + b.bytes for o, b in zip(offsets, buffers, strict=True)), default=0), offsets, order


def _first_fit(buffers: Sequence[Buffer], order: Sequence[int], alignment: int) -> list[int]:
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for i in order:
        mine = buffers[i]
        clashes = sorted(
            (offsets[j], offsets[j] + _aligned(buffers[j].bytes, alignment))
            for j in placed
            if buffers[j].first <= mine.last and mine.first <= buffers[j].last
        )
        at = 0
        for begin, end in clashes:
            if at + _aligned(mine.bytes, alignment) <= begin:
                break
            at = max(at, end)
        offsets[i] = at
        placed.append(i)
    return offsets
