"""The voice example: recordings are seeded and cut as the network hears them, and the verdict is not decoration."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from examples.vad import detect, model, speech


def test_windows_hear_the_end_of_the_last_again() -> None:
    heard = np.arange(4 * speech.WINDOW + 7, dtype=np.float32)
    found = speech.windows(heard)
    assert found.shape == (4, speech.CONTEXT + speech.WINDOW)
    np.testing.assert_array_equal(found[:, speech.CONTEXT :].reshape(-1), heard[: 4 * speech.WINDOW])
    np.testing.assert_array_equal(found[1:, : speech.CONTEXT], found[:-1, -speech.CONTEXT :])
    assert not found[0, : speech.CONTEXT].any()


def test_noise_is_seeded_and_of_deviation_one() -> None:
    first, again = (speech.noise(4000, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.std() == pytest.approx(1, abs=1e-3)


def test_calibration_and_test_share_no_sentence_and_no_voice() -> None:
    for table in (speech.SENTENCES, speech.VOICES):
        assert not set(table["calib"]) & set(table["test"])


def test_without_a_synthesizer_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(speech.MissingError, match="apt install espeak-ng"):
        speech.say("Hello.", "en-us", 160, 50)


def test_recordings_are_seeded_and_loud_enough() -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("no espeak-ng")
    first, again = (speech.recording("test", 1, 2.0) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(first) == 2 * speech.RATE and 0.01 < np.abs(first).max() <= 1
    assert not np.array_equal(first, speech.recording("calib", 1, 2.0))


@pytest.mark.slow
def test_a_detector_decides_as_float_does(tmp_path: Path) -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("no espeak-ng")
    if not (model.CACHE / model.VARIANTS["sequence"].file).is_file():
        pytest.skip("the example's model is not there; `python -m examples.vad.detect` fetches it")
    calibration, heard = speech.recordings("calib", 4, 6.0), speech.recordings("test", 3, 6.0)
    found = detect.run("sequence", model.fetch("sequence"), "cpu", calibration, heard, tmp_path / "vad")
    assert found["verification"]["bit_exact"] and found["verification"]["samples"] == 374
    assert found["agreement"] >= detect.LEAST and 0.2 < found["speech"] < 0.9
    assert str(detect.line(found)[4]).startswith("yes")
