"""What the errno values of file operations mean, and the names of the files that they are about.

A file that cannot be read now is not damaged: an NFS server that does not answer, or a client that Lustre has evicted,
gives EIO, ESTALE or ETIMEDOUT for files that are intact.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from vit.config.paths import printable

Result = TypeVar("Result")

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk is full, or the quota is exceeded
UNREACHABLE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN)  # the file server, for now
TOLERATED_WRITE_ERRORS = (*DISK_FULL, *UNREACHABLE, errno.EROFS)  # logging continues; a later write may succeed
# A folder in which nothing can be written, or whose parent is a file or does not exist.
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT)
# The file system itself found a wrong checksum or structure, or another kind of file is in the file's place.
DAMAGED_FILE_ERRORS = (errno.EUCLEAN, errno.EBADMSG, errno.ENOTDIR, errno.EISDIR)
_ADVICE = {
    errno.ENOSPC: "the disk is full: remove files, or use another one",
    errno.EDQUOT: "your quota is used up: remove files, or use another disk",
    errno.EROFS: "the file system is read-only: use another folder",
    errno.EACCES: "use another folder, or change its permissions",
    errno.EPERM: "use another folder, or change its permissions",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
    errno.EEXIST: "a file of this name exists, or a folder: use another name",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "a link leads to itself: remove it",
    **dict.fromkeys(UNREACHABLE, "the disk or its file server does not answer: try again later"),
}


def explained(error: Exception, advice: str = "") -> str:
    """The error of a file operation as one line: the file, what happened, and what to do if nothing else is advised.

    The message of any other error as it is.
    """
    if not isinstance(error, OSError):
        return str(error)
    name = error.filename if isinstance(error.filename, (str, bytes, Path)) else None
    problem = error.strerror or str(error)
    advice = advice or _ADVICE.get(error.errno or 0, "")
    return f"{f'{printable(os.fsdecode(name))}: ' if name else ''}{problem}{advice and f'; {advice}'}"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the file's name to an OSError that has none, as those of reads and locks through a file descriptor, and of
    libraries that raise it with a text alone."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.strerror = error.strerror or str(error)  # else the text would be lost
            error.filename = str(path)
        raise


def retry_reads(read: Callable[[], Result], seconds: float) -> Result:
    """Calls a function that reads a file, again and again for some seconds while it raises OSError; then raises it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def read_if_exists(path: Path, read: Callable[[], Result]) -> Result | None:
    """Calls a function that reads a file or folder; None if that does not exist.

    The system may say ENOENT for one that its folder lists: it was just created, and is read again, or cannot be read
    now.  Then raises FileNotFoundError.
    """
    try:
        return read()
    except FileNotFoundError:
        return None if is_missing(path) else read()


def is_missing(path: Path) -> bool:
    """Whether a path for which the system said ENOENT is really absent: its folder can be read and does not list it.

    Raises OSError if the folder cannot be read.
    """
    folder = path.absolute().parent
    try:
        return path.name not in os.listdir(folder)
    except FileNotFoundError:
        return is_missing(folder) or path.name not in os.listdir(folder)  # the folder was just created
