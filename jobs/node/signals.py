"""Signal handling of a job that must stop: signals its ranks, which save and exit, and requeues itself."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import psutil

from jobs.node import forkserver, slurm_job
from jobs.node.forkserver_process import is_alive
from jobs.node.slurm_job import STOP_SECONDS
from vit.run.parent import end_with_parent

_received: list[int] = []  # stop signals.  Not an Event: a second handler would wait for the lock of the first one
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StoppedError(Exception):
    """The job must stop, and there are no ranks to signal."""


def stop_requested() -> bool:
    """Whether this job has received a signal to stop."""
    return bool(_received)


def wait_for_stop_request() -> str:
    """Waits until this job has received a signal to stop; returns the name of the first one."""
    while not _received:
        time.sleep(0.1)
    return signal.Signals(_received[0]).name


def raise_on_sigterm() -> None:
    """Until there are ranks to signal, SIGTERM raises StoppedError.

    submitit ignores SIGTERM.  torch handles it, but takes seconds to import.
    """
    signal.signal(signal.SIGTERM, forkserver.deferred_while_starting(_raise_stopped))
    if callable(submitit_handler := signal.getsignal(signal.SIGUSR2)):
        signal.signal(signal.SIGUSR2, forkserver.deferred_while_starting(submitit_handler))


def install_handlers() -> None:
    """Installs handlers that stop the ranks; the kernel sends SIGTERM here when the parent process ends.

    On the first node submitit keeps SIGUSR2, on which it saves and requeues.  On other nodes submitit does nothing.
    Raises StoppedError if submitit's local executor, the parent process of a local run, has ended already.
    """
    _received.clear()
    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forkserver.deferred_while_starting(_forward_stop))
    if slurm_job.node_rank() > 0:
        signal.signal(signal.SIGUSR2, forkserver.deferred_while_starting(_forward_stop))
    end_with_parent(signal.SIGTERM)
    if os.environ.get("SUBMITIT_EXECUTOR") == "local" and os.environ["SUBMITIT_LOCAL_JOB_ID"] != str(os.getppid()):
        raise StoppedError("the process that started this job has ended")


def ignore_stop_signals() -> None:
    """From here on only SIGKILL ends this process: it is about to exit."""
    for number in (*FORWARDED, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def stop_ranks() -> None:
    """Makes the ranks on this node save and exit, and waits until they have."""
    _received.append(signal.SIGUSR2)
    for number in FORWARDED:  # SIGTERM follows SIGUSR2 while this still waits, and must not interrupt it
        signal.signal(number, signal.SIG_IGN)
    forkserver.stop_processes(forkserver.running(), signal.SIGUSR2, STOP_SECONDS)


def requeue_and_exit(exclude: Sequence[str] = ()) -> None:
    """Requeues this job, unless Slurm has ended it already, and exits; returns if Slurm refuses.

    Slurm requeues a preempted job at the end of its grace time.  One that exits sooner, with exit code 0, counts as
    completed, unless it requeues itself.
    """
    if slurm_job.job_id() is None:
        return
    ignore_stop_signals()
    if refused := slurm_job.requeue(exclude):
        print(f"the job could not be requeued: {refused}", file=sys.stderr)
    else:
        sys.exit(slurm_job.REQUEUED)


def stop_job(nodes: int) -> None:
    """Stops this job as at a preemption: the ranks of all nodes save at their next step, and it is requeued."""
    if nodes == 1 or slurm_job.send_signal("USR2"):
        os.kill(os.getpid(), signal.SIGUSR2)


def stop_when_process_ends(process_id: int) -> None:
    """Makes a local run save and exit when the command that started it has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(process_id)
        while is_alive(process):
            time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _raise_stopped(number: int, _: FrameType | None) -> None:
    raise StoppedError(signal.Signals(number).name)


def _forward_stop(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT and stop_requested():
        raise KeyboardInterrupt  # a second Ctrl-C
    _received.append(number)
    if not (ranks := forkserver.running()):
        raise StoppedError(signal.Signals(number).name)
    for rank in ranks:
        rank.send(signal.SIGUSR2)
