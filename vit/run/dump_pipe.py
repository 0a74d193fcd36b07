"""The pipe through which torch is asked to write NCCL's last operations (its flight recorder) to a file.

torch creates one for each rank if PIPE_VARIABLE is set, and aborts the process if that fails.
"""

import os
from contextlib import suppress

PIPE_VARIABLE = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"  # the path of a rank's pipe, without its end: the rank and ".pipe"


def unset_unusable_pipe(rank: int) -> str | None:
    """Unsets the variable if the pipe of this rank cannot be created; then returns why."""
    prefix = os.environ.get(PIPE_VARIABLE)
    if not prefix:
        return None
    path = _pipe(prefix, rank)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)  # as torch does
        os.mkfifo(path)
        os.unlink(path)
    except OSError as error:
        del os.environ[PIPE_VARIABLE]
        return f"{path} cannot be created ({error.strerror})"
    return None


def request_dump(rank: int) -> bool:
    """Asks a rank that was started with this environment; returns whether it has a pipe."""
    if not (prefix := os.environ.get(PIPE_VARIABLE)):
        return False
    with suppress(OSError):  # the rank does not use NCCL, or is gone
        fd = os.open(_pipe(prefix, rank), os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
        return True
    return False


def _pipe(prefix: str, rank: int) -> str:
    return f"{prefix}{rank}.pipe"
