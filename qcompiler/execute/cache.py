"""Activations of many samples, kept while a block learns: in memory up to a limit, beyond it in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import CalibrationError
from qcompiler.formats import QuantParams
from qcompiler.quantizer import dequantize, quantize


@dataclass(eq=False)
class _Column:
    """One value: its samples in memory, then, from the first that did not fit, in a file."""

    shape: tuple[int, ...]
    stored: np.dtype
    params: QuantParams | None
    memory: list[NDArray] = field(default_factory=list)
    path: Path | None = None
    on_disk: int = 0

    @property
    def count(self) -> int:
        return len(self.memory) + self.on_disk


class ActivationCache:
    """Arrays [n, *shape] by value name, appended sample by sample, read in batches by index.

    limit: bytes in memory, of all values together. codes: value name -> QuantParams of values that lie on a quantizer's
    grid: they are kept as its codes (1 or 2 bytes an element) and decoded when read, with the same bits.
    A context manager: the file, if there is one, goes at the end of `with`, with `close()`, or with the object.
    """

    def __init__(
        self,
        *,
        limit: int = 1 << 30,
        codes: Mapping[str, QuantParams] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self._limit, self._folder = limit, folder
        self._codes = {name: _behind_samples(params) for name, params in (codes or {}).items()}
        self._columns: dict[str, _Column] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._used = self._files = 0

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything and delete the file."""
        self._columns.clear()
        self._used = 0
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    @property
    def names(self) -> list[str]:
        """Values that have samples."""
        return list(self._columns)

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of the samples that are kept in memory, at most `limit`."""
        return self._used

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of the samples in the file."""
        return sum(column.on_disk * _size(column) for column in self._columns.values())

    def __len__(self) -> int:
        """Samples. Raises CalibrationError when values have different numbers of them."""
        counts = {name: column.count for name, column in self._columns.items()}
        if len(set(counts.values())) > 1:
            raise CalibrationError(f"values have different numbers of samples: {counts}.", where="activation cache")
        return next(iter(counts.values()), 0)

    def append(self, name: str, array: NDArray) -> None:
        """One sample [*shape] of a value. Raises CalibrationError when it has another shape or type than the first, or
        is off the grid of its codes."""
        self.extend(name, np.asarray(array)[None])

    def extend(self, name: str, arrays: NDArray) -> None:
        """Several samples [k, *shape] of a value; as `append`."""
        arrays = np.asarray(arrays)
        params = self._codes.get(name)
        kept = arrays if params is None else _encode(name, arrays, params)
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = _Column(arrays.shape[1:], kept.dtype, params)
        if arrays.shape[1:] != column.shape or kept.dtype != column.stored:
            raise CalibrationError(
                f"samples of `{name}` are {list(column.shape)} {column.stored}, not {list(arrays.shape[1:])} "
                f"{kept.dtype}.",
                where="activation cache",
            )
        size = _size(column)
        fits = len(kept) if not size else min((self._limit - self._used) // size, len(kept))
        fits = 0 if column.on_disk else max(fits, 0)
        column.memory += [np.array(one) for one in kept[:fits]]  # copies: a view would keep the whole batch alive
        self._used += fits * size
        if fits < len(kept):
            self._write(column, kept[fits:])

    def read(self, name: str, indices: Sequence[int] | NDArray | None = None) -> NDArray:
        """Samples [len(indices), *shape] of a value in the order of `indices` (all by default), decoded. A copy.

        Raises CalibrationError for an unknown value or sample.
        """
        column = self._columns.get(name)
        if column is None:
            raise CalibrationError(
                f"`{name}` has no samples; there are {', '.join(sorted(self._columns)) or 'none'}.",
                where="activation cache",
            )
        places = np.arange(column.count) if indices is None else np.asarray(indices, np.int64).reshape(-1)
        wrong = places[(places < 0) | (places >= column.count)]
        if len(wrong):
            raise CalibrationError(f"`{name}` has {column.count} samples, no {wrong[0]}.", where="activation cache")
        result = np.empty((len(places), *column.shape), column.stored)
        first = len(column.memory)
        for row in np.flatnonzero(places < first):
            result[row] = column.memory[places[row]]
        late = np.flatnonzero(places >= first)
        if len(late):
            # Mapped anew each time, so that its pages do not stay in memory.
            assert column.path is not None
            shape = (column.on_disk, *column.shape)
            result[late] = np.memmap(column.path, column.stored, "r", shape=shape)[places[late] - first]
        return result if column.params is None else dequantize(result, column.params)

    def batch(self, indices: Sequence[int] | NDArray) -> dict[str, NDArray]:
        """`read` of all values."""
        return {name: self.read(name, indices) for name in self._columns}

    def _write(self, column: _Column, arrays: NDArray) -> None:
        if column.path is None:
            if self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="qcompiler-cache-", dir=self._folder)
            column.path = Path(self._temporary.name) / f"{self._files}.bin"
            self._files += 1
        try:
            with open(column.path, "ab") as file:
                file.write(np.ascontiguousarray(arrays).tobytes())
        except OSError as error:
            raise CalibrationError(
                f"activations cannot be written: {error}.",
                where=str(column.path),
                hint="Use fewer samples, a larger limit, or set TMPDIR to a folder with more space.",
            ) from error
        column.on_disk += len(arrays)


def _size(column: _Column) -> int:
    return int(np.prod(column.shape, dtype=np.int64)) * column.stored.itemsize


def _encode(name: str, arrays: NDArray, params: QuantParams) -> NDArray:
    """Codes [k, *shape], which must mean the same values."""
    codes = quantize(arrays, params)
    if not np.array_equal(dequantize(codes, params), arrays):
        raise CalibrationError(
            f"`{name}` does not lie on the grid of {params.format}.",
            where="activation cache",
            hint="Keep the value without codes, or append what its quantizer returns.",
        )
    return codes


def _behind_samples(params: QuantParams) -> QuantParams:
    """The same for arrays with an axis of samples in front."""
    axis = params.axis + 1 if params.axis is not None and params.axis >= 0 else params.axis
    return QuantParams(params.format, params.scale, params.zero_point, axis)
