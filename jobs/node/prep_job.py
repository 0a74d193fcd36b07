"""The job that writes data sets, and resumes after preemption, time limits and kills."""

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
from jobs.node.dependents import release_dependents
from jobs.node.job_spec import READ_SECONDS
from jobs.node.restart_policy import count_silent_starts
from jobs.node.run_over import exit_if_over
from jobs.node.signals import requeue_and_exit
from vit.run.folder import RunFolder
from vit.run.progress import show

MAX_SILENT_STARTS = 3  # in a row, killed from outside; after one more the job is given up


def write_command(arguments: Sequence[str], cpus: int) -> list[str]:
    """The command that writes a data set, or resumes writing it."""
    workers = [] if "--workers" in arguments else ["--workers", str(cpus)]
    return [sys.executable, "-u", "-m", "data_prep.write_beton", *arguments, *workers]


class PrepFailedError(RuntimeError):
    """A data set could not be written."""


@dataclass(frozen=True)
class PrepJob:
    """One task.  `write_beton` resumes where it was, however it ended, so the job only has to call it again."""

    run: str  # its folder
    sets: tuple[tuple[str, ...], ...]  # the arguments of write_beton for each data set
    cpus: int

    def __call__(self) -> str:
        """Writes the data sets that are not complete; returns "finished" or "stopped".  Raises PrepFailedError."""
        folder = RunFolder(Path(self.run), patience=READ_SECONDS)
        exit_if_over(folder)
        if (killed := count_silent_starts(folder.events())) > MAX_SILENT_STARTS:
            self._give_up(f"{killed} starts in a row were killed from outside; they may need more memory (job: mem)")
        folder.record("supervising", life=slurm_job.start_id(), node=slurm_job.node_name())
        stopped: list[int] = []

        def stop(number: int, _: FrameType | None) -> None:
            stopped.append(number)
            _terminate()

        signal.signal(signal.SIGTERM, stop)
        cpus = slurm_job.cpus_on_node(self.cpus)
        for arguments in self.sets:
            code = 0 if stopped else _write(write_command(arguments, cpus))
            if stopped:
                folder.record("stopped")
                requeue_and_exit()
                return "stopped"
            if code:
                self._give_up(
                    f"write_beton {shlex.join(arguments)} ended with exit code {code}; its output is in {folder.jobs}"
                )
        folder.record("finished")
        if released := release_dependents():
            show(f"job {', '.join(released)} need not wait for this one any more", lasting=True)
        return "finished"

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit at preemption or near the time limit: stops the writer, and requeues the same job."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _terminate()
        while any(_alive(process.pid) for process in _writers):  # not `wait`: the interrupted `wait` holds its lock
            time.sleep(0.05)
        RunFolder(Path(self.run)).record("stopped")
        if slurm_job.has_no_slurm_commands() or not slurm_job.controller_responds():
            os._exit(slurm_job.REQUEUED)  # submitit asks only once; the batch script asks until Slurm responds
        return DelayedSubmission(self)

    def _give_up(self, why: str) -> None:
        RunFolder(Path(self.run)).record("gave up", why=why)
        raise PrepFailedError(why)


_writers: list["subprocess.Popen[bytes]"] = []


def _write(command: Sequence[str]) -> int:
    # Slurm signals all processes of a job: the writer ignores the signal that is meant for submitit.
    _writers[:] = [subprocess.Popen(["sh", "-c", f"trap '' USR2; exec {shlex.join(command)}"])]
    return _writers[0].wait()


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _terminate() -> None:
    """Ends the writer, which keeps what it has written so far."""
    for process in _writers:
        process.terminate()
