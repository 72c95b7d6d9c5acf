"""Generated sources against MISRA C:2012, as far as cppcheck knows it; deviations are those of docs/misra.md."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qcompiler.driver import quantize
from qcompiler.targets.c.build import build
from tests.conftest import ROOT, Digits
from tests.mcu.conftest import keywords

CHECK = ["cppcheck", "--addon=misra", "--std=c99", "-q", "-I."]


def deviations() -> set[str]:
    """Rules in the table of docs/misra.md."""
    text = (ROOT / "docs" / "misra.md").read_text(encoding="utf-8")
    return set(re.findall(r"(?m)^\| (\d+\.\d+) \|", text))


def broken(folder: Path, files: list[str]) -> set[str]:
    """Rules that cppcheck finds broken."""
    done = subprocess.run([*CHECK, *files], cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if "Bailing out" in done.stderr or "Did not find addon" in done.stderr:
        pytest.skip("cppcheck lacks its addon misra")
    return set(re.findall(r"\[misra-c2012-([\d.]+)\]", done.stderr))


def digits_network(digits: Digits, digits_data: Path) -> tuple[object, object, dict[str, int]]:
    with np.load(digits_data / "calib.npz") as stored:
        return digits.cnn, stored["x"], {"N": 1}


def depthwise_network() -> tuple[object, object, dict[str, int]]:
    return keywords().model, np.random.default_rng(2).standard_normal((8, 1, 49, 10)).astype(np.float32), {}


def residual_network(assets: Path) -> tuple[object, object, dict[str, int]]:
    x = np.random.default_rng(2).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    return assets / "models" / "mlperf_tiny_resnet8.onnx", x, {"N": 1}


@pytest.mark.skipif(shutil.which("cppcheck") is None, reason="no cppcheck")
@pytest.mark.parametrize("network", ["digits", "depthwise", "residual"])
def test_rules_are_kept_but_for_the_named_deviations(
    network: str, digits: Digits, digits_data: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Each with other options, so that every kind of bundle is looked at."""
    options = {"prefix": network}
    if network == "digits":
        model, x, dims = digits_network(digits, digits_data)
    elif network == "depthwise":
        model, x, dims = depthwise_network()
        options |= {"arena": "caller", "weights": "bin"}
    else:
        model, x, dims = residual_network(request.getfixturevalue("assets"))
        options |= {"weights": "bin"}  # cppcheck takes minutes for its arrays
    name = "input" if network == "residual" else "x"
    graph = quantize(model, {name: x}, dims=dims, arithmetic="fixed").integer_graph
    assert graph is not None
    lowered = build(graph, options, lambda stage, done, total: None)
    for path, data in lowered.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    files = [file for file in lowered.manifest["files"] if file.endswith(".c")]
    found = broken(tmp_path / "src", files)
    assert found, "the check sees nothing: restrict alone breaks 8.14"
    assert found - deviations() == set()


@pytest.mark.skipif(shutil.which("cppcheck") is None, reason="no cppcheck")
def test_the_check_finds_a_rule_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "bad.c").write_text("int f(int x) { if (x) goto end; x = 1; end: return x; }\n")
    assert "8.4" in broken(tmp_path, ["bad.c"])
