"""The layer of layer.c, from Python: which file operations are to fail, and which were done."""

import fcntl
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("layer.c")
_CONTROL = struct.Struct("=8q16s488s")
_RECORD = struct.Struct("=8sqqqii")


@dataclass(frozen=True)
class Operation:
    """A file operation that was done."""

    call: str  # "create", "write", "cut", "fsync", "mkdir", "rename" or "remove"
    inode: int
    offset: int  # of a write, or the length that is left by a cut
    path: str
    other: str  # the new name
    data: bytes


def missing() -> str | None:
    """Why there can be no such layer here; None if there can."""
    return None if shutil.which("gcc") else "gcc is not installed"


def environment(root: Path, beside: Path) -> Mapping[str, str]:
    """What a process needs in its environment to have the layer over `root`; its own files are `beside` that."""
    beside.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(beside / "layer.so"), str(SOURCE)]
    subprocess.run(command, check=True)
    (beside / "control").write_bytes(bytes(_CONTROL.size))
    (beside / "log").touch()
    names = {"FAULTS_ROOT": root, "FAULTS_CONTROL": beside / "control", "FAULTS_LOG": beside / "log"}
    return {"LD_PRELOAD": str(beside / "layer.so"), **{name: str(path) for name, path in names.items()}}


class Layer:
    """The layer that this process, and all that it starts, is under."""

    def __init__(self) -> None:
        self.log = Path(os.environ["FAULTS_LOG"])
        with open(os.environ["FAULTS_CONTROL"], "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _CONTROL.size)

    def fail(self, first: int, last: int, error: int, halved: bool = False) -> None:
        """Counts calls from now on, from 1; those from `first` to `last` fail with this errno.

        `halved`: the first of them, if it is a write, takes a half of its bytes before.
        """
        _CONTROL.pack_into(self._memory, 0, 1, 0, first, last, error, halved, 0, 0, b"", b"")

    def count(self) -> None:
        """Counts calls from now on, and none fails."""
        self.fail(0, -1, 0)

    def stop(self) -> tuple[int, int, str, str]:
        """Lets all be well again; how many calls there were, how many failed, and the first of those and its file."""
        values = _CONTROL.unpack_from(self._memory, 0)
        _CONTROL.pack_into(self._memory, 0, *bytes(8), b"", b"")
        call, path = (name.rstrip(b"\0").decode() for name in values[8:])
        return values[1], values[7], call, path

    def record(self) -> None:
        """Writes operations down from now on."""
        self.log.write_bytes(b"")
        _CONTROL.pack_into(self._memory, 0, 0, 0, 0, -1, 0, 0, 1, 0, b"", b"")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Has all operations wait, as each one does for another."""
        with open(os.environ["FAULTS_CONTROL"], "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def operations(log: Path) -> Iterator[Operation]:
    """Those that were written down, in their order."""
    content, at = log.read_bytes(), 0
    while at < len(content):
        call, inode, offset, size, path, other = _RECORD.unpack_from(content, at)
        at += _RECORD.size
        ends = (at + path, at + path + other, at + path + other + (size if call.startswith(b"write") else 0))
        names = content[at : ends[0]].decode(), content[ends[0] : ends[1]].decode()
        yield Operation(call.rstrip(b"\0").decode(), inode, offset, *names, content[ends[1] : ends[2]])
        at = ends[2]
