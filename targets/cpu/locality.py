"""Which bytes a program's kernels fetch from beyond a core's own cache, in the steady state of repeated inferences."""

from __future__ import annotations

from collections import OrderedDict

from qcompiler.targets.shared.program import Program

BLOCK = 4096
"""Bytes that are kept or dropped together."""


def far_bytes(program: Program, near: int) -> list[int]:
    """Bytes of each call's operands that have left a cache of `near` bytes, which drops what was used least recently.

    Memory counts by address: values that take the place of dead ones in the arena find it near.
    """
    if not near:
        return [0] * len(program.calls)
    cache: OrderedDict[tuple[object, int], None] = OrderedDict()
    found: list[int] = []
    for _ in range(2):  # the first inference leaves what the second one finds
        found = []
        for call in program.calls:
            far = 0
            if type(call.spec).__name__ != "Fill":  # borders: a little of a large buffer
                for buffer in {id(a.buffer): a.buffer for a in call.arguments}.values():
                    shared = buffer.kind in ("arena", "constant")
                    start = buffer.index if buffer.kind == "constant" else buffer.offset
                    for block in range(start // BLOCK, -(-(start + buffer.bytes) // BLOCK)):
                        far += BLOCK * _miss(cache, (buffer.kind if shared else id(buffer), block), near // BLOCK)
            found.append(far)
    return found


def _miss(cache: OrderedDict[tuple[object, int], None], key: tuple[object, int], blocks: int) -> bool:
    if key in cache:
        cache.move_to_end(key)
        return False
    cache[key] = None
    if len(cache) > blocks:
        cache.popitem(last=False)
    return True
