"""What is known about a .beton file, in JSON beside it, and how the two get their final names.

`train.beton.json` describes `train.beton`.  A .beton under its final name is whole and its manifest is there.
"""

import errno
import fcntl
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from data_prep.journal import fsync, journal_path, share_kept
from data_prep.progress import progress
from data_prep.recipe import Recipe
from data_prep.sources.source import InputError

FORMAT = "vit-beton-1"
_PATIENCE = 1.0  # seconds for a killed command's workers to let go


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
    parts = -(-path.stat().st_size // page_size)
    # Two threads, as hashing leaves Python's lock alone: 2 GB/s, where the disk can.
    with path.open("rb") as file, ThreadPoolExecutor(1) as thread, progress(parts, "parts") as advance:
        while page := file.read(page_size):
            digest = thread.submit(hashlib.sha256, page)
            whole.update(page)
            pages.append(digest.result().hexdigest())
            advance(1)
    return whole.hexdigest(), pages


@contextmanager
def claimed(beton: Path) -> Iterator[Path]:
    """The path to write at before `publish`: in the same folder, locked against other commands.

    The file there is empty, or what an earlier command left.  If the block raises, it is removed; if its journal has
    something to go on with, it stays, and a note on the error says how much.  Raises InputError if another one writes.
    """
    temporary = temporary_path(beton)
    descriptor = _locked(temporary, time.monotonic() + _PATIENCE)
    if descriptor is None:
        raise InputError(f"{beton}: another command is writing it; wait for it, or stop it")
    try:
        yield temporary
    except BaseException as error:
        share = share_kept(temporary)
        if share is None:
            _remove(beton)
        else:
            error.add_note(f"{share:.0%} is done, the same command goes on there")
        raise
    finally:
        os.close(descriptor)


def _locked(path: Path, until: float) -> int | None:
    """A descriptor of the file at `path`, made if need be, that holds its lock; None if another keeps it `until` then.

    The workers of a killed command keep it until they have noticed.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > until:
                return None
            time.sleep(0.02)
            continue
        except OSError as error:
            # Lustre may be mounted without locks; then two commands at once are the user's to avoid.
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(descriptor)
                raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # in the meantime its owner has given it its final name


def remove_leftovers(beton: Path) -> None:
    """Remove what a command that did not end left beside `beton`, unless a living one is writing it."""
    if not any(path.exists() for path in _leftovers(beton)):
        return
    descriptor = _locked(temporary_path(beton), time.monotonic() + _PATIENCE)
    if descriptor is not None:
        _remove(beton)
        os.close(descriptor)


def _leftovers(beton: Path) -> list[Path]:
    temporary = temporary_path(beton)
    return [journal_path(temporary), temporary, temporary_path(manifest_path(beton))]


def _remove(beton: Path) -> None:
    for path in _leftovers(beton):
        path.unlink(missing_ok=True)


def publish(temporary: Path, beton: Path, manifest: Manifest) -> None:
    """Give the file written at `temporary` and its manifest their final names, in place of older ones.

    The manifest comes first: a stop in between leaves no .beton, and the command can be repeated.
    """
    temporary_manifest = temporary_path(manifest_path(beton))
    with temporary_manifest.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(manifest), indent=1) + "\n")
    for path in (temporary, temporary_manifest):
        fsync(path)
    with signals_held_back():
        beton.unlink(missing_ok=True)  # never an older file beside a newer manifest
        temporary_manifest.replace(manifest_path(beton))
        fsync(beton.parent)
        temporary.replace(beton)
        fsync(beton.parent)
        journal_path(temporary).unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Where `path` is written before it has its final name."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block; a process forked in it never sees them."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
