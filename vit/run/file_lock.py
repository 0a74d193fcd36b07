"""File locks that are skipped where the file system has none, as on some mounts of Lustre and NFS."""

import errno
import fcntl
import time
from typing import TextIO

_NAMING_SECONDS = 2.0  # how long an owner that is slow to write its name is waited for


def try_lock(fd: int) -> bool:
    """Tries to lock a file without waiting.  Returns False if another process holds the lock."""
    try:
        lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(fd: int, operation: int) -> None:
    """`fcntl.flock`, but does nothing where the file system has no locks."""
    try:
        fcntl.flock(fd, operation)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}:
            raise


def owner_of(file: TextIO) -> str:
    """Who holds the lock of a file: its content, which the owner writes just after it took the lock."""
    deadline = time.monotonic() + _NAMING_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.1)  # also before the first reading: until the new owner writes, it is the name of the last one
        file.seek(0)
        if name := file.read().strip():
            return name
    return "another process"
