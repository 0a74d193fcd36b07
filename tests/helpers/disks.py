"""Small file systems for tests that fill a disk."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system of that size in a folder, as long as it is needed; the test is skipped where there can be none."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here, root alone may")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
