"""Lines that C code prints do not reach standard output."""

from __future__ import annotations

import ctypes
import sys

import pytest

from qcompiler.solve.quiet import without_stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no C library by that name")
def test_lines_of_c_code_are_dropped_and_pythons_stay(capfd: pytest.CaptureFixture[str]) -> None:
    library = ctypes.CDLL(None)
    print("before")
    with without_stdout():
        library.printf(b"a line for its authors\n")
    library.printf(b"behind\n")
    library.fflush(None)
    print("after")
    assert capfd.readouterr().out.split() == ["before", "behind", "after"]


def test_standard_output_comes_back_behind_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="wrong"), without_stdout():
        raise ValueError("wrong")
    print("here")
    assert capfd.readouterr().out == "here\n"
