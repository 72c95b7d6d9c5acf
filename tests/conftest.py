"""Fixtures for all tests, and a summary line that says what was skipped and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repository",
    deadline=None,
    derandomize=True,
    max_examples=20,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repository")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of trained models, data and real graphs (`models/`, `data/`, `graphs/`); skips where there is none."""
    given = os.environ.get("QCOMPILER_ASSETS")
    folder = Path(given) if given else ROOT.parent / "shared" / "assets"
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no test assets in {folder if given else '../shared/assets'}; set QCOMPILER_ASSETS")
    return folder


class Digits:
    """The committed digits networks and their data: `cnn` and `vit` are paths, `data` the arrays by name."""

    def __init__(self, folder: Path) -> None:
        self.cnn, self.vit = folder / "cnn.onnx", folder / "vit.onnx"
        with np.load(folder / "digits.npz") as arrays:
            self.data: Mapping[str, Any] = dict(arrays)


@pytest.fixture(scope="session")
def digits() -> Digits:
    """Networks and data of examples/digits (committed: never skips)."""
    return Digits(ROOT / "examples" / "digits")


@pytest.fixture(scope="session")
def digits_data(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with calib.npz (x: 64 samples) and test.npz (x and labels y: 60 samples) for the digits networks."""
    folder = tmp_path_factory.mktemp("digits")
    np.savez(folder / "calib.npz", x=digits.data["x_calib"][:64])
    np.savez(folder / "test.npz", x=digits.data["x_test"][:60], y=digits.data["y_test"][:60])
    return folder


@pytest.fixture(scope="session")
def digits_bundle(digits: Digits, digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits CNN compiled with defaults for this machine. Copy it before changing anything."""
    from qcompiler.driver import compile

    path = tmp_path_factory.mktemp("bundles") / "digits.cpu"
    return compile(digits.cnn, "cpu", digits_data / "calib.npz", output=path, dims={"N": 1}).path


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Count the skipped tests by reason."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[text.removeprefix("Skipped: ")] += 1
    terminalreporter.section("skipped tests")
    terminalreporter.write_line(f"{sum(reasons.values())} skipped")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"  {count} x {reason}")
