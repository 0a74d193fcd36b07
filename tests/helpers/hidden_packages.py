"""Processes in which some installed packages cannot be imported, as if they had never been installed."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.paths import CHECKOUT, ROOT

FFCV = ("ffcv", "numba", "pandas")
# Python imports it first, in every process that inherits the variables.  `started` has a line for each of these.
_HIDE = """
import os, sys
from importlib.machinery import PathFinder
NAMES = {names!r}
class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in NAMES else super().find_spec(name, path, target)
    @classmethod
    def find_distributions(cls, *arguments, **options):
        return (found for found in super().find_distributions(*arguments, **options) if found.name not in NAMES)
sys.meta_path[:] = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
with open({started!r}, "a") as file:
    file.write(" ".join(sys.orig_argv) + "\\n")
"""


class HiddenPackages:
    """Runs commands without these packages."""

    def __init__(self, folder: Path, names: Sequence[str] = FFCV) -> None:
        self.names, self._started = names, folder / "started"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(_HIDE.format(names=tuple(names), started=str(self._started)))
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}

    def started(self) -> list[str]:
        """The commands of all processes so far in which the packages were hidden."""
        return self._started.read_text().splitlines()

    def run(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        """Runs Python in the checkout."""
        return subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=CHECKOUT, env=self.environment,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
