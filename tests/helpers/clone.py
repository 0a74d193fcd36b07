"""A working tree in which the targets of the Makefile run: links to this one, with data/ and runs/ of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

_OWN = {"data", "runs", "wandb", "build", ".git", ".venv"}


class Clone:
    """The folder, with the Python of the tests as its environment, which `make setup` takes for finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = folder / ".venv"
        environment.mkdir(parents=True)
        for path in ROOT.iterdir():
            if path.name not in _OWN:
                (folder / path.name).symlink_to(path)
        for name in ("bin", "lib", "pyvenv.cfg"):
            (environment / name).symlink_to(Path(sys.prefix) / name)
        (environment / "ready").touch()

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Starts `make` in a process group of its own, without a cluster and without a GPU."""
        hidden = {"PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "CUDA_VISIBLE_DEVICES"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        return subprocess.Popen(
            ["make", *words],
            cwd=self.folder,
            env=environment | {"CUDA_VISIBLE_DEVICES": ""} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def make(self, *words: str, **variables: str) -> tuple[int, str]:
        """Runs `make`; returns its exit code and its output."""
        process = self.start(*words, **variables)
        output, _ = process.communicate()
        return process.returncode, output
