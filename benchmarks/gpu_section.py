"""What docs/results.md says of cards, from the file that `benchmarks.gpu` left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

Document = dict[str, Any]
NAMED = re.compile(r"(?P<name>.+)-b(?P<batch>\d+)-(?P<precision>w\d+a\d+)$")


def parts(document: Document) -> Iterator[tuple[str, list[str], list[list[object]]]]:
    """(text, headers, rows) of each table."""
    bundles, peers = document["bundles"], document["peers"]
    wrong = [row["name"] for row in bundles if row["wrong"]]
    compared = sum(row["compared"] for row in bundles)
    bits = f"wrong bits in {', '.join(wrong)}" if wrong else "every bit is right"
    yield (
        f"{compared} outputs of networks, of the conformance suite in both arithmetics, and of shapes and tiles drawn\n"
        f"at random were compared with the oracle: {bits}. Times are of one CUDA graph, median of five rounds of\n"
        "fifty; beside them the float network in bfloat16 by torch, compiled (inductor) and in a CUDA graph too.\n"
        "`us` is the default; `early us`: each kernel is made ready while the one before it runs.",
        ["network", "batch", "precision", "kernels", "us", "early us", "torch bfloat16 us", "speed"],
        list(_networks(bundles, peers)),
    )
    dense = next((row for row in document["kernels"] if "share_of_dense_int8" in row), None)
    if dense is not None:
        yield (
            "Products, bit for bit checked on the card too; shares are of the rate that the vendor names for dense\n"
            "int8.",
            ["kernel", "us", "TOPS", "of dense int8", "weights GB/s"],
            list(_products(document["kernels"])),
        )
    copy = next((row for row in document["kernels"] if row["label"].startswith("copy")), None)
    stream = next((row for row in bundles if row["name"] == "stream"), None)
    if copy is not None and stream is not None:
        yield (
            f"Elementwise operators over 128 Mi elements, beside a copy on the card ({copy['gbs']:.0f} GB/s, read and\n"
            "written).",
            ["operator", "GB/s", "of the copy"],
            list(_elementwise(stream, copy["gbs"])),
        )


def _networks(bundles: Sequence[Document], peers: Sequence[Document]) -> Iterator[list[object]]:
    for row in bundles:
        found = NAMED.match(row["name"])
        if found is None:
            continue
        name, batch, precision = found.group("name"), int(found.group("batch")), found.group("precision")
        times = [p["us"] for p in peers if p["name"] == name and p["batch"] == batch and p["kind"].endswith("compiled")
                 and "us" in p]  # fmt: skip
        own = row.get("late_us", row["graph_us"])
        early = f"{row['graph_us']:.0f}" if "late_us" in row else ""
        yield [
            name, batch, precision, len(row["launches"]) if "launches" in row else row["kernels"],
            f"{own:.0f}", early, f"{times[0]:.0f}" if times else "", f"{times[0] / own:.2f}x" if times else "",
        ]  # fmt: skip


def _products(kernels: Sequence[Document]) -> Iterator[list[object]]:
    for row in kernels:
        if "gbs" in row:
            continue
        share = f"{100 * row['share_of_dense_int8']:.1f} %" if row.get("tops", 0) > 100 and "exact" in row else ""
        tops = f"{row['tops']:.0f}" if "tops" in row else ""
        rate = f"{row['weights_gbs']:.0f}" if "rows by" in row["label"] and "weights_gbs" in row else ""
        yield [row["label"], f"{row['us']:.1f}", tops, share, rate]


def _elementwise(stream: Document, copy: float) -> Iterator[list[object]]:
    seen = set()
    for launch in stream["launches"]:
        if launch["kernel"] not in seen:
            seen.add(launch["kernel"])
            operator = launch["kernel"].split("_")[1]
            yield [operator, f"{launch['gbs']:.0f}", f"{100 * launch['gbs'] / copy:.0f} %"]
