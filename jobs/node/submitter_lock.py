"""The lock of a run's job on this machine: no second job starts before, between or after the attempts of the first.

`submit.py` holds it until the job has ended, and the job's supervisor holds it too: it outlives a `submit.py` that was
killed.  The lock of the run folder itself belongs to the ranks.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from vit.run.file_lock import lock, owner_of, try_lock
from vit.run.folder import InUseError, RunFolder

NAME = "submitter"  # in the run folder
_REFUSAL_SECONDS = 2.0
_joined: list[TextIO] = []  # open until this process ends


def owned(run: RunFolder) -> AbstractContextManager[None]:
    """Holds the run folder for a command that submits the run.  Raises InUseError, which names the owner.

    Waits a moment for it: another command may hold it just until `submitting` has refused that one.
    """
    return run.owned(_REFUSAL_SECONDS)


@contextmanager
def submitting(run: RunFolder) -> Iterator[None]:
    """Holds the lock for a command that submits the run, which must own the run folder while it enters.

    Raises InUseError, which names the owner.
    """
    with (run.path / NAME).open("a+") as file:
        if not try_lock(file.fileno()):
            raise InUseError(f"{run.path} is in use by {owner_of(file)}")
        file.truncate(0)
        file.write(_name(os.getpid()))
        file.flush()
        # Shared with the supervisor.  Releasing it for a moment is safe: other commands would have to own the folder.
        lock(file.fileno(), fcntl.LOCK_SH)
        yield


def join(run: RunFolder, submitter: int) -> bool:
    """Holds the lock for this supervisor too; False if its `submit.py` has ended and another one has the lock."""
    file = (run.path / NAME).open("a+")
    _joined.append(file)
    try:
        lock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    file.seek(0)
    return file.read() == _name(submitter)


def _name(process: int) -> str:
    return f"process {process} on {socket.gethostname()}\n"
