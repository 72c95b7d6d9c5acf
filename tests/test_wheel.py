"""The wheel: all rooms inside, and it compiles a network where the checkout is not on the path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_data_files_ship_with_the_code(installed: Path) -> None:
    for name in ("recipes/default.toml", "runtime/c/qc_runtime.c", "runtime/loader.py", "targets/c/templates/qc_dot.h"):
        assert (installed / "qcompiler" / name).is_file(), name


def test_the_wheel_compiles_a_network(installed: Path, tmp_path: Path) -> None:
    model = ROOT / "examples" / "digits" / "cnn.onnx"
    environment = {**os.environ, "PYTHONPATH": str(installed), "QCOMPILER_CACHE": "off"}
    command = [sys.executable, "-m", "qcompiler", str(model), "--calib", "random", "--samples", "4", "--dim", "N=1"]
    done = subprocess.run(
        [*command, "-o", "out", "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verification"]["bit_exact"] is True
