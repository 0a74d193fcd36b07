"""Remembers what was read from a file until the file changes: `status.py --watch` reads the same files often."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vit.history.learning_curve import read_evaluations
from vit.run.jsonl import Record

Result = TypeVar("Result")
_known: dict[tuple[Callable[..., Any], Path], tuple[tuple[int, int, int], Any]] = {}
_evaluations: dict[Path, tuple[int, list[Record], int]] = {}  # inode, what was found, and up to where


def cached(read: Callable[[Path], Result], path: Path) -> Result:
    """`read(path)`, or what it returned before, if the file still has the same size and time of modification.

    Raises what `read` raises.  The result must not be changed.
    """
    try:
        stat = path.stat()
    except OSError:
        return read(path)  # tells an absent file from one that cannot be read
    version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    known = _known.get((read, path))
    if known is None or known[0] != version:
        known = _known[read, path] = (version, read(path))
    result: Result = known[1]
    return result


def evaluations(path: Path) -> list[Record]:
    """All evaluations of a learning curve, of which only what is new is read.  Raises OSError.

    A learning curve is only appended to, or replaced by a new file.
    """
    try:
        stat = path.stat()
    except OSError:
        return read_evaluations(path)[0]
    inode, found, end = _evaluations.get(path, (0, [], 0))
    if inode != stat.st_ino or stat.st_size < end:
        found, end = [], 0
    new, end = read_evaluations(path, end)
    found = found + new
    _evaluations[path] = (stat.st_ino, found, end)
    return found
