"""What is known about a .beton file, in JSON beside it, and how the two get their final names.

`train.beton.json` describes `train.beton`.  A .beton under its final name is whole and its manifest is there.
"""

import errno
import fcntl
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.sources import InputError

FORMAT = "vit-beton-1"


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """How the images are stored."""

    mode: str  # "jpg" or "raw"
    max_resolution: int  # pixels; longer sides were scaled down to it
    quality: int | None  # of the JPEGs, 1 to 100; None if raw
    min_height: int  # pixels, of what is stored, as are the next three
    max_height: int
    min_width: int
    max_width: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A .beton file's description; its fields are the keys of the JSON."""

    format: str  # FORMAT
    file: str  # name, in the same folder
    bytes: int
    sha256: str  # hexadecimal, of the whole file
    samples: int
    classes: list[str]  # names, in the order of the labels
    histogram: list[int]  # samples of each class
    image: ImageInfo
    source: str  # where the images came from
    seed: int | None  # of the order of the samples; None if it is the source's
    versions: dict[str, str]  # of the libraries that wrote it


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides the bytes of the file, beside the images themselves."""

    source: str  # where the images come from
    mode: str = "jpg"  # "jpg" or "raw": how the pixels are stored
    max_resolution: int = 500  # pixels; longer sides are scaled down to it by FFCV, which averages areas
    quality: int = 90  # of the JPEGs, 1 to 100
    seed: int | None = 0  # of the order of the samples; None: the source's order
    limit: int | None = None  # only so many samples, the first in that order; None: all

    def __post_init__(self) -> None:
        if self.mode not in ("jpg", "raw"):
            raise ValueError(f"mode must be jpg or raw, not {self.mode}")
        if not 1 <= self.max_resolution <= 4096:
            raise ValueError(f"max-resolution must be 1 to 4096 pixels, not {self.max_resolution}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, not {self.quality}")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 sample, not {self.limit}")

    @property
    def largest_image(self) -> int:
        """Bytes of the largest image's pixels."""
        return 3 * self.max_resolution**2

    def recorded(self) -> dict[str, object]:
        """What the manifest says of it, by the manifest's names."""
        return {
            "source": self.source if self.limit is None else f"{self.source}, {self.limit} samples",
            "mode": self.mode,
            "max_resolution": self.max_resolution,
            "quality": self.quality if self.mode == "jpg" else None,
            "seed": self.seed,
        }

    def order(self, samples: int) -> NDArray[np.int64]:
        """The samples to write, in the order of writing."""
        order = np.arange(samples) if self.seed is None else np.random.default_rng(self.seed).permutation(samples)
        return order[: self.limit]


def manifest_path(beton: Path) -> Path:
    """Where the description of `beton` lies."""
    return beton.with_name(f"{beton.name}.json")


def read_manifest(beton: Path) -> Manifest:
    """The description that lies beside `beton`.  Raises InputError if it is missing or not one."""
    path = manifest_path(beton)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such manifest") from None
    except ValueError as error:
        raise InputError(f"{path}: not a manifest ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not a manifest of format {FORMAT}")
    image = content.get("image")
    if set(content) != _keys(Manifest) or not isinstance(image, dict) or set(image) != _keys(ImageInfo):
        raise InputError(f"{path}: not a manifest: keys are missing or unknown")
    return Manifest(**content | {"image": ImageInfo(**image)})


def _keys(kind: type[Manifest] | type[ImageInfo]) -> set[str]:
    return {field.name for field in fields(kind)}


def already_there(out: Path, recipe: Recipe) -> bool:
    """Whether `out` is whole and of this recipe.  Raises InputError if it is there and anything else."""
    if not out.exists():
        return False
    advice = "--force writes it anew"
    try:
        manifest = read_manifest(out)
    except InputError as error:
        raise InputError(f"{out}: exists already, but {error}; {advice}") from None
    size, found = out.stat().st_size, asdict(manifest) | asdict(manifest.image)
    if size != manifest.bytes:
        raise InputError(f"{out}: exists already, but has {size} bytes of {manifest.bytes}; {advice}")
    for name, wanted in recipe.recorded().items():
        if found[name] != wanted:
            raise InputError(f"{out}: exists already with {name} {found[name]}, not {wanted}; {advice}")
    return True


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal; reads it in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def claimed(beton: Path) -> Iterator[Path]:
    """The path to write at before `publish`: in the same folder, empty, locked against other commands.

    If the block raises, what it wrote is removed.
    Raises InputError if another command is writing there.
    """
    temporary = _temporary(beton)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{beton}: another command is writing it; wait for it, or stop it") from None
        except OSError as error:
            # Lustre may be mounted without locks; then two commands at once are the user's to avoid.
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        try:
            os.ftruncate(descriptor, 0)
            yield temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            _temporary(manifest_path(beton)).unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(beton: Path) -> None:
    """Remove what a killed command left beside `beton`, unless a living one is writing it."""
    temporary = _temporary(beton)
    if temporary.exists():
        with temporary.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # a living one's, or a file system that cannot say
                return
            temporary.unlink(missing_ok=True)
    _temporary(manifest_path(beton)).unlink(missing_ok=True)


def publish(temporary: Path, beton: Path, manifest: Manifest) -> None:
    """Give the file written at `temporary` and its manifest their final names, in place of older ones.

    The manifest comes first: a stop in between leaves no .beton, and the command can be repeated.
    """
    temporary_manifest = _temporary(manifest_path(beton))
    with temporary_manifest.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(manifest), indent=1) + "\n")
    for path in (temporary, temporary_manifest):
        _fsync(path)
    with signals_held_back():
        beton.unlink(missing_ok=True)  # never an older file beside a newer manifest
        temporary_manifest.replace(manifest_path(beton))
        _fsync(beton.parent)
        temporary.replace(beton)
        _fsync(beton.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block; a process forked in it never sees them."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
