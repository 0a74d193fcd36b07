"""Remembers what was read from a file until the file changes: `status.py --watch` reads the same files often."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")
_known: dict[tuple[Callable[..., Any], Path], tuple[tuple[int, int, int], Any]] = {}


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
