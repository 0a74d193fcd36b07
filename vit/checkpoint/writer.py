"""The process that writes checkpoints, and the rank's interface to it.

The rank continues to train while its writer writes.  The writer starts once, imports only a part of the standard
library, and reads the rank's snapshot from shared memory.  It is killed when its rank ends.  Signals that ask a job to
stop are blocked in it, so that they do not kill the save that the rank makes in response.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from mmap import MAP_SHARED, PROT_READ, mmap
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from vit.checkpoint.format import commit, discard, prune, write_part
from vit.run.disk_errors import DISK_FULL
from vit.run.parent import end_with_parent

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}
TASKS: dict[str, Callable[..., Any]] = {
    "commit": commit,
    "prune": prune,
    "discard": discard,
}


@dataclass(frozen=True)
class TaskResult:
    """The return value of a task, or why it failed."""

    value: Any = None
    error: str | None = None
    disk_full: bool = False  # the disk is full, or the quota is used up
    cpu_seconds: float = 0.0  # CPU time that the task took


class Writer:
    """A rank's writer process.  It starts on first use, and again after it was killed."""

    def __init__(self, snapshot_fd: int, snapshot_bytes: int) -> None:
        self.snapshot_fd, self.snapshot_bytes = snapshot_fd, snapshot_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._callbacks: deque[Callable[[TaskResult], None]] = deque()  # one for each task without a result, in order

    def start(self) -> None:
        """Starts the process, unless it runs."""
        if self._process is not None:
            return
        self._pipe, child_pipe = Pipe()
        # Blocked signals are inherited: they never reach the writer, not even while it starts.
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            numbers = (os.getpid(), child_pipe.fileno(), self.snapshot_fd, self.snapshot_bytes)
            root = str(Path(__file__).resolve().parents[2])
            self._process = subprocess.Popen(
                # -S: the standard library is enough
                [sys.executable, "-S", "-m", "vit.checkpoint.writer", *map(str, numbers)],
                env=os.environ | {"PYTHONPATH": root},
                stdin=subprocess.DEVNULL,
                pass_fds=(child_pipe.fileno(), self.snapshot_fd),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
            child_pipe.close()

    @property
    def pid(self) -> int | None:
        """Process id, if the process runs."""
        return self._process.pid if self._process is not None else None

    @property
    def busy(self) -> bool:
        """Whether a task has no result yet."""
        return bool(self._callbacks)

    def submit(self, callback: Callable[[TaskResult], None], task: str, *args: Any) -> None:
        """Queues a task after those submitted before; `poll` calls `callback` with its result."""
        self._callbacks.append(callback)
        try:
            self.start()
            assert self._pipe is not None
            self._pipe.send((task, args))
        except OSError as error:
            self._fail_all(f"the checkpoint writer cannot be reached: {error.strerror}")

    def poll(self, wait: bool = False) -> None:
        """Calls the callbacks of results that have arrived; with `wait`, waits for one if a task is queued."""
        while self._callbacks and self._pipe is not None:
            try:
                if not wait and not self._pipe.poll():
                    return
                result = self._pipe.recv()
            except (EOFError, ConnectionError):
                self._fail_all("the checkpoint writer died")
                return
            self._callbacks.popleft()(result)
            wait = False

    def close(self) -> None:
        """Kills the process, even if it is busy."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._pipe is not None
            self._pipe.close()
            self._process = self._pipe = None

    def _fail_all(self, reason: str) -> None:
        """Fails all queued tasks after the process died."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=5)
                reason = f"the checkpoint writer was killed by {signal.Signals(-code).name}" if code < 0 else reason
            self.close()
        failed, self._callbacks = self._callbacks, deque()
        for callback in failed:
            callback(TaskResult(error=reason))


def main(parent: int, pipe: int, snapshot_fd: int, snapshot_bytes: int) -> None:
    """Runs the rank's tasks one after the other until the rank is gone."""
    end_with_parent(signal.SIGKILL, parent)  # an orphan could write into the next attempt's files
    os.nice(5)  # training goes first where cores are scarce
    connection, snapshot = Connection(pipe), memoryview(mmap(snapshot_fd, snapshot_bytes, MAP_SHARED, PROT_READ))
    with contextlib.suppress(EOFError, ConnectionError):
        while os.getppid() == parent:
            task, args = connection.recv()
            start = time.process_time()
            try:
                value = write(snapshot, *args) if task == "write" else TASKS[task](*args)
                result = TaskResult(value, cpu_seconds=time.process_time() - start)
            except OSError as error:
                result = TaskResult(error=_message(error), disk_full=error.errno in DISK_FULL)
            connection.send(result)


def _message(error: OSError) -> str:
    """What went wrong, and with which file."""
    reason = error.strerror or str(error)
    return f"{reason} ({error.filename})" if error.filename else reason


def write(snapshot: memoryview, folder: Path, step: int, part: int, sizes: Sequence[int]) -> list[int]:
    """Writes the rank's part, which is at the start of its snapshot; returns the checksums of its tensors."""
    return write_part(folder, step, part, snapshot[: sum(sizes)], sizes)


if __name__ == "__main__":
    from vit.checkpoint.writer import main as run  # not __main__.TaskResult: both sides must pickle the same class

    run(*map(int, sys.argv[1:]))
