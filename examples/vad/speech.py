"""Speech with pauses and noise, seeded: what the example calibrates on, and other utterances that it tests.

Words come from Debian's espeak-ng, a formant synthesizer; each utterance has a voice, speed, pitch, level and noise of
its own. The words of calibration and test are different sentences, spoken by different voices.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import wave

import numpy as np
from numpy.typing import NDArray

RATE = 16000
WINDOW, CONTEXT = 512, 64
"""Samples that the network hears anew at a step, and those before them that it hears again."""
SENTENCES = {
    "calib": (
        "The birch canoe slid on the smooth planks.",
        "Glue the sheet to the dark blue background.",
        "It is easy to tell the depth of a well.",
        "These days a chicken leg is a rare dish.",
        "Rice is often served in round bowls.",
        "The juice of lemons makes fine punch.",
        "The box was thrown beside the parked truck.",
        "Four hours of steady work faced us.",
    ),
    "test": (
        "A large size in stockings is hard to sell.",
        "The boy was there when the sun rose.",
        "A rod is used to catch pink salmon.",
        "The source of the huge river is the clear spring.",
        "Kick the ball straight and follow through.",
        "Help the woman get back to her feet.",
        "A pot of tea helps to pass the evening.",
        "Smoky fires lack flame and heat.",
    ),
}
"""Harvard sentences (IEEE recommended practice for speech quality measurements, 1969), lists 1 and 2."""
VOICES = {
    "calib": ("en-us", "en-us+f2", "en-gb+m3", "en-gb+f4"),
    "test": ("en-us+m1", "en-us+f3", "en-gb+m7", "en-gb+f1"),
}


class MissingError(Exception):
    """There is no synthesizer here; the text says what to do."""


def say(text: str, voice: str, speed: int, pitch: int) -> NDArray[np.float32]:
    """One sentence at 16 kHz, peak 1. speed: words a minute; pitch: 0..99. Raises MissingError."""
    from scipy.signal import resample_poly

    program = shutil.which("espeak-ng")
    if program is None:
        raise MissingError("there is no espeak-ng, which speaks the test sentences: apt install espeak-ng")
    command = [program, "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        rate, frames = file.getframerate(), file.readframes(1 << 30)
    samples = np.frombuffer(frames, "<i2").astype(np.float64)
    divisor = int(np.gcd(rate, RATE))
    heard = resample_poly(samples, RATE // divisor, rate // divisor)
    return (heard / np.abs(heard).max()).astype(np.float32)


def noise(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """White to brown noise of deviation 1: the spectrum falls with a power of the frequency between 0 and 2."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum *= np.maximum(np.fft.rfftfreq(count, 1 / RATE), 20.0) ** (-rng.uniform(0.0, 2.0) / 2)
    shaped = np.fft.irfft(spectrum, count)
    return (shaped / shaped.std()).astype(np.float32)


def recording(split: str, number: int, seconds: float) -> NDArray[np.float32]:
    """Sentences of a split with pauses of 0.3 to 2 s, in noise 5 to 40 dB below the speech."""
    rng = np.random.default_rng([len(split), number])
    voices, sentences = VOICES[split], SENTENCES[split]
    wanted = int(seconds * RATE)
    parts: list[NDArray[np.float32]] = []
    spoken: list[NDArray[np.float32]] = []
    voice = voices[number % len(voices)]
    while sum(map(len, parts)) < wanted:
        parts.append(np.zeros(int(rng.uniform(0.3, 2.0) * RATE), np.float32))
        spoken.append(say(str(rng.choice(sentences)), voice, int(rng.integers(120, 220)), int(rng.integers(20, 80))))
        parts.append(spoken[-1])
    clean = np.concatenate(parts)[:wanted]
    level = float(np.concatenate(spoken).std()) * 10 ** (-rng.uniform(5, 40) / 20)
    heard = clean + level * noise(wanted, rng)
    return (heard * (10 ** (-rng.uniform(0, 25) / 20) / np.abs(heard).max())).astype(np.float32)


def windows(heard: NDArray[np.float32]) -> NDArray[np.float32]:
    """[steps, CONTEXT + WINDOW]: what the network takes at every step; silence before the first."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), heard])
    steps = len(heard) // WINDOW
    return np.stack([padded[i * WINDOW : i * WINDOW + CONTEXT + WINDOW] for i in range(steps)])


def recordings(split: str, count: int, seconds: float) -> NDArray[np.float32]:
    """[count, steps, CONTEXT + WINDOW]."""
    return np.stack([windows(recording(split, number, seconds)) for number in range(count)])
