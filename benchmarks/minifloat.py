"""Integers against minifloats on numbers of known distribution: SQNR with the best scale and with that of the largest.

    python -m benchmarks.minifloat [--samples 60000] [--seeds 5] [--json FILE]

60,000 samples of a Gauss, a Laplace and a Student t distribution with 3 degrees of freedom; dB, mean over the seeds.
The best scale has the least squared error over a geometric grid of scales 1.6 % apart; the largest sample depends on
the draw, and so does what its scale gives. Exit code 1 if a figure of `EXPECTED` (Gauss and Laplace, best scale) is
missed by more than 0.2 dB, or exceeded by more than 0.5: the finer search of the scale gains 0.4 dB at int8.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.assets import arguments, write_json
from qcompiler.cli.console import table
from qcompiler.formats import Int, NumberFormat, QuantParams, parse_format
from qcompiler.quantizer import fake_quantize

FORMATS = {
    3: ("int3n", "e2m0"),
    4: ("int4n", "e2m1", "e3m0"),
    5: ("int5n", "e2m2", "e3m1"),
    6: ("int6n", "e2m3", "e3m2"),
    7: ("int7n", "e2m4", "e3m3", "e4m2"),
    8: ("int8n", "e2m5", "e3m4", "e4m3", "float8e4m3fn", "float8e5m2"),
}
DISTRIBUTIONS = ("gauss", "laplace", "student t3")
EXPECTED = {
    "int3n": (13.2, 10.8), "e2m0": (13.2, 11.5), "int4n": (18.8, 15.7), "e2m1": (18.9, 17.3), "e3m0": (14.2, 14.2),
    "int5n": (24.2, 20.4), "e2m2": (24.9, 22.9), "e3m1": (19.7, 19.8), "int6n": (29.5, 25.2), "e2m3": (30.8, 28.5),
    "e3m2": (25.6, 25.7), "int8n": (40.2, 35.3), "e2m5": (42.6, 39.8), "e3m4": (37.6, 37.6), "e4m3": (31.6, 31.6),
}  # fmt: skip
"""Gauss and Laplace with the best scale, from an independent simulation: float32 rounding by frexp."""
BELOW, ABOVE = 0.2, 0.5
SCALES = 400
LEAST = 2.0**-9
"""The smallest scale that is tried, as a share of that of the largest sample."""


def draw(distribution: str, count: int, seed: int) -> NDArray[np.float32]:
    """Samples, float32."""
    rng = np.random.default_rng(seed)
    values = {
        "gauss": lambda: rng.normal(size=count),
        "laplace": lambda: rng.laplace(size=count),
        "student t3": lambda: rng.standard_t(3, size=count),
    }[distribution]()
    return np.asarray(values, np.float32)


def reach(fmt: NumberFormat) -> int:
    """The largest level or code."""
    assert not hasattr(fmt, "one")
    return fmt.max if isinstance(fmt, Int) else fmt.largest  # type: ignore[union-attr]


def sqnr(x: NDArray[np.float32], fmt: NumberFormat, scale: float) -> float:
    """Signal to quantization noise, dB."""
    error = x.astype(np.float64) - fake_quantize(x, QuantParams(fmt, np.float32(scale)))
    return float(10 * np.log10(np.square(x, dtype=np.float64).sum() / np.square(error).sum()))


def measure(token: str, distribution: str, samples: int, seed: int) -> tuple[float, float]:
    """SQNR with the best scale, and with that of the largest sample."""
    x, fmt = draw(distribution, samples, seed), parse_format(token)
    widest = float(np.abs(x).max()) / reach(fmt)
    coarse = [widest * LEAST ** (i / 40) for i in range(41)]
    few = x[:6000]
    around = max(coarse, key=lambda scale: sqnr(few, fmt, scale))
    fine = [around * LEAST ** (i / SCALES) for i in range(-15, 16)]
    return max(sqnr(x, fmt, scale) for scale in (*fine, widest)), sqnr(x, fmt, widest)


def rows(samples: int, seeds: int) -> list[dict[str, Any]]:
    """One a format."""
    found = []
    for bits, tokens in FORMATS.items():
        for token in tokens:
            one: dict[str, Any] = {"bits": bits, "format": token}
            for distribution in DISTRIBUTIONS:
                pairs = [measure(token, distribution, samples, seed) for seed in range(seeds)]
                one[distribution] = [float(np.mean(values)) for values in zip(*pairs, strict=True)]
            found.append(one)
            print(token, *(f"{a:.1f}/{b:.1f}" for a, b in (one[d] for d in DISTRIBUTIONS)), file=sys.stderr, flush=True)
    return found


def misses(found: list[dict[str, Any]]) -> list[str]:
    """Figures that are off, in words."""
    wrong = []
    for one in found:
        for distribution, wanted in zip(DISTRIBUTIONS, EXPECTED.get(one["format"], ()), strict=False):
            got = one[distribution][0]
            if not -BELOW <= got - wanted <= ABOVE:
                wrong.append(f"{one['format']} {distribution}: {got:.2f} dB, expected {wanted}")
    return wrong


def main() -> int:
    """Print the table."""
    given = arguments(__doc__, samples={"type": int, "default": 60_000}, seeds={"type": int, "default": 5})
    found = rows(given.samples, given.seeds)
    write_json(given.json, found)
    lines = [
        [one["bits"], one["format"], *(f"{a:.1f} / {b:.1f}" for a, b in (one[d] for d in DISTRIBUTIONS))]
        for one in found
    ]
    print(f"{given.samples} samples, {given.seeds} seeds, dB with the best scale / with that of the largest")
    print(table(["bits", "format", *DISTRIBUTIONS], lines))
    wrong = misses(found)
    print("\n".join(wrong) if wrong else f"all between {BELOW} dB below and {ABOVE} above the expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
