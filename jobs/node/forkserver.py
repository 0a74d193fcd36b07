"""Processes that start warm: forks of one that has done all their imports, so that a rank is there in milliseconds.

It is multiprocessing's fork server, one a node, which a job starts before all else.  It imports and does nothing
besides: it has one thread, and has not touched a GPU.  It ends with its supervisor; the kernel then tells its forks.
"""

import atexit
import ctypes
import gc
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
from multiprocessing import connection, forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from setproctitle import setproctitle, setthreadtitle

# What the server imports: what makes it one, what its forks run, what optimizers import when they are made, which takes
# seconds, and what the forks find in this process.
WANTED = ("vit.train", "torch._dynamo", "vit.node_check", "submitit.core.submission")
PRELOADED = ("jobs.node.forkserver_first", *WANTED, "jobs.node.forkserver_ready")
READY_VARIABLE = "VIT_WARM"  # a file that is there once all is imported
STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}
GONE_SECONDS = 20  # after SIGKILL; what a dead disk or GPU holds in the kernel may stay for ever
LONGEST_FOLDER = 60  # characters; the path of a socket may have 107

_context = multiprocessing.get_context("forkserver")
_running: list["Process"] = []
_held: list[int] | None = None  # signals that wait until a process that is being started is known


class ColdError(RuntimeError):
    """No process can be started: the imports fail, or do not end."""


@dataclass(frozen=True)
class Process:
    """A process that was started here, and what the kernel knows it by."""

    started: BaseProcess
    kernel: psutil.Process

    @property
    def exit_code(self) -> int | None:
        """As subprocess has it, or 255 if the server has died; None while it runs.  Not for signal handlers."""
        return self.started.exitcode

    def wait(self) -> int | None:
        """Waits for its end; the exit code."""
        self.started.join()
        return self.exit_code

    def alive(self) -> bool:
        """Whether anything of it is left: its first thread may end before others, which hold its files and locks."""
        return not connection.wait([self.started.sentinel], 0) or alive(self.kernel)

    def send(self, number: int) -> None:
        """Sends a signal, if there is anybody left to get it."""
        with suppress(psutil.NoSuchProcess):
            self.kernel.send_signal(number)


def prepare() -> None:
    """Has the server begin with its imports, if it does not run; returns at once."""
    _context.set_forkserver_preload(list(PRELOADED))
    with _holding_signals():
        _end_stopped_server()
        if not _server_lives():
            _sign().unlink(missing_ok=True)
        _block()
        resource_tracker.ensure_running()  # which unblocks two of them
        _block()  # the server inherits what is blocked: it never hears what the ranks are told
        with _environment(OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1", SPT_NOENV="1", **{READY_VARIABLE: str(_sign())}):
            forkserver.ensure_running()


def start(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    said: Connection | None = None,
    patience_seconds: float = 600,
) -> Process:
    """Starts `python -u -m module arguments` with all words to the end of a log; standard output to `said`, if given.

    The environment is this process's and what is given besides.  Raises ColdError.
    """
    environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ) | dict(environment)
    deadline = time.monotonic() + patience_seconds
    for again in (True, False):
        prepare()
        while _server_lives() and not _sign().exists():
            if time.monotonic() > deadline:
                raise ColdError(f"the imports of {module} did not end in {patience_seconds:.0f} s")
            time.sleep(0.01)
        try:
            return _fork((module, list(arguments), environment, str(log), said))
        except (EOFError, OSError, psutil.NoSuchProcess) as error:  # the server has died, or the new one has
            if not again:
                raise ColdError(f"{module} cannot be started: {type(error).__name__} {error}") from error
    raise AssertionError


def ask(module: str, arguments: Sequence[str], log: Path, patience_seconds: float) -> tuple[Process, Connection]:
    """Starts it as `start` does; the other is what it says on its standard output."""
    reader, writer = _context.Pipe(duplex=False)
    with writer:
        return start(module, arguments, {}, log, writer, patience_seconds), reader


def running() -> list[Process]:
    """All that were started here and still run."""
    return [process for process in _running if process.alive()]


def end(processes: Sequence[Process], number: int, patience_seconds: float) -> None:
    """Sends a signal to those that run, and SIGKILL to those that still do after a while; waits until they are gone."""
    deadline = time.monotonic() + patience_seconds
    for process in processes:
        process.send(number)
    while left := [process for process in processes if process.alive()]:
        if time.monotonic() > deadline:
            for process in left:
                process.send(signal.SIGKILL)
        if time.monotonic() > deadline + GONE_SECONDS:
            for process in left:
                multiprocessing.process._children.discard(process.started)  # type: ignore[attr-defined]  # or the exit waits for it
            break
        time.sleep(0.02)


def alive(process: psutil.Process) -> bool:
    """Whether a process is more than something to be taken leave of."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def patiently(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], Any]:
    """A handler of a signal that waits until a process that is being started is known, or it would not be told."""

    def patient(number: int, frame: FrameType | None) -> None:
        if _held is None:
            handler(number, frame)
        else:
            _held.append(number)

    return patient


def _fork(arguments: tuple[object, ...]) -> Process:
    with _holding_signals():
        # Nobody waits for what is said when this process ends.
        process = _context.Process(target=_be, args=(_server(), *arguments), daemon=arguments[-1] is not None)
        process.start()
        assert process.pid is not None
        _running[:] = [each for each in _running if each.alive()]
        _running.append(Process(process, psutil.Process(process.pid)))
        return _running[-1]


def _server() -> int | None:
    return forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]


def _server_lives() -> bool:
    try:
        return (number := _server()) is not None and alive(psutil.Process(number))
    except psutil.NoSuchProcess:
        return False


def _end_stopped_server() -> None:
    """One that somebody has stopped would never answer."""
    if (number := _server()) is not None:
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(number)
            if server.status() == psutil.STATUS_STOPPED:
                server.kill()
                while alive(server):
                    time.sleep(0.01)


def _sign() -> Path:
    """What the server makes when it is ready."""
    if len(tempfile.gettempdir()) > LONGEST_FOLDER:
        tempfile.tempdir, usual = "/tmp", tempfile.tempdir
        util.get_temp_dir()  # which is asked once
        tempfile.tempdir = usual
    return Path(util.get_temp_dir(), "ready")


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


@contextmanager
def _holding_signals() -> Iterator[None]:
    """What tells the job to stop waits meanwhile; the mask alone does not do it, as other threads take signals too."""
    global _held
    _held, before = [], signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        yield
    finally:
        numbers, _held = _held, None
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in numbers:
            signal.raise_signal(number)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _be(
    server: int, module: str, arguments: list[str], environment: dict[str, str], log: str, said: Connection | None
) -> None:
    """In the new process: what Python does for `-u -m module`."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: it is told when the server ends
    if os.getppid() != server:
        os._exit(1)  # it has ended already
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    gc.freeze()  # what was there before is not this process's to collect
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(file, 2)
    os.dup2(file if said is None else said.fileno(), 1)
    os.environ.clear()
    os.environ.update(environment)
    rank = f" (rank {environment['RANK']})" if "RANK" in environment else ""
    setproctitle(" ".join([f"python -m {module}{rank}", *arguments]))
    setthreadtitle(module)  # the short name: Slurm loses sight of processes that have a blank in it
    try:
        importlib.import_module(module).main(arguments)
    except Exception as error:  # as Python does, and multiprocessing with words of its own
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
    finally:
        if sys.version_info < (3, 13):  # from then on multiprocessing does it
            atexit._run_exitfuncs()
