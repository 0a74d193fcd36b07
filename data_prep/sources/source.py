"""The interface of image sources.  A source lists all of its samples at once; worker processes read them later.

A new kind of source is a function that returns a `Source`; a new kind of sample is one more case in `read_image_file`.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.ignored import Ignored
from data_prep.sources.parquet_rows import Row, read_row

Pixels = NDArray[np.uint8]  # (height, width) gray or (height, width, 3) RGB


class InputError(ValueError):
    """Bad input that the user can fix.  The message names the file, class or sample, the reason, and what to do."""


class Slice(NamedTuple):
    """An image file stored inside a larger file."""

    path: str  # of the larger file
    offset: int  # bytes
    size: int  # bytes
    name: str  # of the image, for messages


@dataclass(frozen=True, eq=False)
class Source:
    """Labeled images, in the order in which the source lists them."""

    classes: tuple[str, ...]  # class identifiers; a label is an index into them
    images: Sequence[str | Slice | Row | Pixels]  # path of a file, location in a larger file, or pixels
    labels: NDArray[np.int64]  # (samples,)
    names: tuple[str, ...] = ()  # human-readable class names; empty: the identifiers are used
    ignored: Ignored = field(default_factory=Ignored)  # files and folders that were left out at listing

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise InputError(f"the source has {len(self.images)} images but {len(self.labels)} labels")

    def describe(self, index: int) -> str:
        """The name of a sample in messages: its path, or its number."""
        image = self.images[index]
        if isinstance(image, Slice | Row):
            return f"{image.path}: {image.name}"
        return image if isinstance(image, str) else f"sample {index}"

    def random_subset(self, classes: int | None, per_class: int | None, seed: int) -> "Source":
        """A random subset: `classes` classes and `per_class` images of each; None keeps all.  The order is kept.

        The choice of classes depends on `seed` alone, so the training and the validation set get the same ones.
        Raises InputError if there are too few classes or images.
        """
        if classes is None and per_class is None:
            return self
        if classes is not None and classes > len(self.classes):
            raise InputError(f"--subset {classes}: the source has only {len(self.classes)} classes; ask for fewer")
        permutation = np.random.default_rng([seed, 1]).permutation(len(self.classes))
        chosen_classes = np.sort(permutation[:classes])
        samples_by_class = []
        for label in chosen_classes.tolist():
            samples = np.flatnonzero(self.labels == label)
            if per_class is not None and per_class > len(samples):
                why = f"class {self.classes[label]} has only {len(samples)} images"
                raise InputError(f"--per-class {per_class}: {why}; ask for fewer")
            order = np.random.default_rng([seed, 2, label]).permutation(len(samples))
            samples_by_class.append(samples[np.sort(order[:per_class])])
        chosen = np.sort(np.concatenate(samples_by_class))
        return Source(
            tuple(self.classes[label] for label in chosen_classes),
            [self.images[sample] for sample in chosen.tolist()],
            np.searchsorted(chosen_classes, self.labels[chosen]),
            tuple(self.names[label] for label in chosen_classes) if self.names else (),
            self.ignored,
        )


def read_image_file(image: str | Slice | Row) -> bytes:
    """The bytes of an image file.  Raises InputError if it is empty, truncated or a pipe, OSError of a disk.

    For a row of a parquet file it raises any exception of pyarrow too.
    """
    # These messages are recorded in manifests as the reason why an image was left out.
    if isinstance(image, str):
        with open(image, "rb", opener=open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError("it is not a regular file")
            content = file.read()
    elif isinstance(image, Row):
        content = read_row(image)
    else:
        content = os.pread(_open_cached(image.path), image.size, image.offset)
        if len(content) < image.size:
            raise InputError("the tar file ends in it")
    if not content:
        raise InputError("the file is empty")
    return content


def open_at_once(path: str | Path, flags: int) -> int:
    """Opens a file without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


@cache
def _open_cached(path: str) -> int:
    """A file descriptor that stays open: each worker reads one or two files hundreds of thousands of times."""
    return os.open(path, os.O_RDONLY)


def to_rgb(pixels: Pixels) -> Pixels:
    """Gray or RGB to RGB: (height, width) or (height, width, 3) -> (height, width, 3)."""
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels
