"""The cuda target's cost model: formula, whole networks, a fit that finds what it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_costs import fit, left_out, network_us
from qcompiler.cost import Widths, Work
from qcompiler.driver import quantize
from qcompiler.errors import RecipeError
from qcompiler.targets import get_target
from qcompiler.targets.cuda.build import build
from qcompiler.targets.cuda.cost import SHIPPED, CudaCost, Table, cost_model
from tests.conftest import Digits

PROCESSORS = 132
CONV = Work(
    "conv", "Conv", ((1, 256, 28, 28),), (1, 256, 28, 28), (256, 256, 3, 3), (("pads", (1, 1, 1, 1)),), 462_422_016
)
DENSE = Work("dense", "MatMul", ((1, 8192),), (1, 8192), (8192, 8192), (), 1 << 26)


def launch(kernel: str, grid: int, size: int, macs: int = 0, **more: Any) -> dict[str, Any]:
    return {"kernel": kernel, "grid": [grid, 1, 1], "bytes": size, "macs": macs, **more}


def product(
    grid: int, steps: int, size: int = 0, parts: int = 1, pixels: int = 128, channels: int = 64
) -> dict[str, Any]:
    """A launch of tiles of 64 bytes of the inner dimension."""
    shape = {"copies": 4 * (pixels + channels), "bytes": 64 * (pixels + channels), "macs": 64 * pixels * channels}
    tile = {"steps": steps, "outputs": pixels * channels, "resident": 4, "wgmma": False, "parts": parts, **shape}
    return launch("qc_product_0", grid, size, grid * steps * shape["macs"], tiled=tile)


@pytest.fixture(scope="module")
def table() -> Table:
    return Table(
        device="a card", date="2026-01-01", level="sm_90a", processors=PROCESSORS, bytes_rate=2e6, fetch_rate=5e6,
        fixed={"tensor": 2.0, "attention": 2.0, "direct": 3.0, "rows": 2.5, "map": 1.5},
        rates={"attention": 1e8, "direct": 1e6, "mma": 4e8, "wgmma": 7e8},
        step=0.1, block=0.3, output=1e-4, copy=2e-4, group=1e-3, inference=4.0, error=0.0,
    )  # fmt: skip


def test_a_launch_takes_what_takes_longest(table: Table) -> None:
    assert table.microseconds(launch("qc_add_0", 1000, 4_000_000)) == pytest.approx(1.5 + 2)
    assert table.microseconds(launch("qc_depthwise_0", 1000, 1000, 10_000_000)) == pytest.approx(3 + 10)
    # Few blocks have few processors.
    assert table.microseconds(launch("qc_depthwise_0", 33, 1000, 10_000_000)) == pytest.approx(3 + 40)
    assert table.microseconds(launch("qc_softmax_3", 10 * PROCESSORS, 0)) == pytest.approx(2.5 + 10 * 1e-3)


def test_tiles_take_waves_or_work(table: Table) -> None:
    assert table.microseconds(product(1, 20, pixels=16, channels=16)) == pytest.approx(2 + 20 * 0.1)
    assert table.microseconds(product(4 * PROCESSORS, 20)) > table.microseconds(product(1, 20))
    shape = 0.3 + 1e-4 * 128 * 64 + 3 * max(2e-4 * 768, 64 * 192 * PROCESSORS / 5e6, 64 * 128 * 64 * PROCESSORS / 4e8)
    assert table.microseconds(product(40 * PROCESSORS, 3)) == pytest.approx(2 + 40 * shape)
    assert table.microseconds(product(1, 3, 40_000_000)) == pytest.approx(2 + 20)
    # A block more is another round of all processors, and parts of sums have to meet.
    assert table.microseconds(product(40 * PROCESSORS + 1, 3)) == pytest.approx(2 + 41 * shape)
    assert table.microseconds(product(8, 20, parts=8)) > table.microseconds(product(8, 20)) + 1


def test_packed_weights_cost_less_where_weights_are_what_takes_time(table: Table) -> None:
    model = CudaCost(table)
    wide, half, quarter = (model.cost(DENSE, Widths(bits, (8,), 8)) for bits in (8, 4, 2))
    assert wide.latency > 1.5 * half.latency > 2 * quarter.latency
    assert wide.weight_bytes > 1.9 * half.weight_bytes
    assert model.cost(CONV, Widths(8, (8,), 8)).resources["launches"] == 1


def test_the_whole_is_what_will_be_built(table: Table, digits: Digits) -> None:
    data = {"x": digits.data["x_calib"][:8]}
    result = quantize(digits.cnn, data, "default", dims={"N": 1})
    assert result.integer_graph is not None
    lowered = build(result.integer_graph, {"arch": "none"}, lambda *_: None)
    variant = next(v for v in lowered.manifest["variants"] if v["level"] == "sm_90a")
    model = CudaCost(table)
    whole = model.whole(result.integer_graph)
    assert whole.weight_bytes == variant["weight_bytes"] and whole.peak_bytes == variant["arena_bytes"]
    assert whole.resources["launches"] == variant["calls"]
    rows = json.loads(lowered.files["sm_90a/launches.json"])
    assert whole.latency == pytest.approx((table.inference + sum(map(table.microseconds, rows))) / 1e3)
    nodes = model.nodes(result.integer_graph)
    assert sum(nodes.values()) == pytest.approx(whole.latency - table.inference / 1e3)


def test_a_fit_finds_what_times_were_made_from(table: Table) -> None:
    rng = np.random.default_rng(0)
    networks = {}
    for i in range(24):
        rows = []
        for _ in range(int(rng.integers(4, 40))):
            kernel = str(rng.choice(["qc_add_0", "qc_product_1", "qc_depthwise_2", "qc_normalize_3"]))
            size, macs = (int(np.exp(rng.uniform(*span))) for span in ((7, 17), (10, 21)))
            if "product" in kernel:
                rows.append(product(int(rng.integers(1, 3000)), int(rng.integers(1, 60)), size))
            else:
                rows.append(launch(kernel, int(rng.integers(1, 3000)), size, macs if "depthwise" in kernel else 0))
        networks[f"n{i}"] = (rows, network_us(table, rows))
    alone = [product(int(np.exp(rng.uniform(1, 9))), int(rng.integers(1, 60)), 0, 1, *shape)
             for shape in ((128, 128), (16, 64), (16, 16)) for _ in range(8)]  # fmt: skip
    found = fit(networks, "a card", "2026-01-01", [(row, table.microseconds(row)) for row in alone])
    assert found.error < 0.03
    for kind in ("tensor", "direct", "rows", "map"):
        assert found.fixed[kind] == pytest.approx(table.fixed[kind], rel=0.25)
    assert found.bytes_rate == pytest.approx(table.bytes_rate, rel=0.2)
    assert found.step == pytest.approx(table.step, rel=0.2)


def test_a_table_by_the_others_is_told_from_one_by_all(table: Table) -> None:
    rows = {name: [launch("qc_add_0", 1000, size)] for name, size in (("a-b1-w8a8", 1000), ("b-b1-w8a8", 9_000_000))}
    networks = {name: (own, 3 * network_us(table, own) if name[0] == "b" else network_us(table, own))
                for name, own in rows.items()}  # fmt: skip
    without = left_out(networks, "a card", "2026-01-01")
    assert set(without) == set(networks) and without["b-b1-w8a8"] < 0.8 * networks["b-b1-w8a8"][1]


def test_the_shipped_table_says_where_it_is_from() -> None:
    cost = get_target("cuda").cost
    assert cost is not None
    model, note = cost({})
    assert "H100" in model.origin and "H100" in note and "another card" in note
    assert Table.read(SHIPPED / "h100.json").error < 0.2


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"schema": 1, "device": "x"}')
    with pytest.raises(RecipeError, match="no table of a card's costs"):
        cost_model(tmp_path / "t.json")
    with pytest.raises(RecipeError, match="no table"):
        cost_model(tmp_path / "missing.json")
