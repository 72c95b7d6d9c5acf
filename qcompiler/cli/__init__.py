"""The command line: `qcompile MODEL ...`, and the subcommands verify, eval, bench, targets, inspect,
calibrate-costs."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (and is the console script, so it exits with it)."""
    try:
        from qcompiler.cli.app import run

        code = run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # before or after the command itself
        code = 130
    if argv is None:
        sys.exit(code)
    return code
