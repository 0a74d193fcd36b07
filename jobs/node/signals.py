"""What a job does when Slurm wants its node back: it tells its ranks, which save and leave, and has itself requeued."""

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

import psutil

from jobs.node import forkserver, slurm_job
from jobs.node.slurm_job import STOP_SECONDS

_told: list[int] = []  # not an Event, whose lock a second handler would wait for while the first one holds it
_ranks_are_told = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StoppedError(Exception):
    """The job is to stop, and there are no ranks to tell."""


def told() -> bool:
    """Whether this job was told to stop."""
    return bool(_told)


def wait_until_told() -> None:
    """Returns when this job is told to stop."""
    while not _told:
        time.sleep(0.1)


def leave_when_told() -> None:
    """Until there are ranks to tell.  submitit ignores SIGTERM, and torch, which will not, takes seconds to import."""
    signal.signal(signal.SIGTERM, forkserver.patiently(_leave))
    if callable(submitits := signal.getsignal(signal.SIGUSR2)):
        signal.signal(signal.SIGUSR2, forkserver.patiently(submitits))


def install() -> None:
    """Takes over the signals of this process; ends it with the one that started it.

    USR2 stays submitit's on the first node, where it saves and requeues.  On others submitit does nothing.
    """
    _told.clear()
    for number in _ranks_are_told:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forkserver.patiently(_stop))
    if slurm_job.task() > 0:
        signal.signal(signal.SIGUSR2, forkserver.patiently(_stop))
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def ignore() -> None:
    """From here on nothing stops this process, apart from SIGKILL: it is leaving."""
    for number in (*_ranks_are_told, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def stop_ranks() -> None:
    """Tells the ranks on this node to save and leave, and waits until they have."""
    _told.append(signal.SIGUSR2)
    for number in _ranks_are_told:  # TERM follows USR2 while we still wait, and must not overtake us
        signal.signal(number, signal.SIG_IGN)
    forkserver.end(forkserver.running(), signal.SIGUSR2, STOP_SECONDS)


def back_to_queue() -> None:
    """Has Slurm start this job again, unless Slurm has ended it, and ends the process; returns where Slurm will not.

    A job that is preempted has its grace time, and is requeued at its end.  One that leaves sooner, and well, is done
    for Slurm, unless it asks for more.
    """
    if slurm_job.job() is None:
        return
    ignore()
    if refused := slurm_job.requeue():
        print(f"the job could not be requeued: {refused}", file=sys.stderr)
    else:
        sys.exit(slurm_job.REQUEUED)


def end_with(process_id: int) -> None:
    """A local run belongs to the command that started it: when that is gone, save and leave."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(process_id)
        while forkserver.alive(process):
            time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(number: int, _: FrameType | None) -> None:
    raise StoppedError(signal.Signals(number).name)


def _stop(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT and told():
        raise KeyboardInterrupt  # a second Ctrl-C
    _told.append(number)
    if not (ranks := forkserver.running()):
        raise StoppedError(signal.Signals(number).name)
    for rank in ranks:
        rank.send(signal.SIGUSR2)
