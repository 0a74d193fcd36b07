"""JSON Lines files that several processes append to and that survive kills and full disks.  Imports no torch."""

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from vit.run.disk_errors import TOLERATED_WRITE_ERRORS
from vit.run.file_lock import lock
from vit.run.fsync import fsync

Record = dict[str, Any]
_unwritten: dict[Path, list[bytes]] = {}  # lines that could not be written, e.g. to a full disk


def append(path: Path, record: Record, durable: bool = False) -> None:
    """Appends one line under a lock, so that lines of several processes never mix.

    If the disk is full or not writable, the line is kept in memory and written with the next one.  With `durable`,
    waits until the line is on the disk.
    """
    _unwritten.setdefault(path, []).append((json.dumps(record) + "\n").encode())
    _flush(path, durable)


def flush() -> None:
    """Tries again to write the lines that are kept in memory.  To be called before the process ends."""
    for path in list(_unwritten):
        _flush(path, durable=True)


def _flush(path: Path, durable: bool) -> None:
    lines = _unwritten.pop(path)
    try:
        _append(path, b"".join(lines), durable)
    except OSError as error:
        if error.errno not in TOLERATED_WRITE_ERRORS:
            raise
        _unwritten[path] = lines


def _append(path: Path, lines: bytes, durable: bool) -> None:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        lock(fd, fcntl.LOCK_EX)  # released by closing the file
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            lines = b"\n" + lines  # a kill truncated the last line: only that one is lost
        written = 0
        try:
            written = os.write(fd, lines)
            if written < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fsync(fd)
                fsync(path.parent)
        except OSError:
            if _truncated(fd, size) or written < len(lines):
                raise  # the lines are kept in memory, and must not be in the file as well
    finally:
        os.close(fd)


def _truncated(fd: int, size: int) -> bool:
    """Removes what was appended.  Returns False if that fails."""
    try:
        os.ftruncate(fd, size)
    except OSError:
        return False
    return True


def read_lines(path: Path) -> list[Record]:
    """The records of a file, without lines that a kill truncated.  Empty if there is no file."""
    out: list[Record] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                out.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return out
