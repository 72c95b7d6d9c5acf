"""What the report says of flash and RAM, against the image that is linked and the stack that is used.

    python -m benchmarks.mcu_fit [--only PARTS] [--precisions w8a8,w4a8] [--options weights=bin,...] [--json FILE]

For each network: an image for the emulated Cortex-M4 at -Os that runs the model, less one without it; the stack is
painted and read back. `measured` is the report's figure where the cross compiler is, `estimated` where it is not. Exit
code 1 if one of them is more than 3 % off.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.assets import Case, arguments, networks, write_json
from benchmarks.bundles import quantize
from benchmarks.mcu import NETWORKS
from qcompiler.cli.console import table
from qcompiler.targets.c.build import build
from tests.mcu.boards import BOARDS, linked

ALLOWED = 0.03
SECONDS = 300.0


def row(case: Case, precision: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Bytes of one network at one precision, by three ways."""
    graph = quantize(case, precision, "fixed").integer_graph
    assert graph is not None
    lowered = build(graph, {"prefix": "net", **options}, lambda stage, done, total: None)
    fit, sizes = lowered.facts["fit"], lowered.sizes
    if fit["how"] != "measured":
        sys.exit("the cross compiler failed where the board's did not")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for path, data in lowered.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        image = linked(BOARDS["m4"], folder, lowered.manifest, folder, SECONDS)
    arena = sizes["arena_bytes"]  # the caller's is no variable of the model
    ram = image.stack + (arena if lowered.manifest["arena"] == "caller" else image.variables)
    found = {
        "flash": {"image": image.flash, "measured": fit["flash_bytes"],
                  "estimated": sizes["weight_bytes"] + sizes["code_bytes"]},
        "ram": {"image": ram, "measured": fit["ram_bytes"], "estimated": arena + sizes["stack_bytes"]},
        "stack": {"image": image.stack, "measured": fit["stack_bytes"], "estimated": sizes["stack_bytes"]},
    }  # fmt: skip
    return {"network": case.name, "precision": precision, **found}


def off(found: Mapping[str, int], way: str) -> float:
    """Share that a figure is above the image's."""
    return found[way] / found["image"] - 1


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[object]]:
    """Lines of the table."""
    for one in rows:
        cells: list[object] = [one["network"], one["precision"]]
        for kind in ("flash", "ram"):
            cells.append(one[kind]["image"])
            cells += [f"{off(one[kind], way):+.1%}" for way in ("measured", "estimated")]
        yield [*cells, *one["stack"].values()]


HEADERS = ["network", "precision", "flash", "measured", "estimated", "RAM", "measured", "estimated", "stack",
           "measured", "estimated"]  # fmt: skip


def main() -> int:
    """Print the table."""
    given = arguments(__doc__, precisions={"default": "w8a8,w4a8"}, options={"default": ""})
    if reason := BOARDS["m4"].missing():
        sys.exit(reason)
    options = dict(pair.split("=", 1) for pair in given.options.split(",") if pair)
    rows: list[dict[str, Any]] = []
    for case in networks(given.only or NETWORKS):
        for precision in given.precisions.split(","):
            rows.append(row(case, precision, options))
            print(rows[-1], file=sys.stderr, flush=True)
            write_json(given.json, rows)
    print(table(HEADERS, list(lines(rows))))
    worst = max(
        abs(off(one[kind], way)) for one in rows for kind in ("flash", "ram") for way in ("measured", "estimated")
    )
    print(f"at most {worst:.1%} off")
    return 0 if worst <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
