"""Where images come from.  A source lists its samples at once; they are decoded later, in the workers of the writer.

A new kind of source is a function that returns a `Source`; a new kind of sample is one more case of `read`.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]  # (height, width) gray or (height, width, 3) RGB


class InputError(ValueError):
    """What a user can mend: the message names the file, class or sample and says what to do."""


class Slice(NamedTuple):
    """An image file inside of a larger one."""

    path: str  # of the larger one
    offset: int  # bytes
    size: int  # bytes
    name: str  # of the image, for people


@dataclass(frozen=True, eq=False)
class Source:
    """Images with labels, in the source's own order."""

    classes: tuple[str, ...]  # their identifiers; a label is an index into them
    images: Sequence[str | Slice | Pixels]  # a file's path, where it lies in another, or the pixels themselves
    labels: NDArray[np.int64]  # (samples,)
    names: tuple[str, ...] = ()  # of the classes, for people; empty: the identifiers are

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise InputError(f"{len(self.images)} images have {len(self.labels)} labels")

    def describe(self, index: int) -> str:
        """How to name a sample to a person."""
        image = self.images[index]
        if isinstance(image, Slice):
            return f"{image.path}: {image.name}"
        return image if isinstance(image, str) else f"sample {index}"

    def fingerprint(self) -> str:
        """A digest of what is listed, and of each tar's size and time of change; the images themselves are not read.

        Images in files of their own may be replaced: their sizes and times would be a million questions to a server.
        Raises OSError if a tar is gone.
        """
        digest = hashlib.sha256(json.dumps([self.classes, self.names]).encode())
        digest.update(self.labels.tobytes())
        tars: dict[str, tuple[int, int]] = {}
        for image in self.images:
            if isinstance(image, Slice) and image.path not in tars:
                found = os.stat(image.path)
                tars[image.path] = found.st_size, found.st_mtime_ns
            digest.update(image.tobytes() if isinstance(image, np.ndarray) else repr(image).encode())
        digest.update(repr(tars).encode())
        return digest.hexdigest()

    def drawn(self, classes: int | None, per_class: int | None, seed: int) -> "Source":
        """Only so many of the classes, and so many images of each, drawn by `seed`; None: all.  The order is kept.

        The classes do not depend on the images: training and validation set get the same ones.
        Raises InputError if there are not so many.
        """
        if classes is None and per_class is None:
            return self
        if classes is not None and classes > len(self.classes):
            raise InputError(f"--subset {classes}: there are only {len(self.classes)} classes")
        permutation = np.random.default_rng([seed, 1]).permutation(len(self.classes))
        kept = np.sort(permutation[:classes])
        samples = []
        for label in kept.tolist():
            of_class = np.flatnonzero(self.labels == label)
            if per_class is not None and per_class > len(of_class):
                raise InputError(f"--per-class {per_class}: {self.classes[label]} has only {len(of_class)} images")
            order = np.random.default_rng([seed, 2, label]).permutation(len(of_class))
            samples.append(of_class[np.sort(order[:per_class])])
        chosen = np.sort(np.concatenate(samples))
        return Source(
            tuple(self.classes[label] for label in kept),
            [self.images[sample] for sample in chosen.tolist()],
            np.searchsorted(kept, self.labels[chosen]),
            tuple(self.names[label] for label in kept) if self.names else (),
        )


def read(image: str | Slice) -> bytes:
    """An image file's bytes.  Raises InputError if it is empty or cut short, OSError if it cannot be read."""
    if isinstance(image, str):
        content = Path(image).read_bytes()
    else:
        content = os.pread(_descriptor(image.path), image.size, image.offset)
        if len(content) < image.size:
            raise InputError("the tar file ends in it")
    if not content:
        raise InputError("the file is empty")
    return content


@cache
def _descriptor(path: str) -> int:
    """Kept open: each worker reads from one or two files, hundreds of thousands of times."""
    return os.open(path, os.O_RDONLY)


def decode(content: bytes) -> Pixels:
    """An image file's pixels, upright and in RGB: uint8 (height, width, 3).

    Raises InputError, or whatever Pillow raises, if it is no image or damaged.
    """
    try:
        with Image.open(BytesIO(content)) as opened:
            ImageOps.exif_transpose(opened, in_place=True)  # else it copies what is upright
            deep = opened.mode.startswith("I;16") or opened.mode in ("I", "F")
            pixels = np.array(opened if deep or opened.mode == "RGB" else opened.convert("RGB"))
            mode = opened.mode
    except UnidentifiedImageError:
        raise InputError("not an image that Pillow can read") from None
    if mode.startswith("I;16"):  # Pillow's convert would clip at 255: almost everything would be white
        return rgb((pixels >> 8).astype(np.uint8))
    if deep:
        raise InputError(f"pixels of Pillow's mode {mode} have no agreed white; save it with 8 or 16 bits")
    return pixels


def rgb(pixels: Pixels) -> Pixels:
    """Gray or RGB -> RGB: (height, width) or (height, width, 3) -> (height, width, 3)."""
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels
