"""Starts processes as forks of a server that has already done their imports, so that a rank starts in milliseconds.

It is multiprocessing's fork server, one per node, started before anything else in the job.  The server only imports:
it has one thread and never touches a GPU.  It ends with its supervisor, and the kernel then sends SIGTERM to its forks.
"""

import atexit
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from setproctitle import setproctitle, setthreadtitle

from jobs.node import forkserver_process
from jobs.node.forkserver_process import is_alive
from vit.run.garbage_collection import resume_collection
from vit.run.parent import end_with_parent

# What the server imports: the modules that its forks run, what optimizers import when they are constructed (which
# takes seconds), and the main module's imports (submitit's), because multiprocessing imports it again in every fork.
IMPORTED = ("vit.train", "torch._dynamo", "vit.node_check", "submitit.core.submission")
PRELOADED = ("jobs.node.forkserver_first", *IMPORTED, "jobs.node.forkserver_compiler", "jobs.node.forkserver_ready")
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}
KILL_SECONDS = 20  # after SIGKILL; a process that waits in the kernel for a dead disk or GPU may never end

_context = multiprocessing.get_context("forkserver")
_running: list["Process"] = []
_deferred: list[int] | None = None  # signals received while a process is being started; None at any other time


class StartError(RuntimeError):
    """No process can be started: the server's imports fail, or take too long."""


@dataclass(frozen=True)
class Process:
    """A process that was started here."""

    handle: BaseProcess
    os_process: psutil.Process

    @property
    def exit_code(self) -> int | None:
        """As in subprocess; 255 if the server has died; None while it runs.  Not safe in signal handlers."""
        return self.handle.exitcode

    def wait(self) -> int | None:
        """Waits until it exits; returns the exit code."""
        self.handle.join()
        return self.exit_code

    def alive(self) -> bool:
        """Whether any thread is left: the main thread may end before others, which keep files and locks open."""
        return not connection.wait([self.handle.sentinel], 0) or is_alive(self.os_process)

    def send(self, number: int) -> None:
        """Sends a signal; does nothing if the process is gone."""
        with suppress(psutil.NoSuchProcess):
            self.os_process.send_signal(number)


def ensure_running() -> None:
    """Starts the server and its imports if it is not running; returns at once."""
    with _signals_deferred():
        _kill_suspended_server()
        if not forkserver_process.is_running():
            _block_stop_signals()
            resource_tracker.ensure_running()  # this unblocks SIGINT and SIGTERM
            _block_stop_signals()  # the server inherits the mask: it never receives the signals that stop the ranks
            forkserver_process.start(PRELOADED)


def start(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    stdout: Connection | None = None,
    timeout_seconds: float = 600,
) -> Process:
    """Starts `python -u -m module arguments`; its output is appended to a log, or stdout goes to `stdout` if given.

    The environment is that of this process, updated by `environment`.  Raises StartError.
    """
    environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ) | dict(environment)
    deadline = time.monotonic() + timeout_seconds
    for retry in (True, False):
        try:
            ensure_running()
            while forkserver_process.is_running() and not forkserver_process.is_ready():
                if time.monotonic() > deadline:
                    raise StartError(f"the imports of {module} did not finish in {timeout_seconds:.0f} s")
                time.sleep(0.01)
            return _fork((module, list(arguments), environment, str(log), stdout))
        except (EOFError, OSError, psutil.NoSuchProcess) as error:  # the server died, or the new process did
            if not retry:
                raise StartError(f"{module} cannot be started: {type(error).__name__} {error}") from error
    raise AssertionError


def start_with_pipe(
    module: str, arguments: Sequence[str], log: Path, timeout_seconds: float
) -> tuple[Process, Connection]:
    """Like `start`; also returns a pipe from which its standard output can be read."""
    reader, writer = _context.Pipe(duplex=False)
    with writer:
        return start(module, arguments, {}, log, writer, timeout_seconds), reader


def running() -> list[Process]:
    """All processes that were started here and still run."""
    return [process for process in _running if process.alive()]


def stop_processes(processes: Sequence[Process], number: int, grace_seconds: float) -> None:
    """Sends a signal, then SIGKILL to those still running after the grace time; waits until all have ended."""
    deadline = time.monotonic() + grace_seconds
    for process in processes:
        process.send(number)
    while left := [process for process in processes if process.alive()]:
        if time.monotonic() > deadline:
            for process in left:
                process.send(signal.SIGKILL)
        if time.monotonic() > deadline + KILL_SECONDS:
            for process in left:  # else multiprocessing waits for them when this process exits
                multiprocessing.process._children.discard(process.handle)  # type: ignore[attr-defined]
            break
        time.sleep(0.02)


def deferred_while_starting(
    handler: Callable[[int, FrameType | None], Any],
) -> Callable[[int, FrameType | None], Any]:
    """Wraps a signal handler so that it runs only once a process being started is in `running()`, and gets signaled."""

    def deferring(number: int, frame: FrameType | None) -> None:
        if _deferred is None:
            handler(number, frame)
        else:
            _deferred.append(number)

    return deferring


def _fork(arguments: tuple[object, ...]) -> Process:
    with _signals_deferred():
        # A process whose output nobody will read any more (`stdout` is given) is terminated when this process exits.
        process = _context.Process(
            target=_run_module, args=(forkserver_process.pid(), *arguments), daemon=arguments[-1] is not None
        )
        process.start()
        assert process.pid is not None
        _running[:] = [each for each in _running if each.alive()]
        _running.append(Process(process, psutil.Process(process.pid)))
        return _running[-1]


def _kill_suspended_server() -> None:
    """A server that was stopped by SIGSTOP would never respond."""
    if (pid := forkserver_process.pid()) is not None:
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(pid)
            if server.status() == psutil.STATUS_STOPPED:
                server.kill()
                while is_alive(server):
                    time.sleep(0.01)


def _block_stop_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defers the signals that stop the job; the mask alone is not enough, because other threads receive signals too."""
    global _deferred
    _deferred, before = [], signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        yield
    finally:
        numbers, _deferred = _deferred, None
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in numbers:
            signal.raise_signal(number)


def _run_module(
    server: int, module: str, arguments: list[str], environment: dict[str, str], log: str, stdout: Connection | None
) -> None:
    """In the new process: does what Python does for `-u -m module`."""
    end_with_parent(signal.SIGTERM, server)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    resume_collection()  # but not of objects inherited from the server
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(file, 2)
    os.dup2(file if stdout is None else stdout.fileno(), 1)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # the folder that the server found may be gone
    rank = f" (rank {environment['RANK']})" if "RANK" in environment else ""
    setproctitle(" ".join([f"python -m {module}{rank}", *arguments]))
    setthreadtitle(module)  # the kernel's short name: Slurm loses track of processes whose short name has a blank
    try:
        importlib.import_module(module).main(arguments)
    except Exception as error:  # prints it as Python does; multiprocessing would add text of its own
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
    finally:
        if sys.version_info < (3, 13):  # from 3.13 on multiprocessing does it
            atexit._run_exitfuncs()
