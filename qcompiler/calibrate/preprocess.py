"""Preprocessing of images, as keys that a recipe or the command line gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import CalibrationError, RecipeError


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a stored image [H, W, C] becomes the model's input.

    Order: resize, crop, scale, mean, std, channel order, layout.
    """

    resize: int | tuple[int, int] | None = None
    """Short side in pixels (keeps the aspect ratio), or (height, width). Bilinear."""
    crop: int | tuple[int, int] | None = None
    """Size of the centre crop."""
    scale: float = 1.0
    """Factor on the stored values, e.g. 0.00392156862745098 for 0..255 -> 0..1."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "NCHW"
    """NCHW, NHWC or none (leave the axes as stored)."""
    colour: str = "RGB"
    """Channel order of the model: RGB or BGR."""

    def __post_init__(self) -> None:
        for name, allowed in (("layout", ("NCHW", "NHWC", "none")), ("colour", ("RGB", "BGR"))):
            if getattr(self, name) not in allowed:
                raise RecipeError(
                    f"`{getattr(self, name)}` is not one of {', '.join(allowed)}.", where=f"preprocess.{name}"
                )
        for name in ("resize", "crop", "mean", "std"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Preprocess:
        """From a table of keys. Raises RecipeError for a key that does not exist."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(table) - set(known))
        if unknown:
            raise RecipeError(
                f"preprocessing has no key `{unknown[0]}`.", where="preprocess", hint=f"Keys are {', '.join(known)}."
            )
        return cls(**table)

    def describe(self) -> dict[str, Any]:
        """JSON-able form, part of the cache key and the report."""
        return asdict(self)

    def __call__(self, image: NDArray) -> NDArray[np.float32]:
        """One image [H, W, C] or [H, W] -> float32 [C, H, W] or [H, W, C]."""
        image = np.asarray(image)
        if image.ndim == 2:
            image = image[..., None]
        if self.resize is not None:
            image = _resize(image, self.resize)
        if self.crop is not None:
            image = _crop(image, self.crop)
        x: NDArray = image.astype(np.float32)
        if self.scale != 1.0:
            x = x * np.float32(self.scale)
        if self.mean:
            x = x - np.asarray(self.mean, np.float32)
        if self.std:
            x = x / np.asarray(self.std, np.float32)
        if self.colour == "BGR":
            x = x[..., ::-1]
        if self.layout == "NCHW":
            x = x.transpose(2, 0, 1)
        return np.ascontiguousarray(x)


def pillow() -> Any:
    """The module PIL.Image. Raises CalibrationError naming the extra when Pillow is missing."""
    try:
        from PIL import Image
    except ImportError as error:
        raise CalibrationError(
            "reading or resizing images needs Pillow, which is not installed.",
            hint="Install the extra: pip install 'qcompiler[images]'.",
        ) from error
    return Image


def _resize(image: NDArray, size: int | tuple[int, int]) -> NDArray:
    height, width = image.shape[:2]
    if isinstance(size, int):
        ratio = size / min(height, width)
        size = (max(size, round(height * ratio)), max(size, round(width * ratio)))
    if tuple(size) == (height, width):
        return image
    if image.dtype != np.uint8:
        raise CalibrationError(f"only uint8 images can be resized, these are {image.dtype}.", where="preprocess.resize")
    module = pillow()
    flat = image[..., 0] if image.shape[2] == 1 else image
    resized = np.asarray(module.fromarray(flat).resize((size[1], size[0]), module.Resampling.BILINEAR))
    return resized[..., None] if resized.ndim == 2 else resized


def _crop(image: NDArray, size: int | tuple[int, int]) -> NDArray:
    rows, columns = (size, size) if isinstance(size, int) else size
    height, width = image.shape[:2]
    if rows > height or columns > width:
        raise CalibrationError(f"cannot crop {rows}x{columns} out of {height}x{width}.", where="preprocess.crop")
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[top : top + rows, left : left + columns]
