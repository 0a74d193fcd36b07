"""NCCL's flight recorder: each rank keeps a record of its last operations, and writes it to a file on request."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vit.run.dump_pipe import PIPE_VARIABLE

FILE_PREFIX = "flight-"  # of files in the log folder; the number of the rank follows
FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # for pipes, after TMPDIR


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
        for parent in (tempfile.gettempdir(), *FOLDERS):
            with suppress(OSError):
                temporary = tempfile.TemporaryDirectory(prefix="nccl-", dir=parent, ignore_cleanup_errors=True)
                folder = stack.enter_context(temporary)
                os.mkfifo(f"{folder}/try")
                os.environ[PIPE_VARIABLE] = f"{folder}/{FILE_PREFIX}"
                stack.callback(os.environ.pop, PIPE_VARIABLE)
                break
        yield
