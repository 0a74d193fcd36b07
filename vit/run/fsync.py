"""Makes files and their names survive a power cut.  Imports nothing: the checkpoint writer must start at once."""

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Waits until a file's bytes, or the names in a folder, are on the disk.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file that is whole once it has its name, whatever it had before.  Raises OSError."""
    aside = path.with_suffix(".tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        aside.unlink(missing_ok=True)  # half of it only takes room
        raise
    aside.rename(path)
    fsync(path.parent)
