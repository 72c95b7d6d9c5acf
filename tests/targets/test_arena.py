"""Placing buffers by liveness: nothing that lives at once overlaps, and the arena is near its lower bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qcompiler.targets.shared.arena import lower_bound, place
from qcompiler.targets.shared.views import Buffer

lives = st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 6))


def buffers_of(described: list[tuple[int, int, int]]) -> list[Buffer]:
    return [
        Buffer("arena", size, str(i), first=first, last=first + length)
        for i, (size, first, length) in enumerate(described)
    ]


@given(described=st.lists(lives, max_size=25), alignment=st.sampled_from([1, 8, 64]))
def test_buffers_that_live_at_once_do_not_overlap(described: list[tuple[int, int, int]], alignment: int) -> None:
    buffers = buffers_of(described)
    total = place(buffers, alignment, slack=0)
    assert total >= lower_bound(buffers)
    for i, a in enumerate(buffers):
        assert a.offset % alignment == 0
        assert a.offset + a.bytes <= total
        for b in buffers[:i]:
            if a.first <= b.last and b.first <= a.last:
                assert a.offset + a.bytes <= b.offset or b.offset + b.bytes <= a.offset


def test_a_chain_takes_its_two_largest_neighbours() -> None:
    sizes = [100, 400, 300, 200, 600, 50]
    buffers = buffers_of([(size, i, 1) for i, size in enumerate(sizes)])
    assert place(buffers, 1, slack=0) == lower_bound(buffers) == 800


def test_slack_lies_behind_everything() -> None:
    assert place(buffers_of([(10, 0, 0)]), 8, slack=64) == 10 + 64
    assert place([], 8, slack=64) == 64
