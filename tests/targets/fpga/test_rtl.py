"""Every module of the library against numpy and the oracle, in each simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.formats import Int, parse_integers
from qcompiler.ops import OPERATORS
from qcompiler.ops.requantize import fixed_multiplier, requantize_fixed
from qcompiler.ops.softmax import exponentials
from qcompiler.targets.fpga.engines import ring_pixels
from qcompiler.targets.fpga.layers import Window
from qcompiler.targets.fpga.testbench import Port
from tests.targets.fpga.bench import SIMULATORS, requantizers, simulate, simulate_mac, words

pytestmark = pytest.mark.parametrize("simulator", SIMULATORS)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("depth", [2, 5, 16])
def test_fifo_keeps_the_order(simulator: str, tmp_path: Path, depth: int) -> None:
    data = rng().integers(0, 1 << 12, 200).tolist()
    given = {"WIDTH": 12, "DEPTH": depth, "BLOCK": int(depth == 16)}
    free, _ = simulate(
        simulator, tmp_path, "qc_fifo", given, [(Port("s", 12, 200), data)], [(Port("m", 12, 200), data)]
    )
    assert free < 200 + 8  # a beat a cycle


@pytest.mark.parametrize("lanes,n", [(1, 2), (2, 3), (3, 4)])
def test_widths_change_and_codes_stay(simulator: str, tmp_path: Path, lanes: int, n: int) -> None:
    codes = rng().integers(0, 32, 24 * lanes * n).tolist()
    narrow, wide = words(codes, 5, lanes), words(codes, 5, lanes * n)
    narrow_port, wide_port = Port("s", 5 * lanes, len(narrow)), Port("m", 5 * lanes * n, len(wide))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    given = {"WIDTH": 5 * lanes, "N": n}
    simulate(simulator, tmp_path / "a", "qc_widen", given, [(narrow_port, narrow)], [(wide_port, wide)])
    narrow_port, wide_port = Port("m", 5 * lanes, len(narrow)), Port("s", 5 * lanes * n, len(wide))
    simulate(simulator, tmp_path / "b", "qc_narrow", given, [(wide_port, wide)], [(narrow_port, narrow)])


@pytest.mark.parametrize(
    "pe,lanes,stages,steps,zero,block",
    [
        (1, 1, 1, 17, 0, 1), (4, 1, 5, 4, 3, 1), (4, 1, 5, 4, 3, 0), (6, 2, 9, 2, -7, 0), (2, 2, 17, 1, 100, 0),
        (3, 1, 6, 3, 5, 0),
    ],
)  # fmt: skip
def test_requantizer_has_the_oracles_bits(
    simulator: str, tmp_path: Path, pe: int, lanes: int, stages: int, steps: int, zero: int, block: int
) -> None:
    channels, pixels = 2 * pe, 40
    fmt = Int(8, signed=zero < 0)
    found = [fixed_multiplier(float(scale)) for scale in rng().uniform(0.0008, 0.006, channels)]
    multiplier, shift = (np.array(column) for column in zip(*found, strict=True))
    multiplier[1], shift[1] = 0, 1
    acc = rng().integers(-(1 << 17), 1 << 17, (pixels, channels))
    acc[0] = (1 << 17) - 1
    acc[1] = -(1 << 17)
    bias = rng().integers(-5000, 5000, channels)
    want = requantize_fixed(acc + bias, multiplier, shift, zero, fmt)
    table, common, bits = requantizers(bias, multiplier, shift, lanes)
    left = max(0, 2 * stages * steps + 1 - common)
    given = {
        "PE": pe, "LANES": lanes, "ACC": 18, "BB": 14, "MB": bits, "STAGES": stages, "STEPS": steps, "GL": left,
        "DROP": common + left - 1 - 2 * stages * steps, "WORDS": len(table), "OB": 8, "ZERO": zero, "LO": fmt.min,
        "HI": fmt.max, "BLOCK": block, "QFILE": "q.hex",
    }  # fmt: skip
    data, answers = words(acc.reshape(-1), 18, pe), words(want.reshape(-1), 8, lanes)
    free, _ = simulate(
        simulator, tmp_path, "qc_requant", given, [(Port("s", 18 * pe, len(data)), data)],
        [(Port("m", 8 * lanes, len(answers)), answers)], {"q.hex": table},
    )  # fmt: skip
    assert free <= (len(answers) + stages + 5) * steps + 12  # `steps` cycles a beat


def window_beats(image: np.ndarray, w: Window, lanes: int, outer: int, groups: int, pad: int, bits: int) -> list[int]:
    """image: [H, W, C]. What qc_window gives for it: data, and above it first and last."""
    parts, found = image.shape[2] // lanes // groups, []
    for y, x in np.ndindex(*w.output):
        for o in range(outer):
            cells = []
            for ky, kx in np.ndindex(*w.kernel):
                iy = y * w.strides[0] - w.before[0] + ky * w.dilations[0]
                ix = x * w.strides[1] - w.before[1] + kx * w.dilations[1]
                within = 0 <= iy < w.input[0] and 0 <= ix < w.input[1]
                pixel = image[iy, ix] if within else np.full(image.shape[2], pad)
                for part in range(parts * (o * groups // outer), parts * (o * groups // outer + 1)):
                    cells += words(pixel[part * lanes : (part + 1) * lanes], bits, lanes)
            cells[0] |= 1 << (lanes * bits)
            cells[-1] |= 2 << (lanes * bits)
            found += cells
    return found


WINDOWS = {
    "conv3x3": (Window((6, 7), (6, 7), (3, 3), before=(1, 1)), 4, 2, 3, 0),
    "stride2": (Window((7, 6), (4, 3), (3, 3), (2, 2), before=(1, 0)), 2, 1, 2, 0),
    "dilated": (Window((9, 8), (5, 4), (3, 3), dilations=(2, 2)), 2, 2, 1, 0),
    "one": (Window((3, 5), (3, 5)), 6, 2, 2, 0),
    "one_stride2": (Window((4, 6), (2, 3), strides=(2, 2)), 2, 1, 2, 0),
    "row": (Window((1, 1), (1, 1)), 12, 3, 4, 0),
    "depthwise": (Window((5, 6), (5, 6), (3, 3), before=(1, 1)), 4, 2, 2, 1),
    "pool": (Window((6, 6), (3, 3), (2, 2), (2, 2)), 3, 1, 3, 1),
    "tall": (Window((8, 4), (4, 2), (4, 2), (2, 2), before=(1, 0)), 1, 1, 2, 0),
    "crop": (Window((6, 7), (3, 4), (3, 3), before=(-1, -1)), 1, 1, 1, 0),
    "grouped": (Window((6, 5), (3, 5), (3, 3), (2, 1), before=(1, 1)), 12, 2, 6, 3),
    "grouped_one": (Window((4, 5), (4, 5)), 6, 1, 4, 2),
    "multiplier": (Window((5, 4), (5, 4), (3, 3), before=(1, 1)), 3, 1, 6, 3),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_those_of_the_image(simulator: str, tmp_path: Path, name: str) -> None:
    w, channels, lanes, outer, groups = WINDOWS[name]
    ostep = int(groups > 0)
    groups = channels // lanes if groups == 1 else max(1, groups)
    images = rng().integers(0, 32, (20, *w.input, channels))  # counters of pixels wrap on the way
    pad = 9
    data = [beat for image in images for beat in words(image.reshape(-1), 5, lanes)]
    want = [beat for image in images for beat in window_beats(image, w, lanes, outer, groups, pad, 5)]
    given = {
        "WIDTH": 5 * lanes, "H": w.input[0], "W": w.input[1], "CF": channels // lanes, "OH": w.output[0],
        "OW": w.output[1], "KH": w.kernel[0], "KW": w.kernel[1], "SH": w.strides[0], "SW": w.strides[1],
        "DH": w.dilations[0], "DW": w.dilations[1], "PT": w.before[0], "PL": w.before[1], "PADDED": int(w.padded),
        "OUTER": outer, "OSTEP": ostep, "GROUPS": groups, "DEPTH": ring_pixels(w), "BLOCK": int(name == "conv3x3"),
        "PAD": words([pad] * lanes, 5, lanes)[0],
    }  # fmt: skip
    out = Port("m", 5 * lanes, len(want), ("m_first", "m_last"))
    simulate(simulator, tmp_path, "qc_window", given, [(Port("s", 5 * lanes, len(data)), data)], [(out, want)])


@pytest.mark.parametrize("wb,ab,signed", [(2, 8, 0), (3, 4, 1), (4, 8, 1), (5, 8, 0), (8, 8, 0), (8, 8, 1), (8, 4, 0)])
@pytest.mark.parametrize("depthwise,dsp", [(0, 0), (0, 1), (1, 0)])
def test_sums_of_products(
    simulator: str, tmp_path: Path, wb: int, ab: int, signed: int, depthwise: int, dsp: int
) -> None:
    pe, simd = 3, 1 if depthwise else 5
    passes, groups, pixels = 4, 2, 12
    low, high = -(signed << (ab - 1)), (1 << (ab - signed)) - 1
    a = rng().integers(low, high + 1, (pixels, groups, passes, pe if depthwise else simd))
    a.reshape(-1)[:8] = [low, high] * 4
    w = rng().integers(-(1 << (wb - 1)), 1 << (wb - 1), (groups, passes, pe, simd))
    w.reshape(-1)[:8] = -(1 << (wb - 1))
    products = a[..., None] * w if depthwise else a[:, :, :, None] * w
    want = products.sum((2, 4)).reshape(-1)
    given = {
        "PE": pe, "SIMD": simd, "WB": wb, "AB": ab, "AS": signed, "ACC": 18, "DEPTHWISE": depthwise, "DSP": dsp,
        "BLOCK": int(wb == 8),
    }  # fmt: skip
    free, beats = simulate_mac(simulator, tmp_path, given, a, w, want)
    assert free < beats + 16  # a beat a cycle


@pytest.mark.parametrize("lanes,signed", [(1, (0, 0)), (3, (1, 0))])
def test_add_has_the_oracles_bits(simulator: str, tmp_path: Path, lanes: int, signed: tuple[int, int]) -> None:
    formats = [Int(8, signed=bool(one)) for one in signed]
    pairs = np.stack(np.meshgrid(*(np.arange(f.min, f.max + 1, 5) for f in formats)), -1).reshape(-1, 2)
    a, b = pairs[: len(pairs) // lanes * lanes].T
    made = {
        "a_zero_point": 3, "b_zero_point": -5 * signed[0], "a_multiplier": 1156221, "b_multiplier": -3751505,
        "shift": 22, "zero_point": 91, "format": "uint8",
    }  # fmt: skip
    want = OPERATORS["qcompiler::Add"].oracle([a, b], made)[0]
    offset = -3 * 1156221 - 5 * signed[0] * 3751505 + (1 << 21) + (91 << 22)
    given = {
        "LANES": lanes, "AB": 8, "AS": signed[0], "BB": 8, "BS": signed[1], "W": 40, "SHIFT": 22, "OB": 8, "LO": 0,
        "HI": 255, "MA": 1156221, "MB": -3751505, "OFFSET": offset,
    }  # fmt: skip
    beats = [words(codes, 8, lanes) for codes in (a, b, want)]
    count, width = len(beats[0]), 8 * lanes
    inputs = [(Port("a", width, count), beats[0]), (Port("b", width, count), beats[1])]
    free, _ = simulate(simulator, tmp_path, "qc_add", given, inputs, [(Port("m", width, count), beats[2])])
    assert free < count + 10


@pytest.mark.parametrize("signed", [0, 1])
def test_the_largest_code_of_a_window(simulator: str, tmp_path: Path, signed: int) -> None:
    low = -(signed << 4)
    codes = rng().integers(low, low + 32, (20, 6, 3))
    marks = np.zeros((20, 6), int)
    marks[:, 0], marks[:, -1] = 1, 2
    data = [
        beat | int(mark) << 15 for beat, mark in zip(words(codes.reshape(-1), 5, 3), marks.reshape(-1), strict=True)
    ]
    want = words(codes.max(1).reshape(-1), 5, 3)
    source = Port("s", 15, len(data), ("s_first", "s_last"))
    given = {"LANES": 3, "B": 5, "SIGNED": signed}
    simulate(simulator, tmp_path, "qc_max", given, [(source, data)], [(Port("m", 15, len(want)), want)])


@pytest.mark.parametrize("signed", [0, 1])
def test_sums_over_images(simulator: str, tmp_path: Path, signed: int) -> None:
    low = -(signed << 7)
    codes = rng().integers(low, low + 256, (3, 9, 6))
    codes[0] = low
    data, want = words(codes.reshape(-1), 8, 2), words(codes.sum(1).reshape(-1), 12, 2)
    given = {"LANES": 2, "AB": 8, "AS": signed, "ACC": 12, "CF": 3, "PIXELS": 9}
    source, sink = (Port("s", 16, len(data)), data), (Port("m", 24, len(want)), want)
    simulate(simulator, tmp_path, "qc_sum", given, [source], [sink])


def test_tables(simulator: str, tmp_path: Path) -> None:
    table = rng().integers(0, 64, 256)
    codes = rng().integers(0, 256, 400)
    given = {"LANES": 2, "IB": 8, "OB": 6, "TFILE": "t.hex"}
    data, want = words(codes, 8, 2), words(table[codes], 6, 2)
    source, sink = (Port("s", 16, len(data)), data), (Port("m", 12, len(want)), want)
    simulate(simulator, tmp_path, "qc_table", given, [source], [sink], {"t.hex": table.tolist()})


def test_concat_takes_channels_in_turn(simulator: str, tmp_path: Path) -> None:
    a, b = rng().integers(0, 32, (15, 4)), rng().integers(0, 32, (15, 6))
    ends = [words(part.reshape(-1), 5, 2) for part in (a, b, np.concatenate([a, b], 1))]
    inputs = [(Port(stem, 10, len(end)), end) for stem, end in zip("ab", ends, strict=False)]
    given = {"WIDTH": 10, "A": 2, "B": 3}
    simulate(simulator, tmp_path, "qc_concat", given, inputs, [(Port("m", 10, len(ends[2])), ends[2])])


SLICES = {
    "halves": (slice(0, 6, 2), slice(0, 7, 2), slice(0, 4)),
    "middle": (slice(1, 5), slice(2, 7, 3), slice(2, 4)),
    "corner": (slice(5, 6), slice(6, 7), slice(0, 2)),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices(simulator: str, tmp_path: Path, name: str) -> None:
    images, part = rng().integers(0, 32, (3, 6, 7, 4)), SLICES[name]
    rows, columns, channels = (range(*one.indices(extent)) for one, extent in zip(part, (6, 7, 4), strict=True))
    given = {
        "WIDTH": 10, "H": 6, "W": 7, "CF": 2, "Y0": rows.start, "SY": rows.step, "YN": len(rows),
        "X0": columns.start, "SX": columns.step, "XN": len(columns), "C0": channels.start // 2,
        "CN": len(channels) // 2,
    }  # fmt: skip
    data, want = words(images.reshape(-1), 5, 2), words(images[:, part[0], part[1], part[2]].reshape(-1), 5, 2)
    source, sink = (Port("s", 10, len(data)), data), (Port("m", 10, len(want)), want)
    simulate(simulator, tmp_path, "qc_slice", given, [source], [sink])


@pytest.mark.parametrize("y,x,c", [((0, 0), (0, 0), (2, 4)), ((2, 1), (0, 3), (0, 0)), ((1, 0), (1, 1), (0, 2))])
def test_pads(simulator: str, tmp_path: Path, y: tuple[int, int], x: tuple[int, int], c: tuple[int, int]) -> None:
    images = rng().integers(0, 32, (3, 4, 5, 4))
    wide = np.pad(images, ((0, 0), y, x, c), constant_values=9)
    given = {
        "WIDTH": 10, "H": 4, "W": 5, "CF": 2, "PT": y[0], "PL": x[0], "CB": c[0] // 2, "OH": wide.shape[1],
        "OW": wide.shape[2], "OC": wide.shape[3] // 2, "PAD": 9 << 5 | 9,
    }  # fmt: skip
    data, want = words(images.reshape(-1), 5, 2), words(wide.reshape(-1), 5, 2)
    source, sink = (Port("s", 10, len(data)), data), (Port("m", 10, len(want)), want)
    free, _ = simulate(simulator, tmp_path, "qc_pad", given, [source], [sink])
    assert free < len(want) + 8


@pytest.mark.parametrize("token,numerator,zero", [("uint8", 256, 0), ("int8", 255, -128)])
def test_softmax_has_the_oracles_bits(
    simulator: str, tmp_path: Path, token: str, numerator: int, zero: int
) -> None:
    fmt, out = parse_integers(token), Int(8, signed=zero < 0)
    table = exponentials(fmt, 0.07)
    codes = rng().integers(fmt.min, fmt.max + 1, (6, 11)).astype(fmt.storage)
    codes[0], codes[1] = fmt.min, 5
    given = {"axis": 1, "x_format": token, "numerator": numerator, "zero_point": zero, "format": out.token}
    want = OPERATORS["qcompiler::Softmax"].oracle([codes, table], given)[0]
    parameters = {
        "C": 11, "AB": 8, "AS": int(fmt.signed), "EB": int(table.max()).bit_length(), "R": numerator, "OB": 8,
        "ZERO": zero, "LO": out.min, "HI": out.max, "TFILE": "e.hex",
    }  # fmt: skip
    data, answers = words(codes.reshape(-1), 8), words(want.reshape(-1), 8)
    simulate(
        simulator, tmp_path, "qc_softmax", parameters, [(Port("s", 8, len(data)), data)],
        [(Port("m", 8, len(answers)), answers)], {"e.hex": table.tolist()},
    )  # fmt: skip
