"""Locks an unfinished `.beton`, removes it or keeps it for resuming, and gives the finished file its final name.

A `.beton` under its final name is complete, and its manifest exists.
"""

import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from data_prep.journal import journal_path, resumable_fraction
from data_prep.recipe import Recipe
from data_prep.sources.source import InputError
from vit.config.paths import shell_word
from vit.data.dataset_manifest import (
    DESCRIBED,
    FORMAT,
    DatasetManifest,
    link_chain,
    manifest_path,
    read_dataset_manifest,
)  # fmt: skip
from vit.run.fsync import fsync
from vit.run.hints import command

_LOCK_TIMEOUT = 1.0  # seconds: the workers of a killed command hold the lock until they notice


def find_written(out: Path, recipe: Recipe) -> DatasetManifest | None:
    """The manifest of `out` if it exists, is complete and was written by this recipe; None if it does not exist.

    Raises InputError if it exists but is incomplete, was written by another recipe, or not by this command.
    """
    if not out.exists():
        return None
    own = _is_own(out)
    advice = "replace it with --force, or give another --out" if own else "move it away, or give another --out"
    try:
        manifest = read_dataset_manifest(out, training=False)
    except ValueError as error:
        problem = str(error).partition(";")[0]  # without the reader's advice
        advice += (
            "" if own else f"; to use a file of FFCV as it is: {command('data_prep.describe_beton', shell_word(out))}"
        )
        raise InputError(f"{out}: already exists, but {problem}; {advice}") from None
    size, found = out.stat().st_size, asdict(manifest) | asdict(manifest.image)
    if size != manifest.bytes:
        raise InputError(f"{out}: already exists, but has {size:,} bytes instead of {manifest.bytes:,}; {advice}")
    for name, wanted in recipe.manifest_entries().items():
        if found[name] != wanted:
            raise InputError(f"{out}: already exists with {name} {found[name]}, not {wanted}; {advice}")
    if manifest.left_out and recipe.on_bad == "fail":
        raise InputError(f"{out}: already exists, but without {len(manifest.left_out):,} bad images; {advice}")
    return manifest


def check_replaceable(out: Path) -> None:
    """Raises InputError if `out` exists and has no manifest of `write_beton`: it may be a file of another program."""
    if out.exists() and not _is_own(out):
        raise InputError(
            f"{out}: was not written by this command, or has lost its manifest, so --force does not replace it; "
            "move it away, or give another --out"
        )


def _is_own(out: Path) -> bool:
    """Whether the manifest of an existing file, of any version, says that `write_beton` wrote it."""
    try:
        content = json.loads(manifest_path(out).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return (
        isinstance(content, dict)
        and str(content.get("format")).startswith(FORMAT.rstrip("0123456789"))
        and content.get("source") != DESCRIBED
    )


def link_target(out: Path) -> Path:
    """The file that `out` links to, or would link to; `out` itself if it is not a link.

    Files are written there, so that the link is kept and they are renamed within one disk.  Raises InputError if
    readers would not find the manifest there, but another one beside a link.
    """
    if not out.is_symlink():
        return out
    target = Path(os.path.realpath(out))
    if target.is_symlink():
        raise InputError(f"{out}: is a link that leads to itself; remove it, or give another --out")
    wanted = target.with_name(f"{target.name}.json")
    for link in link_chain(out)[:-1]:
        beside = link.with_name(f"{link.name}.json")
        if os.path.lexists(beside) and os.path.realpath(beside) != os.path.realpath(wanted):
            why = f"{beside} would be taken for the manifest of this link's target"
            raise InputError(f"{out}: {why}; remove it, or give --out {shell_word(target)}")
    return target


@contextmanager
def lock_unfinished_file(beton: Path) -> Iterator[Path]:
    """Locks the unfinished file of `beton` against other commands; yields its path, for `publish` to rename.

    The file is in the same folder.  It is empty, or what an earlier command left.  If the block raises, the file is
    deleted; if it can be resumed, it is kept, and a note is added to the exception that says how much is done.
    Raises InputError if another command is writing the file.
    """
    temporary = temporary_path(beton)
    descriptor = _lock(temporary, time.monotonic() + _LOCK_TIMEOUT)
    if descriptor is None:
        raise InputError(f"{beton}: another command is writing it; wait until it ends, or stop it")
    try:
        yield temporary
    except BaseException as error:
        fraction = resumable_fraction(temporary)
        if fraction is None:
            _delete_unfinished(beton)
        else:
            error.add_note(f"{fraction:.0%} of the images are done; to resume, run the same command again")
        raise
    finally:
        os.close(descriptor)


def _lock(path: Path, deadline: float) -> int | None:
    """A descriptor of the file at `path`, created if missing, that holds its lock; None if the deadline passes.

    The lock is released when all copies of the descriptor are closed, those in worker processes included.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
            continue
        except OSError as error:
            # Lustre may be mounted without locks.  Then users must not run two commands for one file at once.
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(descriptor)
                raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its previous owner has renamed or deleted the file in the meantime


def remove_unfinished_file(beton: Path) -> None:
    """Deletes the unfinished file that an earlier command left for `beton`, unless another command is writing it."""
    if not any(path.exists() for path in _unfinished_paths(beton)):
        return
    descriptor = _lock(temporary_path(beton), time.monotonic() + _LOCK_TIMEOUT)
    if descriptor is not None:
        _delete_unfinished(beton)
        os.close(descriptor)


def _unfinished_paths(beton: Path) -> list[Path]:
    temporary = temporary_path(beton)
    return [journal_path(temporary), temporary, temporary_path(_manifest_target(beton))]


def _delete_unfinished(beton: Path) -> None:
    for path in _unfinished_paths(beton):
        path.unlink(missing_ok=True)


def publish(temporary: Path, beton: Path, manifest: DatasetManifest) -> None:
    """Renames the finished file `temporary` to `beton` and writes its manifest, replacing older ones.

    The manifest is renamed first: a crash in between leaves no .beton, and the command can be repeated.
    """
    fsync(temporary)
    with prepared_manifest(beton, manifest) as rename, block_signals():
        beton.unlink(missing_ok=True)  # an older file must never be next to a newer manifest
        rename()
        temporary.replace(beton)
        fsync(beton.parent)
        journal_path(temporary).unlink(missing_ok=True)


@contextmanager
def prepared_manifest(beton: Path, manifest: DatasetManifest) -> Iterator[Callable[[], None]]:
    """Writes the manifest of `beton` under a temporary name; yields a function that gives it its final name."""
    final = _manifest_target(beton)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(final)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(manifest), indent=1) + "\n")
    fsync(temporary)

    def rename() -> None:
        temporary.replace(final)
        fsync(final.parent)

    yield rename


def _manifest_target(beton: Path) -> Path:
    """Where to write the manifest of `beton`, which is not a link; its manifest may be one."""
    path = beton.with_name(f"{beton.name}.json")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def temporary_path(path: Path) -> Path:
    """The name of `path` while it is unfinished."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def block_signals() -> Iterator[None]:
    """Delays SIGINT and SIGTERM until the end of the block.  A process forked in the block never receives them."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
