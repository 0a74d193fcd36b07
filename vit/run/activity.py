"""What rank 0 does for a long time without a training step, and how far it is: copying data, compiling.  No torch.

The progress is printed, a line each second on a terminal and one now and then in a log.  It is also in the file
`activity.json` of the run folder, for commands that show a run from outside: its ranks have no terminal.  A file tells
it to all of them, on this machine and on others, and needs no connection to the ranks.  It is replaced without waiting
for the disk; nothing depends on it.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vit.run.progress import clear_line, format_duration, show

SHOW_AFTER_SECONDS = 0.5  # what takes less is not shown
TERMINAL_SECONDS, LOG_SECONDS = 1.0, 10.0  # between lines
FILE_SECONDS = 2.0  # between updates of the file
FORGOTTEN_SECONDS = 120.0  # a file that is older is from a killed process; clocks of two nodes may differ

_files: list[Path] = []  # where this process tells what it does: at most one file


def activity_file(folder: Path) -> Path:
    """The file of a run folder that says what its rank 0 does."""
    return folder / "activity.json"


def publish_activity(folder: Path) -> None:
    """From now on, this process tells in this run folder what it does; what an earlier process told is removed."""
    _files[:] = [activity_file(folder)]
    _remove()


def read_activity(folder: Path, since: float = 0.0) -> str:
    """What rank 0 of a run does without steps, as a line; empty while it trains, or if nothing is known.

    What was told before the Unix time `since` does not count.
    """
    try:
        found = json.loads(activity_file(folder).read_text())
        if found["time"] < max(since, time.time() - FORGOTTEN_SECONDS):
            return ""
        return _line(found["what"], time.time() - found["since"], found["done"], found["total"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""  # written just now, or by another version


@contextmanager
def activity(what: str, total: int = 0, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Shows what the block does; yields a function to call with the bytes that are done, of `total`.

    Of all ranks only one should be `shown`.  Nothing is shown before `publish_activity`: other commands than training
    may print something for programs.
    """
    if not shown or not _files:
        yield lambda _: None
        return
    ticker = _Ticker(what, total)
    ticker.start()
    try:
        yield ticker.update
    finally:
        ticker.stop()


class _Ticker(threading.Thread):
    """Prints and publishes while the main thread works."""

    def __init__(self, what: str, total: int) -> None:
        super().__init__(daemon=True, name="activity")
        self.what, self.total, self.done = what, total, 0
        self.since, self._start_time = time.time(), time.monotonic()
        self._over = threading.Event()
        self._printed = False

    def update(self, done: int) -> None:
        self.done = done

    def run(self) -> None:
        next_line = next_file = 0.0
        seconds = TERMINAL_SECONDS if _is_terminal() else LOG_SECONDS
        wait = SHOW_AFTER_SECONDS
        while not self._over.wait(wait):
            now, wait = time.monotonic(), min(TERMINAL_SECONDS, seconds)
            if now >= next_line:
                show(_line(self.what, now - self._start_time, self.done, self.total))
                self._printed, next_line = True, now + 0.9 * seconds
            if now >= next_file:
                self._publish()
                next_file = now + 0.9 * FILE_SECONDS

    def stop(self) -> None:
        self._over.set()
        self.join()
        if self._printed:
            clear_line()
        _remove()

    def _publish(self) -> None:
        values = {"what": self.what, "since": self.since, "time": time.time(), "done": self.done, "total": self.total}
        for file in _files:
            with suppress(OSError):
                temporary = file.with_name(f"{file.name}.tmp")
                temporary.write_text(json.dumps(values))
                temporary.replace(file)


def _remove() -> None:
    for file in _files:
        with suppress(OSError):
            file.unlink(missing_ok=True)


def _is_terminal() -> bool:
    return bool(sys.stdout and sys.stdout.isatty())


def _line(what: str, seconds: float, done: int, total: int) -> str:
    """`copying data sets to /tmp: 12.0 of 150.0 GB, 480 MB/s, 4:48 left`; without a total, the time that has passed."""
    if not total:
        return f"{what}: {format_duration(seconds)}" if seconds >= 1 else what
    rate = done / max(1e-3, seconds)
    left = f", {format_duration((total - done) / rate)} left" if done else ""
    return f"{what}: {done / 1e9:.1f} of {total / 1e9:.1f} GB, {rate / 1e6:,.0f} MB/s{left}"
