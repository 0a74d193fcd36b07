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
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from data_prep.recipe import Recipe
from data_prep.sources import InputError

FORMAT = "vit-beton-1"


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """How the images are stored."""

    mode: str  # "jpg", "raw", or "proportion": each as one of both
    max_resolution: int  # pixels; longer sides were scaled down to it
    quality: int | None  # of the JPEGs, 1 to 100; None if raw
    min_height: int  # pixels, of what is stored, as are the next three
    max_height: int
    min_width: int
    max_width: int
    reencode: bool | None = None  # JPEGs were never stored as they were; None if raw, or written before this was asked
    copied: int = 0  # images: JPEGs stored as they were
    compress_probability: float | None = None  # of an image to be a JPEG; None unless the mode is "proportion"
    compress_seed: int | None = None  # of that draw


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A .beton file's description; its fields are the keys of the JSON.  Those with a default came later."""

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
    names: list[str] | None = None  # of the classes, for people; None: `classes` are
    mean: list[float] | None = None  # of red, green and blue over all pixels, 0 to 1, before JPEGs lose some
    std: list[float] | None = None  # standard deviation, likewise
    page_size: int | None = None  # bytes
    pages: list[str] | None = None  # sha256 of each part of the file of `page_size` bytes; the last may be shorter
    left_out: list[dict[str, str]] = field(default_factory=list)  # images that could not be used: "image" and "why"


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
    if not (isinstance(image, dict) and _fits(content, Manifest) and _fits(image, ImageInfo)):
        raise InputError(f"{path}: not a manifest: keys are missing or unknown")
    return Manifest(**content | {"image": ImageInfo(**image)})


def _fits(content: dict[str, Any], kind: type[Manifest] | type[ImageInfo]) -> bool:
    known: dict[str, Field[Any]] = {each.name: each for each in fields(kind)}
    needed = {name for name, each in known.items() if each.default is MISSING and each.default_factory is MISSING}
    return needed <= content.keys() <= known.keys()


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
    if manifest.left_out and recipe.on_bad == "fail":
        raise InputError(f"{out}: exists already, but {len(manifest.left_out)} images were left out of it; {advice}")
    return True


def digests(path: Path, page_size: int) -> tuple[str, list[str]]:
    """SHA-256 in hexadecimal of the file and of each part of it of `page_size` bytes, of which the last may be shorter.

    Raises OSError if it cannot be read.
    """
    whole, pages = hashlib.sha256(), []
    with path.open("rb") as file:
        while page := file.read(page_size):
            whole.update(page)
            pages.append(hashlib.sha256(page).hexdigest())
    return whole.hexdigest(), pages


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
