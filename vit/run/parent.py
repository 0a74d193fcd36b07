"""Ends a process with its parent.  Imports only a part of the standard library: processes call it before all else."""

import ctypes
import os


def end_with_parent(number: int, parent: int | None = None) -> None:
    """Makes the kernel send this signal to this process when its parent process ends.  Linux only, as Slurm is.

    Exits at once if the parent is not `parent` any more: it may have ended before it could be watched.
    """
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os._exit(1)
