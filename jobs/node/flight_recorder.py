"""NCCL's flight recorder: each rank keeps a record of its last operations, and writes it to a file on request."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vit.run.dump_pipe import PIPE_VARIABLE

FILE_PREFIX = "flight-"  # of files in the log folder; the number of the rank follows
FOLDER_PREFIX = "vit-nccl-pipes-"
PARENTS = ("/tmp", "/var/tmp", "/dev/shm")  # of the folder for pipes, after TMPDIR


def set_variables(logs: Path) -> None:
    """Makes ranks that are started from now on keep a record, and write it to the log folder; NCCL's own names."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # operations
    for name in ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"):
        os.environ.setdefault(name, str(logs / FILE_PREFIX))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_NCCL_COORD_CHECK_MILSEC", "200")  # between two looks at the pipe


@contextmanager
def pipes() -> Iterator[None]:
    """A folder for the pipes of the ranks that are started inside, on a disk of this node.

    The run folder may be on a disk that takes no pipes.  If no folder takes them, ranks have none.
    """
    if PIPE_VARIABLE in os.environ:  # set by the user
        yield
        return
    with ExitStack() as stack:
        for other in (None, *PARENTS):
            with suppress(OSError):
                parent = other or tempfile.gettempdir()  # which raises if no folder can be written
                _remove_abandoned(parent)
                temporary = tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=parent, ignore_cleanup_errors=True)
                folder = stack.enter_context(temporary)
                stack.callback(os.close, _lock(folder))
                os.mkfifo(f"{folder}/try")
                os.environ[PIPE_VARIABLE] = f"{folder}/{FILE_PREFIX}"
                stack.callback(os.environ.pop, PIPE_VARIABLE, None)
                break
        yield


def _lock(folder: str | Path) -> int:
    """Locks a folder for as long as this process lives, or until the descriptor is closed.  Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_abandoned(parent: str) -> None:
    """Removes the folders of supervisors that were killed."""
    for folder in Path(parent).glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):  # it is in use, or belongs to another user
            descriptor = _lock(folder)
            try:
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)
