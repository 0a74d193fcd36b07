"""The settings that determine the bytes of a .beton.  Every random choice is a function of (seed, sample)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit.data.image_file import MAX_MEGAPIXELS

MODES = ("jpg", "raw", "proportion")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that determine the bytes of a file, apart from the images.  Raises ValueError for a bad value."""

    source: str  # where the images come from
    mode: str = "jpg"  # how pixels are stored: "jpg", "raw", or "proportion": a random mix of both
    max_resolution: int = 500  # pixels; longer sides are scaled down to it with area averaging, as FFCV does
    quality: int = 90  # of encoded JPEGs, 1 to 100
    reencode: bool = False  # also encode JPEGs that could be copied unchanged
    compress_probability: float = 0.5  # that an image is stored as a JPEG in mode "proportion"
    seed: int = 0  # of all random choices
    shuffle: bool = True  # write the samples in random order; False: in the order of the source
    limit: int | None = None  # write only the first samples of that order; None: all
    subset: int | None = None  # number of randomly chosen classes; None: all
    per_class: int | None = None  # number of randomly chosen images of each class; None: all
    max_megapixels: int = MAX_MEGAPIXELS  # larger source images are bad
    on_bad: str = "fail"  # what to do with an image that cannot be used: "fail", or "skip" to leave it out

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
        if not 1 <= self.max_megapixels <= 100_000:
            raise ValueError(f"max-megapixels must be 1 to 100000, not {self.max_megapixels}")
        for name, unit in (("limit", "sample"), ("subset", "class"), ("per_class", "image")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name.replace('_', '-')} must be at least 1 {unit}, not {value}")
        if self.on_bad not in ("fail", "skip"):
            raise ValueError(f"on-bad must be fail or skip, not {self.on_bad}")

    @property
    def max_image_bytes(self) -> int:
        """Bytes of the pixels of the largest image."""
        return 3 * self.max_resolution**2

    def manifest_entries(self) -> dict[str, object]:
        """The settings that the manifest records, by the manifest's names."""
        subset = [f"{self.subset} classes"] if self.subset else []
        subset += [f"{self.per_class} images a class"] if self.per_class else []
        source = self.source + (f", {' and '.join(subset)} drawn by seed {self.seed}" if subset else "")
        has_jpegs = self.mode != "raw"
        return {
            "source": source if self.limit is None else f"{source}, {self.limit} samples",
            "mode": self.mode,
            "max_resolution": self.max_resolution,
            "quality": self.quality if has_jpegs else None,
            "reencode": self.reencode if has_jpegs else None,
            "compress_probability": self.compress_probability if self.mode == "proportion" else None,
            "compress_seed": self.seed if self.mode == "proportion" else None,
            "seed": self.seed if self.shuffle else None,
        }

    def sample_order(self, samples: int) -> NDArray[np.int64]:
        """The samples to write, in the order of writing: (at most `samples`,)."""
        order = np.random.default_rng(self.seed).permutation(samples) if self.shuffle else np.arange(samples)
        return order[: self.limit]

    def storage_mode(self, sample: int) -> str:
        """How sample number `sample` of the source is stored: "jpg" or "raw"."""
        if self.mode != "proportion":
            return self.mode
        value = np.random.default_rng([self.seed, 3, sample]).random()
        return "jpg" if value < self.compress_probability else "raw"
