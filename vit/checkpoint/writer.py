"""The process that writes checkpoints, and how a rank asks it to.

A rank trains on while its writer writes.  The writer is started once, imports only a little of the standard library,
and shares the rank's snapshot as memory.  It ends with its rank, at once; signals that tell a job to stop do not reach
it, so that the save that answers them is not killed by them.
"""

import contextlib
import ctypes
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
from vit.run.disk_errors import NO_ROOM

STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}
TASKS: dict[str, Callable[..., Any]] = {
    "commit": commit,
    "prune": prune,
    "discard": discard,
}


@dataclass(frozen=True)
class Answer:
    """What came of a task: its result, or why it failed."""

    result: Any = None
    error: str | None = None
    no_room: bool = False  # the disk is full, or the quota is spent
    cpu_seconds: float = 0.0  # that the task took from whatever else could have run


class Writer:
    """A rank's writer.  It is started when it is first needed, and again if it was killed."""

    def __init__(self, memory: int, size: int) -> None:
        self.memory, self.size = memory, size  # the snapshot: a file descriptor, and its bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._waiting: deque[Callable[[Answer], None]] = deque()

    def start(self) -> None:
        """Starts the process, if it does not run."""
        if self._process is not None:
            return
        self._pipe, theirs = Pipe()
        # Blocked signals are inherited: none of these ever reaches the writer, from its first instruction on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            place = [str(number) for number in (os.getpid(), theirs.fileno(), self.memory, self.size)]
            root = str(Path(__file__).resolve().parents[2])
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-S",
                    "-m",
                    "vit.checkpoint.writer",
                    *place,
                ],  # -S: the standard library is all it needs
                env=os.environ | {"PYTHONPATH": root},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self.memory),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    @property
    def pid(self) -> int | None:
        """The running process."""
        return self._process.pid if self._process is not None else None

    @property
    def busy(self) -> bool:
        """Whether an answer is still to come."""
        return bool(self._waiting)

    def ask(self, then: Callable[[Answer], None], task: str, *args: Any) -> None:
        """Has a task done after those that were asked for before; `poll` passes the answer on."""
        self._waiting.append(then)
        try:
            self.start()
            assert self._pipe is not None
            self._pipe.send((task, args))
        except OSError as error:
            self._died(f"the writing process cannot be reached: {error.strerror}")

    def poll(self, wait: bool = False) -> None:
        """Passes on the answers that are there; with `wait`, one at least if any is to come."""
        while self._waiting and self._pipe is not None:
            try:
                if not wait and not self._pipe.poll():
                    return
                answer = self._pipe.recv()
            except (EOFError, ConnectionError):
                self._died("the writing process died")
                return
            self._waiting.popleft()(answer)
            wait = False

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._pipe is not None
            self._pipe.close()
            self._process = self._pipe = None

    def _died(self, why: str) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=5)
                why = f"the writing process was killed by {signal.Signals(-code).name}" if code < 0 else why
            self.close()
        lost, self._waiting = self._waiting, deque()
        for then in lost:
            then(Answer(error=why))


def main(parent: int, pipe: int, memory: int, size: int) -> None:
    """Does what the rank asks for, task by task, until the rank is gone."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: an orphan could write into the next attempt's files
    os.nice(5)  # where cores are short, training goes first
    connection, snapshot = Connection(pipe), memoryview(mmap(memory, size, MAP_SHARED, PROT_READ))
    with contextlib.suppress(EOFError, ConnectionError):
        while os.getppid() == parent:
            task, args = connection.recv()
            begun = time.process_time()
            try:
                result = write(snapshot, *args) if task == "write" else TASKS[task](*args)
                answer = Answer(result, cpu_seconds=time.process_time() - begun)
            except OSError as error:
                answer = Answer(error=error.strerror or str(error), no_room=error.errno in NO_ROOM)
            connection.send(answer)


def write(snapshot: memoryview, folder: Path, step: int, part: int, sizes: Sequence[int]) -> list[int]:
    """Writes the rank's part, which is what its snapshot begins with."""
    return write_part(folder, step, part, snapshot[: sum(sizes)], sizes)


if __name__ == "__main__":
    from vit.checkpoint.writer import main as run  # under its own name, so that both sides pickle the same `Answer`

    run(*map(int, sys.argv[1:]))
