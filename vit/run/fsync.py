"""Writes that survive a power cut.  Imports only the standard library: the checkpoint writer must start quickly."""

import os
from pathlib import Path

from vit.run.disk_errors import naming


def fsync(path: Path) -> None:
    """Waits until the contents of a file, or the names in a folder, are on the disk.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file atomically: `path` has either its previous contents or all of `data`.  Raises OSError."""
    temporary = path.with_suffix(".tmp")
    try:
        with naming(temporary), temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)  # a partial file only takes up space
        raise
    temporary.rename(path)
    fsync(path.parent)
