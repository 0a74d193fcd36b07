"""Standard output and standard error of a training: what cannot be written is lost, and the run continues."""

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


def tolerate_lost_output() -> None:
    """Replaces sys.stdout and sys.stderr by streams that never fail: closed pipe, full disk, terminal that is gone.

    Characters that the encoding lacks are written as escapes.  File descriptors 0 to 2 that are closed are opened on
    /dev/null: otherwise a checkpoint could get the number 2, and a message of a C library would be written into it.
    """
    for fd in (0, 1, 2):
        with suppress(OSError):  # no file descriptor is left
            _open_if_closed(fd)
    sys.stdout, sys.stderr = _lossy(sys.stdout, 1), _lossy(sys.stderr, 2)


def _open_if_closed(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `fd`


def _lossy(stream: TextIO | None, fd: int) -> TextIO:
    """A stream on the file descriptor that never fails; the given one if it is a replacement, e.g. of a test."""
    if stream is None:  # the file descriptor was closed when Python started
        return open(os.devnull, "w")
    with suppress(OSError, ValueError):  # it may hold text that cannot be written, or have no file descriptor
        stream.flush()
    try:
        if stream.fileno() != fd:
            return stream
    except (OSError, ValueError):
        return stream
    raw = _LossyFile(fd, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )


class _LossyFile(io.FileIO):
    """A file whose writes always succeed."""

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written  # None also if a pipe that must not wait is full
