"""The job that writes the data sets, and how it survives preemption, time limits and kills."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil
from submitit.helpers import DelayedSubmission

from jobs.node import slurm_job
from jobs.node.restart_policy import wordless
from jobs.node.signals import back_to_queue
from vit.run.folder import RunFolder

MAX_WORDLESS = 3  # starts in a row that were killed from outside; then the job is given up


def write_command(arguments: Sequence[str], cpus: int) -> list[str]:
    """What writes a data set, or goes on with it."""
    workers = [] if "--workers" in arguments else ["--workers", str(cpus)]
    return [sys.executable, "-u", "-m", "data_prep.write_beton", *arguments, *workers]


class PrepFailedError(RuntimeError):
    """A data set could not be written."""


@dataclass(frozen=True)
class PrepJob:
    """One task.  `write_beton` goes on where it was, whatever ended it: all there is to do is to call it again."""

    run: str  # its folder
    sets: tuple[tuple[str, ...], ...]  # the arguments of write_beton for each
    cpus: int

    def __call__(self) -> str:
        """Writes what is left; returns "finished" or "stopped".  Raises PrepFailedError."""
        folder = RunFolder(Path(self.run))
        if (killed := wordless(folder.events())) > MAX_WORDLESS:
            self._give_up(
                f"{killed} starts in a row were killed from outside; perhaps they need more memory (job: mem)"
            )
        folder.record("supervising", life=slurm_job.life(), node=slurm_job.node())
        stopped: list[int] = []

        def stop(number: int, _: FrameType | None) -> None:
            stopped.append(number)
            _terminate()

        signal.signal(signal.SIGTERM, stop)
        for arguments in self.sets:
            code = (
                0
                if stopped
                else _write(write_command(arguments, int(os.environ.get("SLURM_CPUS_PER_TASK", self.cpus))))
            )
            if stopped:
                folder.record("stopped")
                back_to_queue()
                return "stopped"
            if code:
                self._give_up(
                    f"write_beton {shlex.join(arguments)} ended with {code}; {folder.jobs} holds what it said"
                )
        folder.record("finished")
        return "finished"

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit at preemption or near the time limit: what is written stays, the same job goes on."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _terminate()
        while any(_alive(process.pid) for process in _writers):  # not `wait`, whose lock the interrupted one holds
            time.sleep(0.05)
        RunFolder(Path(self.run)).record("stopped")
        if slurm_job.is_mute() or not slurm_job.answers():
            os._exit(slurm_job.REQUEUED)  # submitit asks once: the batch script does it, as soon as it is heard
        return DelayedSubmission(self)

    def _give_up(self, why: str) -> None:
        RunFolder(Path(self.run)).record("gave up", why=why)
        raise PrepFailedError(why)


_writers: list["subprocess.Popen[bytes]"] = []


def _write(words: Sequence[str]) -> int:
    # Slurm signals all processes of a job: the writer ignores the signal that is meant for submitit.
    _writers[:] = [subprocess.Popen(["sh", "-c", f"trap '' USR2; exec {shlex.join(words)}"])]
    return _writers[0].wait()


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _terminate() -> None:
    """Ends the writer, which keeps what it has."""
    for process in _writers:
        process.terminate()
