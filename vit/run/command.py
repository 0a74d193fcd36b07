"""Starts a command's main function, with an output that is never the reason why a command fails."""

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

INTERRUPTED = 128 + signal.SIGINT  # exit code after Ctrl-C
READER_GONE = 128 + signal.SIGPIPE  # exit code, as that of other programs in `program | head`


def run_command(main: Callable[[], int | str | None], keep_going: bool = False) -> NoReturn:
    """Calls `main` and exits with the code that it returns.

    Characters that the terminal lacks are printed as `?`, and the output may be closed (`>&-`).  If nobody reads it any
    more (`| head`), the command ends with READER_GONE; with `keep_going` it does its work without further output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # otherwise the next file to be opened would become the output of child processes
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _open_output(sys.stdout, keep_going)
    sys.stderr = _open_output(sys.stderr, keep_going=True)
    try:
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        sys.stdout.flush()
    sys.exit(code)


class _Output(io.FileIO):
    """A standard stream; from the moment on that its reader is gone, everything is discarded."""

    keep_going = True

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except BrokenPipeError:
            discard = os.open(os.devnull, os.O_WRONLY)
            os.dup2(discard, self.fileno())
            os.close(discard)
            if self.keep_going:
                return super().write(data)
            sys.exit(READER_GONE)


def _open_output(stream: TextIO | None, keep_going: bool) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):  # None if it was closed
        return stream or open(os.devnull, "w")
    stream.flush()
    raw = _Output(stream.fileno(), "w", closefd=False)
    raw.keep_going = keep_going
    return io.TextIOWrapper(
        raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw),  # unbuffered: stderr, `python -u`
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
