"""Standard output and standard error that are never the reason why a command fails."""

import errno
import io
import os
import signal
import sys
from contextlib import suppress
from typing import Any, TextIO

READER_GONE = 128 + signal.SIGPIPE  # exit code, as that of other programs in `program | head`


def protect_output(keep_going: bool) -> None:
    """Replaces sys.stdout and sys.stderr.  Characters that the encoding lacks are then printed as `?`.

    If nobody reads the output any more (`| head`), the process exits with READER_GONE.  With `keep_going`, and always
    on stderr, output that cannot be written is lost instead: closed pipe, full disk, terminal that is gone.

    File descriptors 0 to 2 that are closed are opened on /dev/null: otherwise the next file to be opened, such as a
    checkpoint, would become the output of C libraries and child processes.
    """
    for fd in (0, 1, 2):
        with suppress(OSError):  # no file descriptor is left
            _open_if_closed(fd)
    sys.stdout, sys.stderr = _protected(sys.stdout, 1, keep_going), _protected(sys.stderr, 2, keep_going=True)


def _open_if_closed(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is `fd`


def _protected(stream: TextIO | None, fd: int, keep_going: bool) -> TextIO:
    """A stream on the file descriptor; the given one if it is a replacement, e.g. of a test."""
    if stream is None:  # the file descriptor was closed when Python started
        return open(os.devnull, "w")
    with suppress(OSError, ValueError):  # it may hold text that cannot be written, or have no file descriptor
        stream.flush()
    try:
        if stream.fileno() != fd or not isinstance(stream, io.TextIOWrapper):
            return stream
    except (OSError, ValueError):
        return stream
    raw = _Output(fd, "w", closefd=False)
    raw.keep_going, raw.original = keep_going, stream
    return io.TextIOWrapper(
        raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw),  # unbuffered: `python -u`
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Output(io.FileIO):
    """A standard stream; from the moment on that its reader is gone, everything is discarded."""

    keep_going = True
    original: TextIO  # would close the descriptor when it is garbage-collected

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
        except BrokenPipeError:
            discard = os.open(os.devnull, os.O_WRONLY)
            os.dup2(discard, self.fileno())  # for child processes too
            os.close(discard)
            if not self.keep_going:
                sys.exit(READER_GONE)
            written = None
        except OSError:
            if not self.keep_going:
                raise
            written = None
        return memoryview(data).nbytes if written is None else written  # None also if a pipe that must not wait is full
