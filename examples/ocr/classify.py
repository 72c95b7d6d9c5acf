"""The main job in a few seconds: PP-OCR's text-line orientation classifier, compiled for this CPU.

    python -m examples.ocr.classify [--json] [--output DIR]

Renders 128 text lines to calibrate on and 400 others to measure on, compiles at 8 bits with the Python API, and
prints what was lost and what was won. The first run downloads the model from PyPI (15 MB).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")

WIDTH = 192
CALIBRATION, TEST = 128, 400
CALIBRATION_SEED, TEST_SEED = 1, 2
VERIFIED = 100


def run(output: Path, model: Path, *, seconds: float = 1.0, options: Any = None) -> dict[str, Any]:
    """Compile, measure, and return the figures as a JSON-able document. Raises QCompilerError."""
    from examples.ocr.lines import turned
    from examples.ocr.measure import study
    from qcompiler.evaluate import metric, sqnr

    def data() -> tuple[np.ndarray, np.ndarray]:
        return turned(CALIBRATION, CALIBRATION_SEED, WIDTH)[0], turned(TEST, TEST_SEED, WIDTH)[0]

    found = study(output, model, data, verified=VERIFIED, seconds=seconds, options=options)
    want, got = found.pop("float"), found.pop("quantized")
    labels = np.arange(TEST) % 2
    accuracy = {
        "samples": TEST,
        "float": metric("top1", want, labels),
        "quantized": metric("top1", got, labels),
        "agreement": float((want.argmax(1) == got.argmax(1)).mean()),
        "sqnr_db": round(sqnr(want, got), 2),
    }
    return {"model": "PP-OCR mobile v2.0 cls", "accuracy": accuracy, **found}


def summary(found: dict[str, Any]) -> str:
    """The document as a few aligned lines."""
    from examples.ocr import measure

    accuracy = found["accuracy"]
    loss = 100 * (accuracy["float"] - accuracy["quantized"])
    change = f"{abs(loss):.2f} points {'lost' if loss > 0 else 'won'}" if loss else "nothing lost"
    share = f"float {accuracy['float']:.2%} -> int8 {accuracy['quantized']:.2%}"
    text = f"{share} ({change}) on {accuracy['samples']} lines"
    return measure.summary(f"{found['model']}: is a text line upside down?", text, found)


def main() -> int:
    """Run the example."""
    from examples.ocr.measure import command

    return command("cls", __doc__ or "", run, summary)


if __name__ == "__main__":
    sys.exit(main())
