"""Synthetic images for tests, and how to encode, save and compare them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Random pixels (height, width, 3), which no codec compresses."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> Pixels:
    """Random smooth gradients (height, width, 3), which JPEG preserves well."""
    small = Image.fromarray(noise(4, 4, seed))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encode_image(pixels: NDArray[Any], kind: str = "JPEG", mode: str | None = None, **options: Any) -> bytes:
    """An image file, encoded by Pillow."""
    file = io.BytesIO()
    options = {"quality": 92} | options if kind == "JPEG" else options
    Image.fromarray(pixels, mode).save(file, kind, **options)
    return file.getvalue()


def save_image(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    """Saves an image in the format of its suffix, and creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def save_bytes(path: Path, content: bytes) -> Path:
    """Writes a file, and creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def image_folder(path: Path, images: int = 3) -> Path:
    """A folder with the classes "cat" and "dog", each with `images` images of different sizes."""
    for seed in range(2 * images):
        save_image(path / ("cat", "dog")[seed % 2] / f"{seed}.png", smooth(20 + seed % 30, 50 - seed % 30, seed))
    return path
