"""flock, on file systems that have it: some mounts of Lustre and NFS do not."""

import errno
import fcntl


def try_lock(fd: int) -> bool:
    """Whether a lock could be had at once."""
    try:
        lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(fd: int, how: int) -> None:
    """Locks a file, on file systems that know locks: some mounts of Lustre and NFS do not."""
    try:
        fcntl.flock(fd, how)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}:
            raise
