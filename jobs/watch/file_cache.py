"""Remembers what was read from a file until the file changes: `status.py --watch` reads the same files often.

During one look at all runs, each file is asked for its size and time once: on a file server that takes longer than all
else.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from vit.history.learning_curve import best, number, read_evaluations, top1
from vit.history.resources import Usage, read_usage
from vit.run.folder import RunFolder
from vit.run.jsonl import Record

Result = TypeVar("Result")
_known: dict[tuple[Callable[..., Any], Path], tuple[tuple[int, int, int], Any]] = {}
_evaluations: dict[Path, tuple[int, list[Record], int]] = {}  # inode, what was found, and up to where
_looked: dict[Path, os.stat_result | None] | None = None  # what files had in this look; None if there is none


@contextmanager
def one_look() -> Iterator[None]:
    """In the block, each file is asked once; outside of it, each time."""
    global _looked  # noqa: PLW0603
    _looked = {}
    try:
        yield
    finally:
        _looked = None


def look_at(path: Path) -> os.stat_result | None:
    """Size and time of a file or folder; None if it has none now, or cannot be asked."""
    if _looked is not None and path in _looked:
        return _looked[path]
    try:
        found: os.stat_result | None = os.stat(path)
    except OSError:
        found = None
    if _looked is not None:
        _looked[path] = found
    return found


def is_file(path: Path) -> bool:
    """Whether there is a file."""
    found = look_at(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def cached(read: Callable[[Path], Result], path: Path) -> Result:
    """`read(path)`, or what it returned before, if the file still has the same size and time of modification.

    Raises what `read` raises.  The result must not be changed.
    """
    found = look_at(path)
    if found is None:
        return read(path)  # tells an absent file from one that cannot be read
    version = (found.st_ino, found.st_size, found.st_mtime_ns)
    known = _known.get((read, path))
    if known is None or known[0] != version:
        known = _known[read, path] = (version, read(path))
    result: Result = known[1]
    return result


def evaluations(path: Path) -> list[Record]:
    """All evaluations of a learning curve, of which only what is new is read.  Raises OSError.

    A learning curve is only appended to, or replaced by a new file.
    """
    now = look_at(path)
    if now is None:
        return read_evaluations(path)[0]
    inode, found, end = _evaluations.get(path, (0, [], 0))
    if inode != now.st_ino or now.st_size < end:
        found, end = [], 0
    new, end = read_evaluations(path, end)
    found = found + new
    _evaluations[path] = (now.st_ino, found, end)
    return found


def best_evaluation(path: Path, newest: Record) -> Record:
    """`best_top1` and `best_epoch`, which the newest evaluation has, except for those of older versions.

    Raises OSError.
    """
    if not newest or number(newest, "best_top1") is not None:
        return newest
    found = best(evaluations(path)) or {}
    return {"best_top1": top1(found), "best_epoch": number(found, "epoch")}


def usage(run: RunFolder) -> list[Usage]:
    """What the GPUs and cores of a run were used for, oldest first.  Raises OSError.

    Its files are replaced by new ones, which changes the time of their folder.
    """
    return cached(_usage, run.logs)


def _usage(logs: Path) -> list[Usage]:
    return read_usage(RunFolder(logs.parent))
