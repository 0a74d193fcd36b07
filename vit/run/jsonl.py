"""Files of JSON lines that several processes append to, and that survive kills and full disks.  No torch."""

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from vit.run.disk_errors import UNWILLING
from vit.run.file_lock import lock
from vit.run.fsync import fsync

Record = dict[str, Any]
_unwritten: dict[Path, list[bytes]] = {}  # lines that a full disk did not take


def append(path: Path, record: Record, durable: bool = False) -> None:
    """Adds one line under a lock, so that lines of several processes never mix.

    A run does not end because a disk is full or cannot be written: the line is then kept, and added with a later one.
    """
    _unwritten.setdefault(path, []).append((json.dumps(record) + "\n").encode())
    _flush(path, durable)


def flush() -> None:
    """Adds what a disk did not take before, as far as it does now: the last chance, before a process ends."""
    for path in list(_unwritten):
        _flush(path, durable=True)


def _flush(path: Path, durable: bool) -> None:
    lines = _unwritten.pop(path)
    try:
        _append(path, b"".join(lines), durable)
    except OSError as error:
        if error.errno not in UNWILLING:
            raise
        _unwritten[path] = lines


def _append(path: Path, lines: bytes, durable: bool) -> None:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        lock(fd, fcntl.LOCK_EX)  # until it is closed
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            lines = b"\n" + lines  # a kill cut the last line short; only that one is lost
        written = 0
        try:
            written = os.write(fd, lines)
            if written < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fsync(fd)
                fsync(path.parent)
        except OSError:
            if _shortened(fd, size) or written < len(lines):
                raise  # they are kept, and must not stand twice
    finally:
        os.close(fd)


def _shortened(fd: int, size: int) -> bool:
    """Whether what was appended could be taken back."""
    try:
        os.ftruncate(fd, size)
    except OSError:
        return False
    return True


def read_lines(path: Path) -> list[Record]:
    """The whole lines of a file; a last one that a kill cut short is left out."""
    out: list[Record] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                out.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return out
