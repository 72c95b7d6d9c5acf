"""Cycles of a bill: those of a simulated circuit, at rates where engines stop each other."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import prod
from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.formats import Int
from qcompiler.graph.model import Graph
from qcompiler.targets.fpga import simulators
from qcompiler.targets.fpga.build import build
from qcompiler.targets.fpga.engines import Engine, common_shift
from qcompiler.targets.fpga.fold import at_most
from qcompiler.targets.fpga.host import HostSession
from qcompiler.targets.fpga.layers import Network, Requantizer
from qcompiler.targets.fpga.plan import plan_of
from qcompiler.targets.fpga.reader import network_of
from qcompiler.targets.fpga.schedule import schedule
from qcompiler.targets.shared.boundary import strip_boundary


@pytest.fixture(scope="module")
def network(digits: Graph) -> Network:
    return network_of(strip_boundary(digits))


@pytest.mark.skipif("iverilog" not in simulators.found(), reason=f"no iverilog. {simulators.INSTALL}")
def test_images_follow_each_other_in_the_bills_cycles(digits: Graph, tmp_path: Path) -> None:
    """So fast that the sums of the global average need longer than a pixel of the convolution before it."""
    lowered = build(digits, {"fps": 40000, "dsp": 0, "part": "xc7z045"}, lambda stage, done, total: None)
    assert b"pool_fifo (" in lowered.files["rtl/qc_top.v"]
    manifest = manifest_of("fpga", "fixed", digits, lowered.files, lowered.manifest, lowered.sizes)
    bundle = write_bundle(tmp_path / "bundle", lowered.files, manifest, overwrite=False)
    session = HostSession(bundle.path, bundle.manifest, "iverilog")
    rng, ends = np.random.default_rng(5), []
    frames = [[rng.integers(0, 255, (1, 1, 8, 8)).astype(np.uint8)] for _ in range(3)]
    for count in (1, 3):
        session.run_many(frames[:count])
        ends.append(session.cycles)
    circuit = lowered.facts["circuit"]
    assert (ends[1] - ends[0]) / 2 == pytest.approx(circuit["cycles"], rel=0.02)
    assert circuit["verdict"] == "FITS" and circuit["cycles"] <= 2500


def test_sums_that_leave_slowly_hold_back_what_comes_in(network: Network) -> None:
    """Without a queue all pixels but one take the convolution's time, the last one that of the sums."""
    folding = at_most(network, 2500)
    (sums,) = (engine for engine in folding.engines.values() if engine.layer.kind == "sum")
    before = folding.engines[sums.layer.inputs[0]]
    assert sums.fold.queue and before.layer.window is not None
    pixels = prod(before.layer.window.output)
    pixel = before.repeats * before.passes
    slow = {**folding.engines, sums.layer.output.name: Engine(sums.layer, replace(sums.fold, queue=False))}
    assert schedule(network, slow, folding.lanes).interval == (pixels - 1) * pixel + sums.drain
    slowest = max(engine.cycles for engine in folding.engines.values())
    assert schedule(network, folding.engines, folding.lanes).interval == slowest < 2500


def test_a_rate_is_kept_where_the_slowest_engine_needs_exactly_its_cycles(network: Network) -> None:
    """Nothing is lost between images."""
    slowest = max(engine.cycles for engine in at_most(network, 20000).engines.values())
    assert plan_of(network, {"fps": 100_000_000 / slowest, "dsp": 0}).times.interval <= slowest


def test_multipliers_keep_their_values_without_the_zeros_at_their_ends() -> None:
    multiplier = np.array([0x5A5A5A80, 0x40000000, 0x7FFFFF80, 0], np.int64)
    shift = np.array([37, 35, 40, 1], np.int64)
    zeros = np.zeros(4, np.int64)
    bits, common = common_shift(Requantizer(zeros, multiplier, shift, 0, Int(8, signed=False)))
    assert common == 33 and bits == 29  # 0x40000000 by 5 places, less the seven that all end with
    for m, s in zip(multiplier.tolist(), shift.tolist(), strict=True):
        scaled = Fraction(m, 1 << s) * (1 << common)
        assert scaled.denominator == 1 and scaled < 1 << bits
