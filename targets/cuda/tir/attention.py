"""Attention in one kernel: scores by mma, integer softmax, values by mma; scores never leave the block.

A block has ROWS queries of one head. Keys come to shared memory in chunks of tokens, the codes of the scores stay there
as the softmax's operand, its codes take part in the second product, with the values turned on their way, so that tokens
are innermost. Zero points are taken care of by products with ones, which give the sums of rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from qcompiler.targets.cuda.grid import Launch
from qcompiler.targets.cuda.tir.attention_kernel import CHUNK, ROWS, THREADS, Emitter
from qcompiler.targets.cuda.tir.epilogue import Codes, itemsize
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.softmax import Softmax

ROOM, MOST = 20 << 10, 64 << 10
"""Bytes of shared memory for the keys or the values of a chunk, and for all."""


@dataclass(frozen=True)
class Operand:
    """Strides in elements: of three batch dimensions, of rows (queries or tokens) and of columns. words: whether four
    columns are a word, at a multiple of four bytes."""

    storage: str
    batch: tuple[int, int, int]
    row: int
    column: int
    words: bool


@dataclass(frozen=True)
class Attention:
    """y = requantize(softmax(requantize(q k^T)) v), with a table on the codes of q first (its storage, or '').

    softmax: its nest only says where the mask of a row is. centred: which of ZEROS are 0.
    """

    batch: tuple[int, int, int]
    queries: int
    tokens: int
    inner: int
    outer: int
    q: Operand
    k: Operand
    v: Operand
    y: Operand
    q_table: str
    scores: Codes
    softmax: Softmax
    codes: Codes
    centred: tuple[bool, bool, bool, bool]

    roomy = True
    """Registers matter more than blocks beside each other."""

    @property
    def macs(self) -> int:
        """Products of both."""
        return prod(self.batch) * self.queries * self.tokens * (self.inner + self.outer)

    @property
    def pitch(self) -> int:
        """Bytes of a row of q or k in shared memory: rows of one chunk of banks are in different ones."""
        return pitch_of(self.inner)

    @property
    def channels(self) -> int:
        """Of v, padded to tiles."""
        return _up(self.outer, 8)

    @property
    def chunk(self) -> int:
        """Tokens that are in shared memory at once."""
        return chunk_of(self.tokens, self.inner, self.outer, itemsize(self.scores.storage))

    @property
    def chunks(self) -> int:
        """How often."""
        return -(-self.tokens // self.chunk)

    @property
    def score_pitch(self) -> int:
        """Bytes of a row of scores."""
        return self.chunk * self.chunks * itemsize(self.scores.storage) + 16

    def places(self) -> tuple[dict[str, int], int]:
        """Offsets in shared memory, and how much of it is needed."""
        return places_of(self.tokens, self.inner, self.outer, itemsize(self.scores.storage))

    def launch(self) -> Launch:
        """Blocks of all heads in a row."""
        return Launch((-(-self.queries // ROWS) * prod(self.batch), 1, 1), THREADS, self.places()[1])

    def build(self, name: str, machine: Machine) -> Any:
        """void name(q, k, v, y, [q_table], scales of scores, exponentials, [mask], scales, ZEROS, numbers of codes of
        scores and y)."""
        return Emitter(self, name).function()


def _up(extent: int, multiple: int) -> int:
    return -(-extent // multiple) * multiple


def pitch_of(inner: int) -> int:
    """Bytes of a row of q or k in shared memory."""
    return _up(inner, 32) + 16


def chunk_of(tokens: int, inner: int, outer: int, score: int) -> int:
    """Tokens that are in shared memory at once: all, if there is room, and fewer until all fits."""
    room = min(ROOM // pitch_of(inner), ROOM // _up(outer, 8) - 16)
    chunk = min(_up(tokens, CHUNK), max(CHUNK, room // CHUNK * CHUNK))
    while chunk > CHUNK and _places(chunk, tokens, inner, outer, score)[1] > MOST:
        chunk -= CHUNK
    return chunk


def places_of(tokens: int, inner: int, outer: int, score: int) -> tuple[dict[str, int], int]:
    """Offsets in shared memory, and how much of it is needed. score: bytes of a score's code."""
    return _places(chunk_of(tokens, inner, outer, score), tokens, inner, outer, score)


def _places(chunk: int, tokens: int, inner: int, outer: int, score: int) -> tuple[dict[str, int], int]:
    padded = _up(tokens, chunk)
    sizes = {
        "q": ROWS * pitch_of(inner),
        "k": chunk * pitch_of(inner),
        "s": ROWS * (padded * score + 16),
        "p": ROWS * (padded + 16),
        "v": _up(outer, 8) * (chunk + 16),
    }
    found, at = {}, 0
    for name, size in sizes.items():
        found[name] = at
        at += _up(size, 16)
    return found, at


def room_of(tokens: int, inner: int, outer: int, score: int) -> int:
    """Bytes of shared memory that attention of this shape needs."""
    return places_of(tokens, inner, outer, score)[1]
