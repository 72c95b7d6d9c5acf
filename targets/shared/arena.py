"""One arena for all intermediate values: offsets by liveness."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.targets.shared.views import ALIGNMENT, SLACK, Buffer


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """Bytes of the largest set of buffers that live at once: no arena can be smaller."""
    steps = {buffer.first for buffer in buffers}
    return max((sum(b.bytes for b in buffers if b.first <= step <= b.last) for step in steps), default=0)


def place(buffers: Sequence[Buffer]) -> int:
    """Set every buffer's offset; returns the arena's bytes, slack included.

    First fit over several orders (largest first, earliest first, longest first), the best kept.
    """
    orders = [
        lambda b: (-b.bytes, b.first),
        lambda b: (b.first, -b.bytes),
        lambda b: (-(b.last - b.first), -b.bytes),
        lambda b: (-b.bytes * (b.last - b.first + 1), b.first),
    ]
    best: tuple[int, list[int]] | None = None
    for key in orders:
        order = sorted(range(len(buffers)), key=lambda i: (key(buffers[i]), i))
        offsets = _first_fit(buffers, order)
        total = max((o + _aligned(b.bytes) for o, b in zip(offsets, buffers, strict=True)), default=0)
        if best is None or total < best[0]:
            best = total, offsets
    total, offsets = best or (0, [])
    for buffer, offset in zip(buffers, offsets, strict=True):
        buffer.offset = offset
    return total + SLACK


def _first_fit(buffers: Sequence[Buffer], order: Sequence[int]) -> list[int]:
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for i in order:
        mine = buffers[i]
        clashes = sorted(
            (offsets[j], offsets[j] + _aligned(buffers[j].bytes))
            for j in placed
            if buffers[j].first <= mine.last and mine.first <= buffers[j].last
        )
        at = 0
        for begin, end in clashes:
            if at + _aligned(mine.bytes) <= begin:
                break
            at = max(at, end)
        offsets[i] = at
        placed.append(i)
    return offsets
