"""What the terminal shows: progress on stderr, results on stdout. The only user of rich."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


class Console:
    """Progress and output of one command. With `as_json`, stdout gets one document and nothing else."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet or not sys.stderr.isatty()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def progress(self, stage: str, done: int, total: int) -> None:
        """A stage has come to `done` of `total`; total 0 when unknown."""
        if self.quiet:
            return
        if self._bar is None:
            from rich import progress
            from rich.console import Console as RichConsole

            columns = (
                progress.TextColumn("{task.description:<22}"), progress.BarColumn(), progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(), progress.TimeRemainingColumn(compact=True),
            )  # fmt: skip
            self._bar = progress.Progress(*columns, console=RichConsole(stderr=True))
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total or None)
        self._bar.update(self._tasks[stage], completed=done, total=total or None)

    def stop(self) -> None:
        """End the progress display."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def result(self, document: Mapping[str, Any], text: str) -> None:
        """The command's outcome: JSON, or text for people."""
        self.stop()
        if self.as_json:
            print(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
        else:
            print(text)

    def error(self, text: str, code: int) -> None:
        """One paragraph on stderr; with --json also a document on stdout."""
        self.stop()
        if self.as_json:
            print(json.dumps({"error": text, "exit_code": code}, ensure_ascii=False))
        print(f"error: {text}", file=sys.stderr)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Plain aligned columns, readable without colour; numbers to the right."""
    cells = [[str(h) for h in headers], *([_cell(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    right = [all(_is_number(row[i]) for row in rows) and bool(rows) for i in range(len(headers))]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def size(count: int) -> str:
    """Bytes for people."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.2f} MiB"
