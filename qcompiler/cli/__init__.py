"""The command line: `qcompile MODEL ...`, and the subcommands verify, eval, bench, targets, inspect."""

from __future__ import annotations

import sys
from collections.abc import Sequence

COMMANDS = ("compile", "verify", "eval", "bench", "targets", "inspect")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (and is the console script, so it exits with it)."""
    from qcompiler.cli.app import run

    code = run(list(sys.argv[1:] if argv is None else argv))
    if argv is None:
        sys.exit(code)
    return code
