"""A small supervisor process for tests of the fork server: it starts a module again and again on request."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.helpers.paths import ROOT
from tests.helpers.waiting import wait_for

# The module that is started: it prints what it inherited, then executes its argument.
MODULE = """
import os, signal, sys, time
def main(arguments):
    (action,) = arguments
    print("torch" in sys.modules, "vit.train" in sys.modules, os.environ["PLACE"], os.getpid())
    print("to stderr", file=sys.stderr)
    if action == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        print("waiting")
        time.sleep(100)
    eval(action)
"""
# The supervisor: starts the module once for each line of its input, and prints process ids and the exit code.
SUPERVISOR = """
import sys
from pathlib import Path
from jobs.node import forkserver
for line in sys.stdin:
    action, log = line.rstrip().split("\\t")
    process = forkserver.start("started", [action], {"PLACE": "here"}, Path(log))
    print(process.os_process.pid, process.os_process.ppid(), flush=True)
    print(process.wait(), flush=True)
"""


def write_module(folder: Path) -> None:
    """Writes the module, named `started`."""
    (folder / "started.py").write_text(MODULE)


def environment(folder: Path) -> dict[str, str]:
    """An environment in which the folder's modules shadow all others, and PYTHONUNBUFFERED is not set."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return kept | {"PYTHONPATH": f"{folder}:{ROOT}"}


def run_program(program: str, folder: Path, seconds: float = 60) -> "subprocess.CompletedProcess[str]":
    """Runs a Python program in the folder, with its environment."""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment(folder), capture_output=True, text=True,
        timeout=seconds, check=False,
    )  # fmt: skip


class Supervisor:
    """The supervisor process."""

    def __init__(self, folder: Path) -> None:
        write_module(folder)
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
            env=environment(folder),
        )  # fmt: skip

    def start(self, action: str) -> tuple[psutil.Process, psutil.Process]:
        """Starts the module; returns the new process and its fork server."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{action}\t{self.folder}/log\n")
        self.process.stdin.flush()
        started, server = self.read_line().split()
        return psutil.Process(int(started)), psutil.Process(int(server))

    def read_line(self) -> str:
        """The next line that the supervisor prints: after a start, the exit code."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def start_waiting(self) -> tuple[psutil.Process, psutil.Process]:
        """Starts a process that waits; returns once it does."""
        both = self.start("wait")
        wait_for(lambda: "waiting" in self.log(), "the process to wait")
        return both

    def log(self) -> str:
        """The output of the started processes."""
        return (self.folder / "log").read_text() if (self.folder / "log").exists() else ""
