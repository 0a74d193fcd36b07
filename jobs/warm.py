"""Processes that start warm: forks of one that has done all their imports, so that a rank is there in milliseconds.

It is multiprocessing's fork server, one a node, which a job starts before all else.  It imports and does nothing
besides: it has no threads, and has not touched a GPU.  It ends with its supervisor, and the kernel then tells its
forks.
"""

import ctypes
import gc
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
from setproctitle import setproctitle, setthreadtitle

# What the server imports: what makes it one, what its forks run, what optimizers import when they are made, which takes
# seconds, and what the forks find in this process.
PRELOADED = ("jobs.warm_server", "vit.train", "torch._dynamo", "vit.health", "submitit.core.submission")
STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}
GONE_SECONDS = 30  # after SIGKILL; what a dead disk or GPU holds in the kernel may stay for ever
LONGEST_FOLDER = 60  # characters; the path of a socket may have 107

_context = multiprocessing.get_context("forkserver")
_running: list["Process"] = []


@dataclass(frozen=True)
class Process:
    """A process that was started here, and what the kernel knows it by."""

    started: BaseProcess
    kernel: psutil.Process

    @property
    def exit_code(self) -> int | None:
        """As subprocess has it; None while it runs.  Not for signal handlers."""
        return self.started.exitcode

    def wait(self) -> int | None:
        """Waits for its end; the exit code."""
        self.started.join()
        return self.exit_code

    def alive(self) -> bool:
        """Whether it still does something."""
        return self.kernel.is_running() and _status(self.kernel) != psutil.STATUS_ZOMBIE

    def send(self, number: int) -> None:
        """Sends a signal, if there is anybody left to get it."""
        with suppress(psutil.NoSuchProcess):
            self.kernel.send_signal(number)


def prepare() -> None:
    """Has the server begin with its imports, if it does not run; returns at once."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # which OpenMP reads while it is imported
    os.environ.setdefault("SPT_NOENV", "1")  # the titles of processes do not overwrite their environment
    _context.set_forkserver_preload(list(PRELOADED))
    resource_tracker.ensure_running()  # which unblocks what it blocks
    with _untold():  # the server inherits what is blocked: it never hears what the ranks are told
        if len(tempfile.gettempdir()) > LONGEST_FOLDER:
            tempfile.tempdir, usual = "/tmp", tempfile.tempdir
            util.get_temp_dir()  # which is asked once
            tempfile.tempdir = usual
        forkserver.ensure_running()


def start(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path, said: Connection | None = None
) -> Process:
    """Starts `python -m module arguments` with all words to the end of a log; standard output to `said`, if given.

    The environment is this process's and what is given besides.
    """
    prepare()
    with _untold():  # else a signal could find it started, and not yet known
        process = _context.Process(
            target=_be,
            args=(module, list(arguments), dict(os.environ) | dict(environment), str(log), said),
            daemon=said is not None,  # nobody waits for a word any more when this process ends
        )
        process.start()
        assert process.pid is not None
        _running[:] = [each for each in _running if each.alive()]
        _running.append(Process(process, psutil.Process(process.pid)))
        return _running[-1]


def ask(module: str, arguments: Sequence[str], log: Path) -> tuple[Process, Connection]:
    """Starts it as `start` does; the other is what it says on its standard output."""
    reader, writer = _context.Pipe(duplex=False)
    with writer:
        return start(module, arguments, {}, log, writer), reader


def running() -> list[Process]:
    """All that were started here and still run."""
    return [process for process in _running if process.alive()]


def end(processes: Sequence[Process], number: int, patience_seconds: float) -> None:
    """Sends a signal to those that run, and SIGKILL to those that still do after a while; waits until they are gone."""
    deadline = time.monotonic() + patience_seconds
    for process in processes:
        process.send(number)
    while (
        left := [process for process in processes if process.alive()]
    ) and time.monotonic() < deadline + GONE_SECONDS:
        if time.monotonic() > deadline:
            for process in left:
                process.send(signal.SIGKILL)
        time.sleep(0.02)


@contextmanager
def _untold() -> Iterator[None]:
    """What tells a job to stop waits meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE


def _be(module: str, arguments: list[str], environment: dict[str, str], log: str, said: Connection | None) -> None:
    """In the new process: what Python does for `-u -m module`."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: it ends with the server
    supervisor = multiprocessing.parent_process()
    if supervisor is None or not supervisor.is_alive():
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    gc.freeze()  # what was there before is not this process's to collect
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(file, 2)
    os.dup2(file if said is None else said.fileno(), 1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    rank = f" (rank {environment['RANK']})" if "RANK" in environment else ""
    setproctitle(" ".join([f"python -m {module}{rank}", *arguments]))
    setthreadtitle(module)  # the short name: Slurm loses sight of processes that have a blank in it
    try:
        importlib.import_module(module).main(arguments)
    except Exception:  # as Python does, and multiprocessing with words of its own
        traceback.print_exc()
        sys.exit(1)
