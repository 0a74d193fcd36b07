"""Image files as the input of a model: the pixels that evaluation would read from a data set with the same images."""

import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image

from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.beton import Beton
from vit.data.decode import CenterCrop, Decoder, resolve_decoder
from vit.data.ffcv_format import RAW
from vit.data.image_file import MAX_MEGAPIXELS, Pixels, decode_image
from vit.data.native import native_library
from vit.data.storage import MemoryStorage

_BYTES_PER_PIXEL = 8  # four channels of 16 bits: a larger file, such as a video, is not read
_MAX_ASPECT = 16  # of an image that Pillow resizes as a whole


def load_image(path: Path, cfg: Config, max_megapixels: int = MAX_MEGAPIXELS) -> Pixels:
    """Reads, resizes and crops an image as evaluation does: (S, S, 3) uint8.

    Raises OSError if the file cannot be read, ValueError if it is not an image or is damaged, MemoryError.
    """
    return center_crop(decode_image(read_file(path, max_megapixels), max_megapixels).pixels, cfg)


def read_file(path: Path, max_megapixels: int = MAX_MEGAPIXELS) -> bytes:
    """The content of a regular file, which may have the bytes of an image of that size.

    Raises OSError, and UserError for other files: reading from a pipe or a device may never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without it, opening a pipe waits for a writer
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            if stat.S_ISDIR(status.st_mode):
                raise UserError("it is a folder; give the images in it (FOLDER/*)")
            raise UserError("it is not a regular file")
        if status.st_size > 1e6 * max_megapixels * _BYTES_PER_PIXEL:
            raise UserError(f"it has {status.st_size:,} bytes, more than an image of {max_megapixels} megapixels")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def center_crop(pixels: Pixels, cfg: Config) -> Pixels:
    """Resizes and crops an image as evaluation does: (H, W, 3) -> (S, S, 3)."""
    size, zero = cfg.model.image_size, np.zeros(1, np.int64)
    crop = CenterCrop(cfg.data.val_crop)
    if cfg.data.decoder != "ffcv" and native_library() is None:
        return _center_crop_by_pillow(pixels, crop, size, cfg.data.interpolation)
    backend = resolve_decoder(cfg.data.decoder, cfg.data.interpolation)
    out = np.empty((1, size, size, 3), np.uint8)
    Decoder(_data_set_of(pixels), crop, backend, interpolation=cfg.data.interpolation).decode(zero, zero, out)
    return out[0]


def _data_set_of(pixels: Pixels) -> Beton:
    """A data set in memory that holds one image, stored raw."""
    height, width, _ = pixels.shape
    return Beton(
        path=Path(),
        classes=[],
        names=None,
        sha256="",
        page_size=1,
        pages=[],
        bytes=pixels.nbytes,
        storage=MemoryStorage(np.ascontiguousarray(pixels).reshape(-1)),
        labels=np.zeros(1, np.int64),
        mode=np.full(1, RAW, np.uint8),
        height=np.full(1, height),
        width=np.full(1, width),
        offset=np.zeros(1, np.int64),
        size=np.full(1, pixels.nbytes),
    )


def _center_crop_by_pillow(pixels: Pixels, crop: CenterCrop, size: int, interpolation: str) -> Pixels:
    """The same pixels where the C++ decoder was not built; those of very thin images differ by a few levels at most."""
    image, one = Image.fromarray(pixels), np.ones(1, np.int64)
    windows = crop.windows(one, one, image.height * one, image.width * one, size)
    height, width, top, left = (int(n[0]) for n in windows[4:])
    kind = Image.Resampling[interpolation.upper()]
    if max(height, width) <= _MAX_ASPECT * min(height, width):
        return np.asarray(image.resize((width, height), kind).crop((left, top, left + size, top + size)))
    # The whole image would have gigabytes after resizing.
    down, across = image.height / height, image.width / width
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return np.asarray(image.resize((size, size), kind, box))
