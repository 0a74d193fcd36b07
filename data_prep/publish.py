"""How a `.beton` and its manifest get their final names: locks, leftovers of killed commands, and the last rename.

A `.beton` under its final name is whole and its manifest is there.
"""

import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from data_prep.journal import journal_path, share_kept
from data_prep.recipe import Recipe
from data_prep.sources.source import InputError
from vit.data.dataset_manifest import DatasetManifest, manifest_path, read_dataset_manifest
from vit.run.fsync import fsync

_PATIENCE = 1.0  # seconds for a killed command's workers to let go


def already_there(out: Path, recipe: Recipe) -> bool:
    """Whether `out` is whole and of this recipe.  Raises InputError if it is there and anything else."""
    if not out.exists():
        return False
    advice = "--force writes it anew"
    try:
        manifest = read_dataset_manifest(out, training=False)
    except ValueError as error:
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


def publish(temporary: Path, beton: Path, manifest: DatasetManifest) -> None:
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
