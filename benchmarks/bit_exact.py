"""Bundles against the oracle, bit for bit: every network, precision, arithmetic, instruction set and thread count.

    python -m benchmarks.bit_exact [--only PARTS] [--precisions w8a8,w4a8] [--arithmetics float,fixed]
                                   [--levels all] [--samples 100] [--json FILE]

`--levels` names instruction sets, `all` (those of this machine) or `native`. One and two threads always. The oracle
runs once for each integer graph. Exit code 1 on any mismatch.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.assets import Case, arguments, machine, networks, write_json
from benchmarks.bundles import build, quantize, runnable_levels
from qcompiler.calibrate.data import load_samples
from qcompiler.cli.console import table
from qcompiler.evaluate import runner, verify

THREADS = (1, 2)


def rows(case: Case, precision: str, arithmetic: str, levels: list[str], count: int) -> Iterator[dict[str, Any]]:
    """One row an instruction set."""
    result = quantize(case, precision, arithmetic)
    feed, axis = case.feed("test"), -1
    while len(feed[case.input]) < count:  # few samples: mirrored ones are as good here
        feed = {name: np.concatenate([data, np.flip(data, axis)]) for name, data in feed.items()}
        axis -= 1
    samples = list(load_samples(feed, result.float_graph, None, count))
    reference = runner(result.integer_graph)
    expected = {id(sample): reference(sample) for sample in samples}

    def oracle(sample: Mapping[str, NDArray]) -> list[NDArray]:
        return expected[id(sample)]  # type: ignore[no-any-return]

    for level in levels:
        with tempfile.TemporaryDirectory() as folder:
            bundle = build(result, Path(folder) / "bundle", level, arithmetic)
            runs = [runner(bundle, threads=threads) for threads in THREADS]
            found = verify(oracle, runs, [f"{threads} threads" for threads in THREADS], samples)
        what = {"network": case.name, "precision": precision, "arithmetic": arithmetic, "level": level}
        yield what | found.document()


def main() -> int:
    """Print the table."""
    given = arguments(
        __doc__, precisions={"default": "w8a8,w4a8"}, arithmetics={"default": "float,fixed"}, levels={"default": "all"},
        samples={"type": int, "default": 100},
    )  # fmt: skip
    able = runnable_levels()
    levels = able if given.levels == "all" else able[-1:] if given.levels == "native" else given.levels.split(",")
    found: list[dict[str, Any]] = []
    for case in networks(given.only):
        for precision in given.precisions.split(","):
            for arithmetic in given.arithmetics.split(","):
                for one in rows(case, precision, arithmetic, levels, given.samples):
                    found.append(one)
                    print(*one.values(), file=sys.stderr, flush=True)
                    write_json(given.json, found)
    headers = ["network", "precision", "arithmetic", "level", "samples", "threads", "bit-exact"]
    lines = [
        [*(one[key] for key in headers[:5]), "1, 2", "yes" if one["bit_exact"] else f"NO: {one['first_mismatch']}"]
        for one in found
    ]
    print(machine() + "\n" + table(headers, lines))
    return 0 if all(one["bit_exact"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
