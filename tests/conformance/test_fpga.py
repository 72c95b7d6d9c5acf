"""The fpga target against the oracle on every problem that it has an engine for; the others are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import Bundle, manifest_of, write_bundle
from qcompiler.errors import UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.model import Graph
from qcompiler.targets.fpga.build import build
from qcompiler.targets.fpga.host import HostSession
from qcompiler.targets.fpga.reader import network_of
from qcompiler.targets.fpga.simulators import INSTALL, found
from qcompiler.targets.shared.boundary import strip_boundary
from tests.conformance.problems import Problems
from tests.conformance.suite import build_suite, samples

HAS = [
    "conv3x3", "conv3x3_stride2_rgb", "conv1x1", "conv1x1_wide_output", "conv1x1_stride2", "conv_dilated", "conv1d",
    "conv_one_channel", "conv_two_pixels", "conv_whole_image", "conv_w2", "conv_w3", "conv_w4", "conv_w5",
    "conv_w6", "conv_w7", "conv_w4a4", "conv_w2a3", "conv_signed", "conv_affine_weights", "conv_affine_128",
    "conv_a16", "conv_a16_signed", "depthwise3x3", "depthwise3x3_stride2", "depthwise3x3_tall",
    "depthwise3x3_stride3", "depthwise3x3_crop", "depthwise_w4a4", "depthwise3x3_bands2", "depthwise_dilated",
    "depthwise1x1", "depthwise1d", "depthwise_signed", "depthwise_affine", "depthwise_affine_128", "depthwise_a16",
    "matmul", "matmul_batch", "matmul_w4", "matmul_w3", "matmul_w2", "matmul_signed", "matmul_a16", "add", "sub",
    "add_signed", "add16", "table", "table_image", "table_signed", "table4", "table_widen", "table_int4",
    "requantize16", "requantize16_signed", "maxpool", "maxpool_padded", "maxpool_signed", "maxpool1d", "maxpool16",
    "averagepool", "averagepool_padded", "averagepool1d", "global_mean", "mean16", "softmax", "softmax_long",
    "softmax_signed", "reshape", "identity", "transpose", "conv_grouped", "conv_depth_multiplier", "pad",
    "mini_grouped", "mini_depthwise", "mini_depthwise_wide", "mini_narrow_scales",
    *(f"mini_{pair}_{op}" for op in ("conv", "matmul") for pair in (
        "e2m1_uint8_uint8", "e2m1_e2m1_e2m1", "e2m1_ue2m2_ue2m2", "e2m0_uint4_ue2m1", "e2m3_uint8_e1m3",
        "e2m4_int8_uint8", "e3m0_uint8_e3m0", "e3m0_uint8_uint8", "e2m5_uint8_e2m5", "e3m2_uint8_uint8",
        "e3m2_e3m2_e3m2", "e3m4_ue3m5_ue3m5", "int8_e3m1_e3m3",
    )),
    *(f"mini_rescale_{out}" for out in ("e1m3", "e2m1", "ue2m2", "e2m5", "e3m0", "e3m4", "ue3m5", "signed")),
]  # fmt: skip
"""Problems with an engine. What is not here is refused, by the name of its node."""
QUICK = [
    "conv3x3_stride2_rgb", "conv1x1_stride2", "conv_dilated", "conv1d", "conv_w4a4", "conv_a16_signed",
    "depthwise3x3_crop", "matmul_w3", "matmul_batch", "add_signed", "add16", "table_signed", "requantize16",
    "maxpool_padded", "averagepool_padded", "mean16", "softmax_signed",
    "conv_grouped", "pad", "mini_depthwise", "mini_rescale_ue2m2",
]  # fmt: skip


def only(problems: Problems, names: list[str]) -> Graph:
    """The suite with these outputs alone."""
    graph = problems.graph.clone()
    kept = [value for value in graph.ir.outputs if value.name in names]
    graph.ir.outputs.clear()
    graph.ir.outputs.extend(kept)
    graph.sweep()
    for value in list(graph.ir.inputs):
        if not value.uses():
            graph.ir.inputs.remove(value)
    return graph


def compare(
    graph: Graph, problems: Problems, folder: Path, simulator: str, count: int, stall: int, fps: int
) -> None:
    lowered = build(graph, {"fps": fps, "dsp": 0}, lambda stage, done, total: None)
    manifest = manifest_of("fpga", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    bundle: Bundle = write_bundle(folder / "bundle", lowered.files, manifest, overwrite=False)
    session, oracle = HostSession(bundle.path, bundle.manifest, simulator, stall), Oracle(graph)
    given = samples(problems, count)
    results = session.run_many([[sample[name] for name in oracle.input_names] for sample in given])
    for sample, result in zip(given, results, strict=True):
        for name, want, got in zip(oracle.output_names, oracle.run(sample), result, strict=True):
            np.testing.assert_array_equal(want, got, err_msg=name)


def test_what_has_no_engine_is_refused_by_name() -> None:
    problems = build_suite("fixed")
    able = []
    for name in [str(value.name) for value in problems.graph.outputs]:
        graph = only(problems, [name])
        try:
            network_of(strip_boundary(graph))
            able.append(name)
        except UnsupportedError as error:
            assert any(f"`{node.name}`" in str(error) for node in graph.nodes()) or "input `" in str(error), error
    assert able == [str(value.name) for value in problems.graph.outputs if value.name in HAS]


@pytest.mark.skipif("iverilog" not in found(), reason=f"no iverilog. {INSTALL}")
def test_problems_have_the_oracles_bits(tmp_path: Path) -> None:
    problems = build_suite("fixed")
    compare(only(problems, QUICK), problems, tmp_path, "iverilog", 2, 1, 15000)


@pytest.mark.slow
@pytest.mark.skipif("verilator" not in found(), reason=f"no verilator. {INSTALL}")
@pytest.mark.parametrize("stall", [0, 7])
def test_every_problem_has_the_oracles_bits(tmp_path: Path, stall: int) -> None:
    problems = build_suite("fixed")
    compare(only(problems, HAS), problems, tmp_path, "verilator", 4, stall, 2000)
