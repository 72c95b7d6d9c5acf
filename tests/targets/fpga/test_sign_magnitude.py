"""Weights as sign and magnitude: products of all codes, sums, whole circuits, and where this coding is chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.driver import quantize
from qcompiler.errors import RecipeError
from qcompiler.execute.oracle import Oracle
from qcompiler.precision import parse_formats
from qcompiler.target import Lowered
from qcompiler.targets.fpga import resources
from qcompiler.targets.fpga.build import build
from qcompiler.targets.fpga.engines import sign_magnitude
from qcompiler.targets.fpga.host import HostSession
from qcompiler.targets.fpga.reader import network_of
from qcompiler.targets.shared.boundary import strip_boundary
from tests.conformance.problems import Problems
from tests.targets.fpga.bench import SIMULATORS, combinational, simulate_mac

DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits" / "cnn.onnx"


def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def operand(bits: int, signed: int) -> np.ndarray:
    """What codes of integers stand for, in the order of codes."""
    codes = np.arange(1 << bits)
    return np.where(signed & (codes >> (bits - 1)), codes - (1 << bits), codes)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("coding", [1, 2])
@pytest.mark.parametrize("weight,activation", [(2, 8), (3, 8), (4, 2), (4, 8), (6, 3), (7, 8), (8, 8)])
def test_products_of_all_codes(
    simulator: str, tmp_path: Path, weight: int, activation: int, coding: int, signed: int
) -> None:
    """Either factor is that of the rows, the one of fewer bits."""
    top = 1 << (weight - 1)
    codes = np.arange(2 * top)
    weights = np.where(codes < top, codes, top - codes)
    weights[top] = -top if coding == 2 else 0
    want = (operand(activation, signed)[:, None] * weights).reshape(-1).tolist()
    bits = weight + activation
    inputs = f"""wire [{activation - 1}:0] a = at >> {weight}; wire [{weight - 1}:0] w = at;
  wire n; wire signed [{bits - 1}:0] p; assign got = p + $signed({{1'b0, n}});"""
    given = {"WB": weight, "AB": activation, "AS": signed, "WM": coding}
    connected = ".a(a), .w(w), .p(p), .n(n)"
    combinational(simulator, tmp_path, "qc_mul_int", given, connected, want, inputs, bits + 1)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("coding", [1, 2])
@pytest.mark.parametrize("wb,ab,signed", [(3, 4, 1), (4, 8, 0), (8, 4, 1)])
@pytest.mark.parametrize("depthwise,simd", [(0, 5), (1, 1)])
def test_sums_of_products(
    simulator: str, tmp_path: Path, wb: int, ab: int, signed: int, depthwise: int, simd: int, coding: int
) -> None:
    pe, passes, groups, pixels = 3, 4, 2, 12
    low, high = -(signed << (ab - 1)), (1 << (ab - signed)) - 1
    top = (1 << (wb - 1)) - 1
    least = -top - (coding == 2)
    a = rng().integers(low, high + 1, (pixels, groups, passes, pe if depthwise else simd))
    a.reshape(-1)[:8] = [low, high] * 4
    w = rng().integers(least, top + 1, (groups, passes, pe, simd))
    w.reshape(-1)[:8] = [least, top, 0, -1] * 2
    products = a[..., None] * w if depthwise else a[:, :, :, None] * w
    want = products.sum((2, 4)).reshape(-1)
    given = {
        "PE": pe, "SIMD": simd, "WB": wb, "AB": ab, "AS": signed, "ACC": 18, "DEPTHWISE": depthwise, "WM": coding,
        "BLOCK": int(wb == 8),
    }  # fmt: skip
    free, beats = simulate_mac(simulator, tmp_path, given, a, sign_magnitude(w, wb), want)
    assert free < beats + 16  # a beat a cycle


def test_codes_of_weights() -> None:
    assert sign_magnitude(np.array([-8, -7, -1, 0, 1, 7]), 4).tolist() == [8, 15, 9, 0, 1, 7]


CODINGS = ["sign-magnitude", "sign-magnitude, -0 lowest", "two's complement"]


def layers() -> Problems:
    """Weights of -7..8, which are 5 bits without the lowest code, of -4..3, and of -16..15."""
    problems = Problems("fixed")
    problems.conv("symmetric", (1, 4, 6, 6), 8, (3, 3), pads=(1, 1, 1, 1), bits=4, mirrored=True)
    problems.conv("lowest", (1, 4, 5, 5), 4, (3, 3), bits=3)
    problems.conv("whole", (1, 4, 5, 5), 4, (3, 3), bits=5)
    return problems


def built(problems: Problems, **options: object) -> tuple[Lowered, list[str]]:
    """The circuit, and what its report says of each layer's weights."""
    lowered = build(problems.graph, {"fps": 20000, "dsp": 0, **options}, lambda stage, done, total: None)
    return lowered, [row["weights"] for row in lowered.facts["circuit"]["layers"] if row.get("weights")]


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_network_of_all_codings_has_the_oracles_bits(simulator: str, tmp_path: Path) -> None:
    problems = layers()
    graph, random = problems.graph, rng()
    lowered, codings = built(problems)
    assert codings == CODINGS
    manifest = manifest_of("fpga", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    bundle = write_bundle(tmp_path / "bundle", lowered.files, manifest, overwrite=False)
    session = HostSession(bundle.path, bundle.manifest, simulator, stall=2)
    oracle = Oracle(graph)
    shapes = {str(value.name): graph.shape(value) for value in graph.inputs}
    for _ in range(3):
        given = {name: random.integers(0, 256, shape).astype(np.float32) for name, shape in shapes.items()}
        found = session.run_codes([given[name] for name in oracle.input_names])
        for want, got in zip(oracle.run(given), found, strict=True):
            np.testing.assert_array_equal(got, want)


def test_the_coding_follows_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("xc7z020", "ecp5-25k"):
        assert built(layers(), part=part)[1] == CODINGS
    table = resources.prices()
    dear = {family: {key: 2 * lut for key, lut in one.items()} for family, one in table["multipliers"].items()}
    monkeypatch.setattr(resources, "prices", lambda: {**table, "sign_magnitude": dear})
    assert built(layers())[1] == ["two's complement", *CODINGS[1:]]


def test_multiplier_blocks_take_twos_complement() -> None:
    assert set(built(layers(), dsp=500)[1]) == {"two's complement"}


def test_a_precision_without_lowest_codes() -> None:
    options = {"precision": "int4nw-int8a"}
    graph = quantize(DIGITS, "random", "minmax", target="fpga", options=options, samples=4, dims={"N": 1}).integer_graph
    assert graph is not None
    found = [layer.weights for layer in network_of(strip_boundary(graph)).layers if layer.weights is not None]
    assert {int(weights.min()) for weights in found} == {-7, -127}
    with pytest.raises(RecipeError):
        parse_formats("int4w-int8na")
