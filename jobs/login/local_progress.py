"""Prints the progress of a run on this machine, whose ranks have no terminal: it is read from the run folder."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vit.history.attempts import read_attempts
from vit.history.words import resuming_line
from vit.run.activity import read_activity
from vit.run.folder import RunFolder
from vit.run.jsonl import Record, read_lines
from vit.run.progress import clear_line, progress_line, show

POLL_SECONDS = 0.2
PRINT_INTERVAL_SECONDS = 10  # between progress lines if stdout is not a terminal


class LocalProgress:
    """What a run does, from the moment on at which its ledger had `known` events.

    If stdout is not a terminal, it prints evaluations, resumptions, and one other line every PRINT_INTERVAL_SECONDS.
    """

    def __init__(self, run: RunFolder, known: int) -> None:
        self.run, self.known = run, known
        self._records: list[Record] | None = None
        self._printed = 0
        self._read_at = dict[Path, int]()  # modification times of the files that were read
        self._began = time.time()
        self._next_line = 0.0
        self._activity = ""  # the newest line, if it is that of an activity

    def poll(self) -> None:
        """Prints what is new.  Files that cannot be read may be readable later."""
        with suppress(OSError):
            self._if_changed(self.run.ledger, self._show_resumptions)
        with suppress(OSError):
            self._if_changed(self.run.metrics, self._read_records)
        new = (self._records or [])[self._printed :]
        self._printed = len(self._records or [])
        for record in new:
            self._show(progress_line(record), lasting="val_top1" in record)
        line = "" if new else read_activity(self.run.path, self._began)
        if line and line != self._activity:
            self._show(line)
        elif self._activity and not line and not new:
            clear_line()
        self._activity = line

    def _read_records(self) -> None:
        read = read_lines(self.run.metrics)
        # A resumed run removes the records that follow its checkpoint; those of earlier attempts are known.
        self._printed = len(read) if self._records is None else min(self._printed, len(read))
        self._records = read

    def _show_resumptions(self) -> None:
        events = self.run.events()
        for i, event in enumerate(events[self.known :], start=self.known):
            line = ""
            if event["event"] == "started":
                line = resuming_line(events[: i + 1])
            elif event["event"] == "restarting in place":
                line = f"{read_attempts(events[: i + 1])[-2].why}; restarting in place"
            elif event["event"] == "wandb problem":
                line = f"Weights & Biases: {event['problem'].rstrip('.')}; the records are sent later"
            if line:
                self._show(line, lasting=True)
        self.known = max(self.known, len(events))

    def _show(self, line: str, lasting: bool = False) -> None:
        if lasting or sys.stdout.isatty() or time.monotonic() > self._next_line:
            show(line, lasting)
            self._next_line = time.monotonic() + PRINT_INTERVAL_SECONDS

    def _if_changed(self, path: Path, read: Callable[[], None]) -> None:
        """Calls `read` if a file was modified since it was read last.  Raises OSError."""
        modified = path.stat().st_mtime_ns if path.exists() else 0
        if modified != self._read_at.get(path):
            read()
            self._read_at[path] = modified


def until_done(is_done: Callable[[], bool], run: RunFolder, known: int) -> Iterator[None]:
    """Prints the progress of a run until it ends; yields after each look at it."""
    progress = LocalProgress(run, known)
    while True:
        done = is_done()
        progress.poll()
        yield
        if done:
            return
        time.sleep(POLL_SECONDS)


@contextmanager
def shown(run: RunFolder, known: int) -> Iterator[None]:
    """Prints the progress of a run that this process runs itself, in a thread, until the block ends."""
    over = threading.Event()

    def follow() -> None:
        for _ in until_done(over.is_set, run, known):
            pass

    thread = threading.Thread(target=follow, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
