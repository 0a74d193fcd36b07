"""Starts the process of the fork server, and knows when it is ready.  Once it runs, it needs no file.

multiprocessing connects to its server by a socket that has a name in TMPDIR, which may be cleaned while a job runs.
Here the name is removed at once: this process keeps a descriptor of the socket, and connects through /proc/self/fd.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, process
from pathlib import Path
from typing import Any

import psutil

from jobs.node.search_path import search_path

READY_VARIABLE = "VIT_READY"  # path of an anonymous file of this process; the server writes to it when it is ready
SOCKET_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # where the socket has a name for a moment, if not in TMPDIR
MAX_FOLDER_LENGTH = 60  # characters; the path of a socket may have 107
ROOT = Path(__file__).resolve().parents[2]

_server: Any = forkserver._forkserver
# Descriptors of the server that was started last.
_ready_file: int | None = None
_socket: int | None = None


def start(modules: Sequence[str]) -> None:
    """Starts a server that imports the modules; returns at once.  Raises OSError."""
    global _ready_file, _socket  # noqa: PLW0603  # one server per process, as in multiprocessing
    for descriptor in (_ready_file, _socket):
        if descriptor is not None:
            os.close(descriptor)
    _ready_file = _socket = None
    _ready_file = os.memfd_create("ready")
    variables = {
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "SPT_NOENV": "1",
        "PYTHONPATH": search_path(ROOT),
        "PYTHONSAFEPATH": "1",  # nothing from the working directory
        READY_VARIABLE: f"/proc/{os.getpid()}/fd/{_ready_file}",
    }
    forkserver.set_forkserver_preload(list(modules))
    with _socket_folder(), _environment(variables):
        forkserver.ensure_running()
        _socket = os.open(_server._forkserver_address, os.O_PATH)
    _server._forkserver_address = f"/proc/self/fd/{_socket}"


def pid() -> int | None:
    """The process id of the server; None before the first start."""
    number: int | None = _server._forkserver_pid
    return number


def is_ready() -> bool:
    """Whether the server that was started last has done all its imports."""
    return _ready_file is not None and os.fstat(_ready_file).st_size > 0


def is_running() -> bool:
    """Whether there is a server process."""
    with suppress(psutil.NoSuchProcess):
        return (number := pid()) is not None and is_alive(psutil.Process(number))
    return False


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _socket_folder() -> Iterator[None]:
    """Makes multiprocessing create its socket in a temporary folder, which is then removed."""
    config = process.current_process()._config  # type: ignore[attr-defined]
    before = config.get("tempdir")
    with _temporary_folder() as folder:
        config["tempdir"] = folder
        try:
            yield
        finally:
            config["tempdir"] = before


def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """In TMPDIR, if it exists and its path is short enough."""
    usual = tempfile.gettempdir()
    for folder in (*([usual] if len(usual) <= MAX_FOLDER_LENGTH else []), *SOCKET_FOLDERS):
        with suppress(OSError):
            return tempfile.TemporaryDirectory(prefix="forkserver-", dir=folder, ignore_cleanup_errors=True)
    raise OSError(f"no folder for temporary files is writable: {usual}, {', '.join(SOCKET_FOLDERS)}")


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
