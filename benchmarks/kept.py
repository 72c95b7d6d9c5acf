"""Rows of an earlier page of results that were not measured anew: those of other networks stay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Table = tuple[list[str], list[list[str]]]
"""Headers and rows."""


def markdown(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def with_kept(new: str, old: str, keys: Sequence[str]) -> str:
    """A section with the tables and rows that its earlier text has and it lacks, and what was said about them.

    A table has the name that stands over it, if that is one word. keys: columns that tell its rows apart. Columns of
    either are columns of both, empty where nothing was measured.
    """
    fresh, before = _tables(new), _tables(old)
    kept = False
    for name, table in before.items():
        if name not in fresh:
            new, kept = f"{new.rstrip()}\n\n{name}\n\n{table}", True
            continue
        joined = _join(_parse(fresh[name]), _parse(table), keys)
        if len(joined[1]) > len(_parse(fresh[name])[1]):
            new, kept = new.replace(fresh[name], markdown(*joined)), True
    return _about(new, old) if kept else new


def _tables(text: str) -> dict[str, str]:
    """Name -> text."""
    paragraphs = [part.strip("\n") for part in text.split("\n\n")]
    found = {}
    for above, part in zip(["", *paragraphs], paragraphs, strict=False):
        if part.startswith("|"):
            found[above if re.fullmatch(r"\w+", above) else ""] = part + "\n"
    return found


def _about(new: str, old: str) -> str:
    """Commands, date and machine of the earlier rows, behind those of the new ones."""
    first, second = (re.search(r"(?m)^`python -m .*$", text) for text in (new, old))
    if first is None or second is None or second[0] in first[0]:
        return new
    told = second[0] if second[0].startswith(first[0]) else f"{first[0]} Before: {second[0]}"  # the page once more
    return new[: first.start()] + told + new[first.end() :]


def _parse(text: str) -> Table:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return lines[0], lines[2:]


def _join(first: Table, second: Table, keys: Sequence[str]) -> Table:
    headers = [*first[0], *(name for name in second[0] if name not in first[0])]
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for names, rows in (first, second):
        for cells in rows:
            row = dict(zip(names, cells, strict=True))
            found.setdefault(tuple(row.get(key, "") for key in keys), row)
    return headers, [[row.get(name, "") for name in headers] for row in found.values()]
