"""Starts training runs in real processes and kills them with SIGKILL.

Ranks are forks of this process, which has done all imports, so they start within a second.  With `fresh`, torchrun
starts them instead.
"""

import ctypes
import gc
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import psutil
import torch
import torch._dynamo  # otherwise imported when an optimizer is created, which takes seconds
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from vit import train
from vit.checkpoint.format import find_checkpoints, read_manifest
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines
from vit.run.parent import end_with_parent

VICTIMS = ("a rank", "all ranks", "the launcher", "everything")  # killing any of these ends an attempt

_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER


class UnexpectedExitError(RuntimeError):
    """An attempt that was not killed did not finish the run.  The message has the end of its log."""


@dataclass(frozen=True)
class Kill:
    """A kill that ended an attempt."""

    seconds: float  # after the attempt was launched
    step: int  # last completed step
    ranks: int
    lost: int  # completed steps that have to be repeated
    victim: str  # "rank 2", or one of VICTIMS


class Attempt:
    """The launcher and the ranks of one attempt.  Assumes that all children of this process belong to it."""

    def __init__(self, run: RunFolder, arguments: list[str], ranks: int, fresh: bool) -> None:
        self.run, self.ranks = run, ranks
        self.launched = time.time()
        self._log = run.logs / "attempts.log"
        run.logs.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)  # a thread pool would not survive the fork
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)  # orphaned descendants become our children, so none is missed
        self._code: int | None = None  # exit code of the launcher
        parent = os.getpid()
        self._launcher = os.fork()
        if self._launcher == 0:
            try:
                _launcher_main(parent, [*arguments, "--run-dir", str(run.path)], ranks, self._log, fresh)
            finally:
                os._exit(1)

    def running(self) -> bool:
        """Whether the launcher is still running."""
        if self._code is None:
            pid, status = os.waitpid(self._launcher, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is None

    def started(self) -> dict[str, float] | None:
        """The event with the `time` and `step` at which this attempt started to train; None before that."""
        event = self.run.last("started")
        return event if event and event["time"] >= self.launched else None

    def finish(self) -> None:
        """Waits until the attempt ends.  Raises UnexpectedExitError if the run is not finished then."""
        while self.running():
            time.sleep(0.01)
        self.end()
        if self.run.finished() is None:
            tail = "\n".join(f"  {line}" for line in self._log.read_text(errors="replace").splitlines()[-15:])
            raise UnexpectedExitError(
                f"{self.ranks} ranks exited with code {self._code} without having been killed:\n{tail}"
            )

    def kill(self, rng: random.Random) -> Kill:
        """Kills a random victim and waits until all processes of the attempt are gone."""
        victim, victims = self.victims(rng.choice(VICTIMS), rng.randrange(self.ranks))
        step, seconds = last_step(self.run), time.time() - self.launched
        self.send_sigkill(victim, victims)
        self.end()
        saved = find_checkpoints(self.run.checkpoints)
        kept = int(read_manifest(saved[0])["step"]) if saved else 0
        return Kill(seconds, step, self.ranks, max(0, step - kept), victim)

    def victims(self, victim: str, number: int) -> tuple[str, list[psutil.Process]]:
        """Returns the name and the processes of a victim: the launcher if it has not yet started the ones asked for.

        `number` selects the rank for "a rank" and "a writer"; the returned name includes it.
        """
        launcher = psutil.Process(self._launcher)
        ranks = sorted(launcher.children(), key=lambda process: process.pid)
        if victim == "everything":
            return victim, [launcher, *launcher.children(recursive=True)]
        if victim == "all ranks" and ranks:
            return victim, ranks
        if victim == "a rank" and number < len(ranks):
            return f"rank {number}", [ranks[number]]
        if victim == "a writer" and number < len(ranks) and (writers := ranks[number].children()):
            return f"the writer of rank {number}", writers
        return "the launcher", [launcher]

    def send_sigkill(self, victim: str, victims: list[psutil.Process]) -> None:
        """Sends SIGKILL to all of them; for "everything", also to processes that they have started in the meantime."""
        launcher = psutil.Process(self._launcher)
        if victim == "everything":
            launcher.suspend()  # so that it starts no more processes
            victims = [*victims, *launcher.children(recursive=True)]
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def end(self, timeout: float = 60.0) -> None:
        """Waits until the launcher and all its descendants are gone, and kills those left after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.005)
        while self.running() or _descendants():
            for process in _descendants() if time.monotonic() > deadline else []:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.01)


def train_and_kill(
    run: RunFolder, arguments: list[str], steps: int, ranks: list[int], kills: int, seed: int, fresh: bool
) -> Iterator[Kill]:
    """Trains a run in several attempts, each on the next number of `ranks`, and yields the kill that ends each one.

    After `kills` kills, a last attempt finishes the run.  Time and victim are random: a kill may hit a step, a
    checkpoint, an evaluation or the start.
    """
    rng = random.Random(seed)
    # Each kill waits for a step of its own, so that kills are spread over the run and none comes after its end.
    targets = sorted(rng.choices(range(max(1, steps - 4)), k=kills))
    done, seconds = 1, 0.3  # steps of all attempts so far, and the time they took
    for i, target in enumerate(targets):
        attempt = Attempt(run, arguments, ranks[i % len(ranks)], fresh)
        try:
            early = rng.random() < 0.15
            while attempt.running() and not early and not (attempt.started() and last_step(run) >= target):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 1 if early else 2 * seconds / done))
            if not attempt.running():  # it finished, or failed
                attempt.finish()
                return
            kill = attempt.kill(rng)
        finally:
            attempt.end(timeout=0)
        if start := attempt.started():
            done += max(0, kill.step - int(start["step"]))
            seconds += kill.seconds - (start["time"] - attempt.launched)
        yield kill
    Attempt(run, arguments, ranks[kills % len(ranks)], fresh).finish()


def last_step(run: RunFolder) -> int:
    """The last step of the learning curve."""
    return max((record["step"] for record in read_lines(run.metrics)), default=0)


def _descendants() -> list[psutil.Process]:
    """Returns the descendants of this process, and reaps those that have ended.

    A process is a zombie as soon as its main thread has ended, while other threads may still hold its files and locks.
    It is gone only once it can be reaped.
    """
    alive = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            zombie = process.status() == psutil.STATUS_ZOMBIE and process.ppid() == os.getpid()
            if not (zombie and os.waitpid(process.pid, os.WNOHANG)[0]):
                alive.append(process)
    return alive


def _launcher_main(parent: int, arguments: list[str], ranks: int, log: Path, fresh: bool) -> None:
    """Starts the ranks, either itself or by executing torchrun, and terminates the others when one fails."""
    os.setsid()  # Ctrl-C must reach only the parent process
    end_with_parent(signal.SIGTERM, parent)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if fresh:
        command = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--monitor-interval", "0.1"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "vit.train"]
        os.execv(sys.executable, [sys.executable, *command, *arguments])
    # The ranks are forked before the store starts its thread, but have to know its port.
    listener = socket.create_server(("127.0.0.1", 0))
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_rank_main, args=(arguments, r, ranks, os.getpid(), listener)) for r in range(ranks)
    ]
    for process in processes:
        process.start()
    port = listener.getsockname()[1]
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    running = {process.sentinel: process for process in processes}
    while running:
        ended = [running.pop(sentinel) for sentinel in wait(list(running))]  # type: ignore[arg-type]
        for process in ended:
            process.join()
        if any(process.exitcode for process in ended):
            break
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(30)  # as long as torchrun waits
        process.kill()
    del store
    os._exit(max(abs(p.exitcode or 0) for p in processes))


def _rank_main(arguments: list[str], rank: int, ranks: int, launcher: int, listener: socket.socket) -> None:
    """One rank, with torchrun's environment variables.  It ends when its launcher dies."""
    end_with_parent(signal.SIGTERM, launcher)
    gc.freeze()  # no garbage collection of inherited objects, which would copy their pages
    port = listener.getsockname()[1]
    listener.close()
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RUN_ID="verify")
    train.main(arguments)
