"""Attempts at a run that are killed: the trainer's own command, in real processes, with real signals.

Ranks are forks of this process, which has imported all that they need: they start in a second.  `fresh` ones are
started by torchrun, each from nothing.
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
import torch._dynamo  # optimizers import it when they are made, which takes seconds
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from vit import train
from vit.checkpoint.format import find_checkpoints, read_manifest
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines

VICTIMS = ("a rank", "all ranks", "the launcher", "everything")  # whose death ends an attempt

_DEATH_SIGNAL, _SUBREAPER = 1, 36  # prctl's PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER


class EndedError(RuntimeError):
    """An attempt that nobody killed did not finish.  The message holds its last words."""


@dataclass(frozen=True)
class Kill:
    """A kill that struck."""

    seconds: float  # after the attempt was launched
    step: int  # the last one that was done
    ranks: int
    lost: int  # steps that were done and are to be done again
    victim: str  # "rank 2", or another of VICTIMS


class Attempt:
    """The ranks of one run, from their launch to their end.  Every child of this process is taken to be one of them."""

    def __init__(self, run: RunFolder, arguments: list[str], ranks: int, fresh: bool) -> None:
        self.run, self.ranks = run, ranks
        self.launched = time.time()
        self._log = run.logs / "attempts.log"
        run.logs.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)  # a pool of threads would not survive the fork
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)  # whoever loses its parent becomes our child: none is lost from sight
        self._code: int | None = None  # the launcher's, once it is known
        self._launcher = os.fork()
        if self._launcher == 0:
            try:
                _be_launcher([*arguments, "--run-dir", str(run.path)], ranks, self._log, fresh)
            finally:
                os._exit(1)

    def going(self) -> bool:
        """Whether the launcher is still there."""
        if self._code is None:
            pid, status = os.waitpid(self._launcher, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is None

    def started(self) -> dict[str, float] | None:
        """The `time` and the `step` at which this attempt went on; None before it does."""
        event = self.run.last("started")
        return event if event and event["time"] >= self.launched else None

    def finish(self) -> None:
        """Waits for the end.  Raises EndedError if that is not the end of the run."""
        while self.going():
            time.sleep(0.01)
        self.end()
        if self.run.finished() is None:
            words = "\n".join(f"  {line}" for line in self._log.read_text(errors="replace").splitlines()[-15:])
            raise EndedError(
                f"{self.ranks} ranks ended with exit code {self._code}, though nobody killed them:\n{words}"
            )

    def kill(self, chance: random.Random) -> Kill:
        """Sends SIGKILL, to whom chance will have it, and waits until nothing is left of the attempt."""
        victim, victims = self.victims(chance.choice(VICTIMS), chance.randrange(self.ranks))
        step, seconds = last_step(self.run), time.time() - self.launched
        self.strike(victim, victims)
        self.end()
        saved = find_checkpoints(self.run.checkpoints)
        kept = int(read_manifest(saved[0])["step"]) if saved else 0
        return Kill(seconds, step, self.ranks, max(0, step - kept), victim)

    def victims(self, victim: str, number: int) -> tuple[str, list[psutil.Process]]:
        """The processes that a kill of `victim` means; of the launcher alone if it has not yet started the others.

        `number` is the rank that "a rank" and "a writer" mean; the name that is returned tells it.
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

    def strike(self, victim: str, victims: list[psutil.Process]) -> None:
        """Sends SIGKILL to all of them, and with everything to what they have started meanwhile."""
        launcher = psutil.Process(self._launcher)
        if victim == "everything":
            launcher.suspend()  # so that it starts nothing more
            victims = [*victims, *launcher.children(recursive=True)]
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def end(self, patience: float = 60.0) -> None:
        """Waits until the launcher and all its descendants are gone.  Kills them after `patience` seconds."""
        deadline = time.monotonic() + patience
        while self.going() and time.monotonic() < deadline:
            time.sleep(0.005)
        while self.going() or _descendants():
            for process in _descendants() if time.monotonic() > deadline else []:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.01)


def train_and_kill(
    run: RunFolder, arguments: list[str], steps: int, ranks: list[int], kills: int, seed: int, fresh: bool
) -> Iterator[Kill]:
    """Trains a run on the next number of `ranks` at each attempt, and yields the kills that end the first `kills`.

    When, and who, is random: in the middle of a step, of a checkpoint, of an evaluation, or before the first step.
    """
    chance = random.Random(seed)
    # Each waits for a step of its own: they are spread over the whole run, and all find it going.
    targets = sorted(chance.choices(range(max(1, steps - 4)), k=kills))
    done, seconds = 1, 0.3  # of the attempts so far: their steps and how long these took
    for i, target in enumerate(targets):
        attempt = Attempt(run, arguments, ranks[i % len(ranks)], fresh)
        try:
            early = chance.random() < 0.15
            while attempt.going() and not early and not (attempt.started() and last_step(run) >= target):
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 1 if early else 2 * seconds / done))
            if not attempt.going():  # it finished, or failed
                attempt.finish()
                return
            kill = attempt.kill(chance)
        finally:
            attempt.end(patience=0)
        if began := attempt.started():
            done += max(0, kill.step - int(began["step"]))
            seconds += kill.seconds - (began["time"] - attempt.launched)
        yield kill
    Attempt(run, arguments, ranks[kills % len(ranks)], fresh).finish()


def last_step(run: RunFolder) -> int:
    """The newest step on the learning curve."""
    return max((record["step"] for record in read_lines(run.metrics)), default=0)


def _descendants() -> list[psutil.Process]:
    """What is left of our children and theirs; those that we inherited and that have ended are buried.

    A process is a zombie once its first thread has ended: others may still hold its files and locks.  Only one that can
    be buried is gone.
    """
    left = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            zombie = process.status() == psutil.STATUS_ZOMBIE and process.ppid() == os.getpid()
            if not (zombie and os.waitpid(process.pid, os.WNOHANG)[0]):
                left.append(process)
    return left


def _be_launcher(arguments: list[str], ranks: int, log: Path, fresh: bool) -> None:
    """What torchrun does, or torchrun itself: starts the ranks, and ends the others when one fails."""
    os.setsid()  # Ctrl-C is for the process above
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if fresh:
        command = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--monitor-interval", "0.1"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "vit.train"]
        os.execv(sys.executable, [sys.executable, *command, *arguments])
    # The ranks are forked before the store, which is a thread, but must know its port.
    listener = socket.create_server(("127.0.0.1", 0))
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_be_rank, args=(arguments, r, ranks, os.getpid(), listener)) for r in range(ranks)
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
        process.join(30)  # torchrun's patience
        process.kill()
    del store
    os._exit(max(abs(p.exitcode or 0) for p in processes))


def _be_rank(arguments: list[str], rank: int, ranks: int, launcher: int, listener: socket.socket) -> None:
    """One rank, in torchrun's environment.  It ends with its launcher, however early that dies."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != launcher:
        os._exit(1)
    gc.freeze()  # what was there before is not this rank's to collect
    port = listener.getsockname()[1]
    listener.close()
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RUN_ID="verify")
    train.main(arguments)
