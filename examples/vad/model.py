"""Silero's voice activity detectors, from the PyPI wheel that ships them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples import wheel

REQUIREMENT = "silero-vad==6.2.3"
FOLDER = "silero_vad/data"
CACHE = Path(__file__).resolve().parents[2] / "build" / "vad"


@dataclass(frozen=True)
class Variant:
    """One file of the wheel, and how it is compiled for steps of one window at 16 kHz."""

    file: str
    sha256: str
    state: Mapping[str, str]
    """Outputs -> inputs of the next step."""
    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Keywords of `qcompiler.quantize` and `compile`."""
        return {"state": self.state, "dims": self.dims, "shapes": self.shapes, "constants": self.constants}


_ONE = {"batch": 1, "sequence": 576}
_STATE = {"stateN": "state"}
_RATE = {"sr": 16000.0}
VARIANTS: Mapping[str, Variant] = {
    "op15": Variant(
        "silero_vad_16k_op15.onnx", "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49", _STATE, _ONE,
        constants=_RATE,
    ),
    "sequence": Variant(
        "silero_vad_16k_sequence.onnx", "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        {"hn": "h", "cn": "c"}, {"sequence_length": 1},
    ),
    "openvino": Variant(
        "silero_vad_openvino_16k.onnx", "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87", _STATE
    ),
    "ifless": Variant(
        "silero_vad_op18_ifless.onnx", "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28", _STATE,
        _ONE, constants=_RATE,
    ),
    "half": Variant(
        "silero_vad_half.onnx", "1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769", _STATE, _ONE
    ),
    "full": Variant(
        "silero_vad.onnx", "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3", _STATE,
        shapes={"input": (1, 576), "state": (2, 1, 128)}, constants=_RATE,
    ),
}  # fmt: skip
"""All files of the wheel that take 16 kHz. `full` and `ifless` hold 8 kHz too; the rate is fixed when they compile."""


def fetch(name: str, folder: Path = CACHE) -> Path:
    """Path of a variant's model, downloaded with pip when it is not there. Raises DownloadError."""
    variant = VARIANTS[name]
    return wheel.fetch(REQUIREMENT, f"{FOLDER}/{variant.file}", variant.sha256, folder / variant.file)
