"""A command on a pseudo-terminal, as a user has it: what it writes, its size, and Ctrl-C."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pyte


class Terminal:
    """Starts a command on a terminal of this size; `output` is everything that it has written."""

    def __init__(
        self, command: Sequence[str], cwd: Path, columns: int = 100, rows: int = 24, **environment: str
    ) -> None:
        self.master, slave = pty.openpty()
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.output = b""
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command], cwd=cwd, env=kept | {"TERM": "xterm-256color"} | environment,
            stdin=slave, stdout=slave, stderr=slave,
        )  # fmt: skip
        os.close(slave)

    def lines(self) -> list[str]:
        """What the screen shows, without spaces at the ends."""
        return [line.rstrip() for line in self.screen.display]

    def read(self, seconds: float = 0.05) -> None:
        """Takes what the command writes in this time."""
        with suppress(OSError):  # the command has ended
            while select.select([self.master], [], [], seconds)[0]:
                new = os.read(self.master, 65536)
                if not new:
                    return
                self.output += new
                self._stream.feed(new)

    def wait_until(self, shown: Callable[[list[str]], bool], seconds: float = 20) -> list[str]:
        """The lines of the screen, once they are as they should be."""
        deadline = time.monotonic() + seconds
        while not shown(self.lines()):
            self.read()
            assert time.monotonic() < deadline, "\n".join(self.lines())
            assert self.process.poll() is None or shown(self.lines()), self.output.decode(errors="replace")
        return self.lines()

    def resize(self, columns: int, rows: int) -> None:
        """Changes the size of the terminal; the command gets a SIGWINCH."""
        self.screen.resize(rows, columns)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.write(self.master, b"\x03")

    def end(self) -> int:
        """Waits for the end of the command, and returns its exit code."""
        deadline = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read()
        self.read()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        os.close(self.master)
        return self.process.wait()
