"""What decides the bytes of a .beton, beside the images themselves; every draw is a function of (seed, sample)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MODES = ("jpg", "raw", "proportion")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides the bytes of the file, beside the images themselves.  Raises ValueError for what makes no sense."""

    source: str  # where the images come from
    mode: str = "jpg"  # how the pixels are stored: "jpg", "raw", or "proportion": some so, some so
    max_resolution: int = 500  # pixels; longer sides are scaled down to it, averaging areas as FFCV does
    quality: int = 90  # of the JPEGs, 1 to 100
    reencode: bool = False  # encode JPEGs again that could be copied as they are
    compress_probability: float = 0.5  # of an image to become a JPEG in mode "proportion"
    seed: int = 0  # of all that is drawn
    shuffle: bool = True  # the order of the samples; else it is the source's
    limit: int | None = None  # only so many samples, the first in that order; None: all
    subset: int | None = None  # only so many classes, drawn; None: all
    per_class: int | None = None  # only so many images of each class, drawn; None: all
    on_bad: str = "fail"  # an image that cannot be used ends the command, or "skip": is left out

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be {', '.join(MODES[:-1])} or {MODES[-1]}, not {self.mode}")
        if not 1 <= self.max_resolution <= 4096:
            raise ValueError(f"max-resolution must be 1 to 4096 pixels, not {self.max_resolution}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, not {self.quality}")
        if not 0 <= self.compress_probability <= 1:
            raise ValueError(f"compress-probability must be 0 to 1, not {self.compress_probability}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")
        for name, unit in (("limit", "sample"), ("subset", "class"), ("per_class", "image")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name.replace('_', '-')} must be at least 1 {unit}, not {value}")
        if self.on_bad not in ("fail", "skip"):
            raise ValueError(f"on-bad must be fail or skip, not {self.on_bad}")

    @property
    def largest_image(self) -> int:
        """Bytes of the largest image's pixels."""
        return 3 * self.max_resolution**2

    def recorded(self) -> dict[str, object]:
        """What the manifest says of it, by the manifest's names."""
        drawn = [f"{self.subset} classes"] if self.subset else []
        drawn += [f"{self.per_class} images a class"] if self.per_class else []
        source = self.source + (f", {' and '.join(drawn)} drawn by seed {self.seed}" if drawn else "")
        jpegs = self.mode != "raw"
        return {
            "source": source if self.limit is None else f"{source}, {self.limit} samples",
            "mode": self.mode,
            "max_resolution": self.max_resolution,
            "quality": self.quality if jpegs else None,
            "reencode": self.reencode if jpegs else None,
            "compress_probability": self.compress_probability if self.mode == "proportion" else None,
            "compress_seed": self.seed if self.mode == "proportion" else None,
            "seed": self.seed if self.shuffle else None,
        }

    def order(self, samples: int) -> NDArray[np.int64]:
        """The samples to write, in the order of writing: (at most `samples`,)."""
        order = np.random.default_rng(self.seed).permutation(samples) if self.shuffle else np.arange(samples)
        return order[: self.limit]

    def stored_as(self, sample: int) -> str:
        """How the source's sample of this number is stored: "jpg" or "raw"."""
        if self.mode != "proportion":
            return self.mode
        drawn = np.random.default_rng([self.seed, 3, sample]).random()
        return "jpg" if drawn < self.compress_probability else "raw"
