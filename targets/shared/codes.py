"""The boundary of bundles that speak codes, by its definition, in numpy: for what runs them on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import QuantParams, parse_format
from qcompiler.quantizer import dequantize, quantize


def codes_of(inputs: Mapping[str, NDArray], spec: Mapping[str, Any]) -> NDArray:
    """Codes of an input; spec: its entry in the manifest. Indices pass as they are."""
    given = np.asarray(inputs[spec["name"]])
    return quantize(given.astype(np.float32), _params(spec)) if "format" in spec else given


def real_of(codes: NDArray, spec: Mapping[str, Any]) -> NDArray:
    """float32 of an output's codes; what has no format passes as it is."""
    return dequantize(codes, _params(spec)) if "format" in spec else codes


def storage_of(spec: Mapping[str, Any]) -> str:
    """Numpy type that holds the codes."""
    return str(parse_format(spec["format"]).storage) if "format" in spec else str(spec["dtype"])


def _params(spec: Mapping[str, Any]) -> QuantParams:
    return QuantParams(parse_format(spec["format"]), np.float32(spec["scale"]), np.int64(spec["zero_point"]))
