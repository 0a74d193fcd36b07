"""JSON Lines files that several processes append to and that survive kills and full disks.  Imports no torch."""

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vit.run.disk_errors import TOLERATED_WRITE_ERRORS, naming, read_if_exists
from vit.run.file_lock import lock
from vit.run.fsync import fsync

Record = dict[str, Any]
_unwritten: dict[Path, list[bytes]] = {}  # lines that could not be written, e.g. to a full disk
_threads = threading.RLock()  # for `_unwritten`; reentrant, as signal handlers append too
os.register_at_fork(after_in_child=lambda: globals().update(_threads=threading.RLock()))


def append(path: Path, record: Record, durable: bool = False) -> None:
    """Appends one line under a lock, so that lines of several processes never mix.

    If the disk is full or not writable, the line is kept in memory and written with the next one.  With `durable`,
    waits until the line is on the disk.
    """
    with _threads:
        _unwritten.setdefault(path, []).append(line(record))
        _flush(path, durable)


def flush(patience: float = 0) -> list[str]:
    """Tries for `patience` seconds to write the lines that are kept in memory.  To be called before the process ends.

    Returns a message for each file whose lines could still not be written.
    """
    deadline = time.monotonic() + patience
    while True:
        with _threads:
            problems = [str(error) for path in list(_unwritten) if (error := _flush(path, durable=True))]
        if not problems or time.monotonic() > deadline:
            return problems
        time.sleep(0.2)


def line(record: Record) -> bytes:
    """A record as a line of a file."""
    return (json.dumps(record) + "\n").encode()


def _flush(path: Path, durable: bool) -> OSError | None:
    """Returns the error if the lines are still in memory.  Raises OSError for errors that are not tolerated."""
    lines = _unwritten.pop(path, [])
    try:
        append_lines(path, b"".join(lines), durable)
    except OSError as error:
        if error.errno not in TOLERATED_WRITE_ERRORS:
            raise
        _unwritten[path] = lines + _unwritten.get(path, [])
        return error
    return None


def append_lines(path: Path, lines: bytes, durable: bool) -> None:
    """Appends complete lines at once, or nothing and raises OSError."""
    with naming(path):
        _append(path, lines, durable)


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
    """The records of a file, without damaged lines such as those that a kill truncated.  Empty if there is no file.

    Raises OSError, which names the file, if it cannot be read.
    """
    return parse_lines(raw_lines(path))


def raw_lines(path: Path) -> list[bytes]:
    """The lines of a file as they are, without their line breaks.  Empty if there is no file.  Raises OSError."""
    with naming(path):
        content = read_if_exists(path, path.read_bytes) or b""
    return content.split(b"\n")


def parse_lines(lines: Iterable[bytes]) -> list[Record]:
    """The records of lines without their line breaks; damaged and empty lines are left out."""
    lines = [line for line in lines if line]
    try:  # all at once: twice as fast
        records = json.loads((b"[" + b",".join(lines) + b"]").decode())
    except ValueError:
        records = []
    if len(records) == len(lines) and all(isinstance(record, dict) for record in records):
        return list(records)
    return [record for line in lines if (record := _parse(line)) is not None]


def read_raw_lines(path: Path) -> list[tuple[bytes, Record | None]]:
    """The lines of a file, with a line break each, and their records; None for a damaged line.  Raises OSError."""
    return [(text + b"\n", _parse(text)) for text in raw_lines(path) if text]


def _parse(text: bytes) -> Record | None:
    try:
        record = json.loads(text.decode())
    except ValueError:  # also of bytes that are not UTF-8
        return None
    return record if isinstance(record, dict) else None
