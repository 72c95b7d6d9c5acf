"""Hypothesis strategies that tests share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from qcompiler.formats import Int

seeds = st.integers(0, 2**32 - 1)
"""Seeds of numpy generators: arrays are drawn from one seed, which shrinks better than drawing elements."""

int32s = st.integers(-(2**31), 2**31 - 1)
"""Accumulators."""

scales = st.floats(2.0**-31, 2.0**8, width=32, exclude_min=True)
"""Scales of requantizations, positive float32."""

formats = st.builds(
    lambda bits, signed, narrow: Int(bits, signed=signed, narrow=narrow and signed),
    st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]),
    st.booleans(),
    st.booleans(),
)
"""Every format of the product."""

byte_formats = st.sampled_from([Int(bits, signed) for bits in range(2, 9) for signed in (True, False)])
"""Formats of at most 8 bits."""


def codes(rng: np.random.Generator, fmt: Int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform codes of a format."""
    return rng.integers(fmt.min, fmt.max, shape, endpoint=True).astype(fmt.storage)
