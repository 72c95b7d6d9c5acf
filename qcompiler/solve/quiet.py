"""Libraries that print: their lines must not come between the documents of --json."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def without_stdout() -> Iterator[None]:
    """What C code prints to the process's standard output is dropped; what Python has printed before stays.

    The whole process is meant, other threads too, so this is for single calls.
    """
    sys.stdout.flush()
    _flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        _flush()  # the library's buffer, while it still goes nowhere
        os.dup2(kept, 1)
        os.close(kept)


def _flush() -> None:
    with suppress(AttributeError, OSError, TypeError):  # no such C library by that name
        ctypes.CDLL(None).fflush(None)
