"""Text lines as a scanner would cut them out: rendered with Pillow's own scalable font.

The font comes with Pillow, so the lines are the same on every machine with that Pillow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

HEIGHT = 48
WORDS = [
    "invoice", "receipt", "delivery", "order", "customer", "number", "date", "total", "amount", "due", "paid",
    "bank", "transfer", "account", "street", "avenue", "Paris", "Berlin", "London", "Tokyo", "Lisbon", "phone",
    "office", "monday", "friday", "january", "august", "morning", "evening", "station", "platform", "ticket",
    "seat", "window", "return", "single", "adult", "child", "bread", "coffee", "water", "paper", "garden", "music",
    "school", "doctor", "winter", "summer", "north", "south", "bridge", "river", "market", "price", "list", "page",
    "chapter", "section", "figure", "table", "note", "warning", "open", "closed", "please", "keep", "right", "left",
    "upper", "lower", "handle", "with", "care", "this", "side", "fragile", "made", "in", "best", "before", "net",
    "weight", "batch", "serial",
]  # fmt: skip


def render(rng: np.random.Generator) -> tuple[str, Image.Image]:
    """A text and its picture: one to four words or figures, dark on light, of some size, colour and noise."""
    count = int(rng.integers(1, 5))
    text = " ".join(str(rng.choice(WORDS) if rng.random() < 0.8 else rng.integers(10, 100_000)) for _ in range(count))
    style = rng.random()
    text = text.upper() if style < 0.25 else text.title() if style < 0.5 else text
    font = ImageFont.load_default(int(rng.integers(20, 45)))
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    margin = int(rng.integers(3, 9))
    paper, ink = (tuple(int(c) for c in rng.integers(low, high, 3)) for low, high in ((150, 256), (0, 100)))
    image = Image.new("RGB", (right - left + 2 * margin, bottom - top + 2 * margin), paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=font, fill=ink)
    pixels = np.asarray(image, np.float32)
    pixels = pixels + rng.normal(0, rng.uniform(0, 12), pixels.shape)
    return text, Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def preprocess(image: Image.Image, width: int) -> NDArray[np.float32]:
    """What both models take: float32 [3, 48, width], BGR in -1..1, as high as that, 0 at the right."""
    shown = min(width, max(1, -(-HEIGHT * image.width // image.height)))
    pixels = np.asarray(image.resize((shown, HEIGHT), Image.Resampling.BILINEAR), np.float32)
    padded = np.zeros((3, HEIGHT, width), np.float32)
    padded[:, :, :shown] = (pixels[:, :, ::-1].transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return padded


def dataset(count: int, seed: int, width: int) -> tuple[NDArray[np.float32], list[str]]:
    """`count` lines, float32 [count, 3, 48, width], and what they say."""
    rng = np.random.default_rng(seed)
    lines = [render(rng) for _ in range(count)]
    return np.stack([preprocess(image, width) for _, image in lines]), [text for text, _ in lines]


def turned(count: int, seed: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`count` lines, float32 [count, 3, 48, width], and labels, int64 [count]: every other line is upside down, 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 2
    images = [render(rng)[1] for _ in range(count)]
    turned = [image.rotate(180) if label else image for image, label in zip(images, labels, strict=True)]
    return np.stack([preprocess(image, width) for image in turned]), labels
