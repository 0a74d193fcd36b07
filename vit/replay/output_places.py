"""Whether the files that were asked for can be written, before time is spent on what they show."""

import os
from pathlib import Path

from vit.config.paths import printable
from vit.config.user_error import UserError


def check_picture_place(option: str, path: Path) -> None:
    """Raises UserError if a picture of this name cannot be written.  Creates nothing."""
    if path.is_dir():
        raise UserError(f"{option} {printable(path)} is a folder; name a file in it, such as {path.name}/step.png")
    _check_above(option, path, path)


def check_folder_place(option: str, path: Path) -> None:
    """Raises UserError if files cannot be created in this folder, which may not exist yet.  Creates nothing."""
    _check_above(option, path, path / "file")


def _check_above(option: str, path: Path, file: Path) -> None:
    """Looks at the nearest folder above a file that exists; `path` is what the user gave."""
    above = next(folder for folder in file.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{option} {printable(path)}: {printable(above)} is a file, not a folder; use another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        why = "it, or its disk, may only be read"
        raise UserError(f"{option} {printable(path)}: {printable(above)} cannot be written: {why}; use another folder")
