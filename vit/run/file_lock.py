"""File locks that are skipped where the file system has none, as on some mounts of Lustre and NFS."""

import errno
import fcntl


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
