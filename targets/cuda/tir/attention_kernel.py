"""The kernel of attention.py: what threads of a block do, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qcompiler.targets.cuda.grid import GridKernel
from qcompiler.targets.cuda.tir.epilogue import itemsize
from qcompiler.targets.cuda.tir.rows import share_of
from qcompiler.targets.shared.tir.builder import Expr, Pointer
from qcompiler.targets.shared.tir.nest import unit_offsets

if TYPE_CHECKING:
    from qcompiler.targets.cuda.tir.attention import Attention, Operand

ROWS, WARPS, CHUNK = 16, 4, 64
"""Queries of a block, warps of a block, and what tokens of a chunk are a multiple of."""
THREADS = 32 * WARPS
LANES = THREADS // ROWS
"""Of a row of the softmax."""
KEPT = 16
"""Exponentials of a lane up to which they stay in registers."""
ZEROS = ("q_zero", "k_zero", "p_zero", "v_zero")
"""int32 parameters before those of the codes; keys and values count as signed bytes."""
_ONES = 0x01010101


class Emitter:
    """The kernel under construction."""

    def __init__(self, spec: Attention, name: str) -> None:
        self.spec = spec
        k = self.kernel = GridKernel(name, THREADS)
        self.q, self.k, self.v = (k.pointer(n, o.storage) for n, o in (("q", spec.q), ("k", spec.k), ("v", spec.v)))
        self.y = k.pointer("y", spec.codes.storage)
        self.q_table = k.pointer("q_table", spec.q_table) if spec.q_table else None
        self.score_scales = spec.scores.pointers(k)
        self.exponentials = k.pointer("exponentials", "int32")
        self.mask = k.pointer("mask", spec.softmax.mask_type) if spec.softmax.mask else None
        self.scales = spec.codes.pointers(k)
        self.zeros = {name: k.number(name) for name in ZEROS}
        self.score_numbers, self.code_numbers = spec.scores.numbers(k), spec.codes.numbers(k)
        self.memory = k.shared()
        self.at, _ = spec.places()

    def function(self) -> Any:
        """The PrimFunc."""
        k, spec = self.kernel, self.spec
        tiles = -(-spec.queries // ROWS)
        self.head = k.let(k.tirx.truncdiv(k.blocks[0], k.const(tiles)))
        self.first = k.let((k.blocks[0] - self.head * tiles) * ROWS)
        self.lane, self.warp = k.let(k.thread % 32), k.let(k.thread // 32)
        self.starts = self._starts()
        self._stage_rows("q", self.q, spec.q, ROWS, self.first, spec.queries, self.q_table)
        with k.loop(spec.chunks) as chunk:
            first = k.let(chunk * spec.chunk) if spec.chunks > 1 else 0
            self._stage_rows("k", self.k, spec.k, spec.chunk, first, spec.tokens, None)
            if spec.chunks == 1:
                self._stage_turned(first)
            k.sync()
            self._scores(first)
            k.sync()
        self._softmax()
        self._values()
        return k.function()

    def _starts(self) -> dict[str, Expr]:
        """Where the head begins in each operand."""
        k, spec = self.kernel, self.spec
        i1 = k.let(k.tirx.truncdiv(self.head, k.const(spec.batch[2])))
        i2 = k.let(self.head - i1 * spec.batch[2])
        i0 = k.let(k.tirx.truncdiv(i1, k.const(spec.batch[1])))
        i1 = k.let(i1 - i0 * spec.batch[1])
        operands = {"q": spec.q, "k": spec.k, "v": spec.v, "y": spec.y}
        return {n: k.let(i0 * o.batch[0] + i1 * o.batch[1] + i2 * o.batch[2]) for n, o in operands.items()}

    # -- to shared memory --------------------------------------------------------------------------------------

    def _pieces(self, count: int, body: Callable[[Expr], None]) -> None:
        """body(i) for i in 0..count, shared by the threads."""
        k, each = self.kernel, -(-count // THREADS)
        with k.unrolled(each) if each <= 8 else k.loop(each) as step:
            i = k.let(step * THREADS + k.thread)
            if count % THREADS:
                k.when(i < count, lambda: body(i))
            else:
                body(i)

    def _word(self, pointer: Pointer, operand: Operand, at: Expr, valid: Expr, flip: bool) -> Expr:
        """Four columns from `at` on, of which `valid` (at most 4) are there; the others become 0."""
        k = self.kernel
        fill = 0x80 if flip else 0
        name = "qc_word_if" if operand.words else "qc_bytes_if"
        word = k.value(name, k.at(pointer, at), k.const(operand.column), valid, k.const(fill * _ONES - (fill << 25)))
        return k.let(word ^ (-0x7F7F7F80) if flip else word)

    def _stage_rows(
        self, place: str, pointer: Pointer, operand: Operand, rows: int, first: Expr, behind: int, table: Pointer | None
    ) -> None:
        """`rows` rows from `first` on, columns innermost; what is not there becomes 0."""
        k, spec = self.kernel, self.spec
        words = (spec.pitch - 16) // 4

        def piece(i: Expr) -> None:
            row = k.let(i // words)
            column = k.let((i - row * words) * 4)
            valid = k.let(k.tirx.Select(first + row < behind, k.tirx.min(spec.inner - column, k.const(4)), k.const(0)))
            at = self.starts[place] + (first + row) * operand.row + column * operand.column
            flip = place == "k" and operand.storage == "uint8"
            word = self._word(pointer, operand, at, valid, flip)
            if table is not None:
                start = 0 if operand.storage == "uint8" else 0x80
                word = k.let(k.value("qc_table4", k.at(table, 0), word, k.const(start), valid))
            k.call("qc_put_word", k.at(self.memory, self.at[place] + row * spec.pitch + column), word)

        self._pieces(rows * words, piece)

    def _stage_turned(self, first: Expr) -> None:
        """The values of a chunk, tokens innermost."""
        k, spec, operand = self.kernel, self.spec, self.spec.v
        quads = spec.chunk // 4

        def piece(i: Expr) -> None:
            group = k.let(i // quads)
            token = k.let((i - group * quads) * 4)
            column = k.let(group * 4)
            words = []
            for t in range(4):
                there = first + token + t < spec.tokens
                valid = k.let(k.tirx.Select(there, k.tirx.min(spec.outer - column, k.const(4)), k.const(0)))
                at = self.starts["v"] + (first + token + t) * operand.row + column * operand.column
                words.append(self._word(self.v, operand, at, valid, operand.storage == "uint8"))
            turned = k.local(4, "int32")
            k.call("qc_turn4", k.at(turned, 0), *words)
            for c in range(4):
                at = self.at["v"] + (column + c) * (spec.chunk + 16) + token
                k.call("qc_put_word", k.at(self.memory, at), turned.load(c))

        self._pieces(spec.channels // 4 * quads, piece)

    # -- products ----------------------------------------------------------------------------------------------

    def _ones(self, count: int) -> Pointer:
        ones = self.kernel.local(count, "uint32")
        for i in range(count):
            ones.store(i, self.kernel.const(_ONES, "uint32"))
        return ones

    def _sums(self, count: int) -> Pointer:
        sums = self.kernel.local(count, "int32")
        for i in range(count):
            sums.store(i, self.kernel.const(0))
        return sums

    def _total(self, acc: Expr, column: Expr, row: Expr, zeros: tuple[str, str], extent: int) -> Expr:
        """The sum of (a - za)(b - zb) from that of a b and those of b's columns and a's rows (None: centred)."""
        a_zero, b_zero = (self.zeros[name] for name in zeros)
        total = acc
        if column is not None:
            total = total - a_zero * column
        if row is not None:
            total = total - b_zero * row
        if column is not None and row is not None:
            total = total + a_zero * b_zero * extent
        return total

    def _scores(self, first: Expr) -> None:
        """Codes of the scores of a chunk."""
        k, spec, lane = self.kernel, self.spec, self.lane
        name = "qc_mma_u8s8" if (spec.q_table or spec.q.storage) == "uint8" else "qc_mma_s8s8"
        q_centred, k_centred = spec.centred[:2]
        pairs = spec.chunk // 16 if spec.chunks > 1 else -(-spec.tokens // 16)
        scales = [k.let(pointer.load(0)) for pointer in self.score_scales]
        size = itemsize(spec.scores.storage)

        def pair(j: Expr) -> None:
            acc, columns, rows = self._sums(8), self._sums(8), self._sums(4)
            ones = self._ones(4)
            a, b = k.local(4, "uint32"), k.local(4, "uint32")
            for step in range((spec.pitch - 16) // 32):
                a_at = self.at["q"] + (lane % 16) * spec.pitch + (lane // 16) * 16 + 32 * step
                k.call("qc_ldmatrix4", k.at(a, 0), k.at(self.memory, a_at))
                row = j * 16 + lane % 8 + (lane // 16) * 8
                b_at = self.at["k"] + row * spec.pitch + ((lane // 8) % 2) * 16 + 32 * step
                k.call("qc_ldmatrix4", k.at(b, 0), k.at(self.memory, b_at))
                for i in (0, 1):
                    k.call(name, k.at(acc, 4 * i), k.at(a, 0), k.at(b, 2 * i))
                    if not q_centred:
                        k.call("qc_mma_u8s8", k.at(columns, 4 * i), k.at(ones, 0), k.at(b, 2 * i))
                if not k_centred:
                    k.call(name, k.at(rows, 0), k.at(a, 0), k.at(ones, 0))
            for i in (0, 1):
                token = k.let(first + j * 16 + 8 * i + (lane % 4) * 2)
                for half in (0, 1):
                    row = k.let(half * 8 + lane // 4)
                    codes = []
                    for c in (0, 1):
                        column = None if q_centred else columns.load(4 * i + c)
                        sums = None if k_centred else rows.load(2 * half)
                        at = 4 * i + 2 * half + c
                        total = self._total(acc.load(at), column, sums, ("q_zero", "k_zero"), spec.inner)
                        codes.append(spec.scores.apply(k, total, scales, self.score_numbers))
                    to = self.at["s"] + row * spec.score_pitch + token * size
                    k.call(f"qc_put2_{size}", k.at(self.memory, to), *codes)

        with k.loop(-(-pairs // WARPS)) as step:
            j = k.let(step * WARPS + self.warp)
            if pairs % WARPS:
                k.when(j < pairs, lambda: pair(j))
            else:
                pair(j)

    def _softmax(self) -> None:
        """LANES lanes a row; hidden tokens have the code of 0, and those behind the last one the byte 0."""
        k, spec = self.kernel, self.spec.softmax
        tirx = k.tirx
        row, part = k.let(k.thread // LANES), k.let(k.thread % LANES)
        count: Expr = k.const(self.spec.tokens)
        if self.mask is not None and spec.mask == "prefix":
            query = k.let(tirx.min(self.first + row, k.const(self.spec.queries - 1)))
            (mask_at,) = unit_offsets(k, spec.nest, self.head * self.spec.queries + query)
            count = k.let(self.mask.load(mask_at))
        elif self.mask is not None:
            last = k.clamp(self.mask.load(0), 0, spec.length - 1, spec.mask_type)
            count = k.let(k.cast(last, "int32") + k.const(1))
        size = itemsize(spec.storage)
        lowest = k.const({"uint8": 0, "int8": -128, "uint16": 0, "int16": -32768}[spec.storage])
        padded = self.spec.chunk * self.spec.chunks
        steps = -(-self.spec.tokens // LANES)
        kept = steps <= KEPT

        def cells(body: Callable[[Expr, Expr], None]) -> None:
            """body(step, token)."""
            with k.unrolled(steps) if kept else k.loop(steps) as step:
                body(step, k.let(step * LANES + part))

        def code(token: Expr) -> Expr:
            at = self.at["s"] + row * self.spec.score_pitch + token * size
            return k.let(k.value(f"qc_get_{spec.storage}", k.at(self.memory, at)))

        top, total = k.local(1, "int32"), k.local(1, "int64")
        top.store(0, lowest)
        total.store(0, k.const(0, "int64"))
        found = k.local(steps if kept else 1, "int32")

        def largest(step: Expr, token: Expr) -> None:
            value = k.let(tirx.Select(token < count, code(token), lowest))
            top.store(0, tirx.max(top.load(0), value))

        cells(largest)
        most = k.let(k.value("qc_eight_max", top.load(0)))

        def exponential(token: Expr) -> Expr:
            distance = k.let(tirx.Select(token < count, most - code(token), k.const(0)))
            e = k.let(spec.exponential(k, self.exponentials, distance))
            return k.let(tirx.Select(token < count, e, k.const(0)))

        def add(step: Expr, token: Expr) -> None:
            e = exponential(token)
            if kept:
                found.store(step, e)
            total.store(0, total.load(0) + k.cast(e, "int64"))

        cells(add)
        sum_ = k.let(k.value("qc_eight_sum64", total.load(0), dtype="int64"))
        share = share_of(spec, k, sum_)
        low, high = spec.format.min - spec.zero_point, spec.format.max - spec.zero_point

        def write(step: Expr, token: Expr) -> None:
            e = k.let(found.load(step)) if kept else exponential(token)
            result = k.clamp(share(e), low, high, "int32") + k.const(spec.zero_point)
            result = tirx.Select(token < self.spec.tokens, result, k.const(0))
            to = k.at(self.memory, self.at["p"] + row * (padded + 16) + token)
            k.call("qc_put_byte", to, result)

        cells(write)
        with k.loop(padded // LANES, steps) as step:
            to = k.at(self.memory, self.at["p"] + row * (padded + 16) + step * LANES + part)
            k.call("qc_put_byte", to, k.const(0))
        k.sync()

    def _values(self) -> None:
        """The second product, and codes of y."""
        k, spec, lane = self.kernel, self.spec, self.lane
        name = "qc_mma_u8s8" if str(spec.softmax.format.storage) == "uint8" else "qc_mma_s8s8"
        p_centred, v_centred = spec.centred[2:]
        tiles = spec.channels // 8
        each = -(-tiles // WARPS)
        padded = spec.chunk * spec.chunks
        acc, columns, rows = self._sums(4 * each), self._sums(4 * each), self._sums(4)
        ones = self._ones(4)
        a, b = k.local(8, "uint32"), k.local(4, "uint32")
        with k.loop(spec.chunks) as chunk:
            first = k.let(chunk * spec.chunk) if spec.chunks > 1 else 0
            if spec.chunks > 1:
                self._stage_turned(first)
                k.sync()
            with k.loop(spec.chunk // CHUNK) as part:
                for step in (0, 1):
                    at = (
                        self.at["p"]
                        + (lane % 16) * (padded + 16)
                        + first
                        + part * CHUNK
                        + (lane // 16) * 16
                        + 32 * step
                    )
                    k.call("qc_ldmatrix4", k.at(a, 4 * step), k.at(self.memory, at))
                    if not v_centred:
                        k.call(name, k.at(rows, 0), k.at(a, 4 * step), k.at(ones, 0))
                for i in range(each):
                    tile = k.let(k.tirx.min(self.warp + i * WARPS, k.const(tiles - 1)))
                    at = self.at["v"] + (tile * 8 + lane % 8) * (spec.chunk + 16) + part * CHUNK + (lane // 8) * 16
                    k.call("qc_ldmatrix4", k.at(b, 0), k.at(self.memory, at))
                    for step in (0, 1):
                        k.call(name, k.at(acc, 4 * i), k.at(a, 4 * step), k.at(b, 2 * step))
                        if not p_centred:
                            k.call("qc_mma_u8s8", k.at(columns, 4 * i), k.at(ones, 0), k.at(b, 2 * step))
            if spec.chunks > 1:
                k.sync()
        scales = [k.let(pointer.load(0)) for pointer in self.scales]
        for i in range(each):
            tile = k.let(self.warp + i * WARPS)
            for half in (0, 1):
                query = k.let(self.first + half * 8 + lane // 4)
                for c in (0, 1):
                    column = k.let(tile * 8 + (lane % 4) * 2 + c)
                    own = None if p_centred else columns.load(4 * i + c)
                    sums = None if v_centred else rows.load(2 * half)
                    found = acc.load(4 * i + 2 * half + c)
                    total = self._total(found, own, sums, ("p_zero", "v_zero"), spec.tokens)
                    code = spec.codes.apply(k, total, scales, self.code_numbers)
                    at = k.let(self.starts["y"] + query * spec.y.row + column * spec.y.column)
                    inside = k.tirx.all(query < spec.queries, column < spec.outer)
                    k.when(inside, lambda at=at, code=code: self.y.store(at, k.cast(code, self.y.dtype)))  # type: ignore[misc]
