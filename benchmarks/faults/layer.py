"""Python side of the fault-injection layer for writing (layer.c): makes file operations fail, and records them."""

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
CONTROL_BYTES = 2048  # enough for the control struct of each layer
_CONTROL = struct.Struct("=8q16s488s")
_RECORD = struct.Struct("=8sqqqii")


@dataclass(frozen=True)
class Operation:
    """A recorded file operation."""

    call: str  # "create", "write", "cut", "fsync", "mkdir", "rename" or "remove"
    inode: int
    offset: int  # of a write; for a cut, the new length
    path: str
    other: str  # the new path of a rename
    data: bytes


def missing() -> str | None:
    """Why the layer cannot be used here; None if it can."""
    return None if shutil.which("gcc") else "gcc is not installed"


def environment(root: Path, folder: Path, source: Path = SOURCE) -> Mapping[str, str]:
    """Builds a layer; returns the environment variables that load it into a process, for operations below `root`.

    `folder` is for the files of the layer itself; it must not be below `root`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(folder / "layer.so"), str(source)]
    subprocess.run(command, check=True)
    (folder / "control").write_bytes(bytes(CONTROL_BYTES))
    (folder / "log").touch()
    names = {"FAULTS_ROOT": root, "FAULTS_CONTROL": folder / "control", "FAULTS_LOG": folder / "log"}
    return {"LD_PRELOAD": str(folder / "layer.so"), **{name: str(path) for name, path in names.items()}}


class Layer:
    """Controls the layer that is loaded into this process and its descendants."""

    def __init__(self) -> None:
        self.log = Path(os.environ["FAULTS_LOG"])
        with open(os.environ["FAULTS_CONTROL"], "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _CONTROL.size)

    def fail(self, first: int, last: int, error: int, halved: bool = False) -> None:
        """Counts calls from now on, starting at 1; those from `first` to `last` fail with errno `error`.

        `halved`: if the first of them is a write, it writes half of its bytes instead of failing.
        """
        _CONTROL.pack_into(self._memory, 0, 1, 0, first, last, error, halved, 0, 0, b"", b"")

    def count(self) -> None:
        """Counts calls from now on; none fails."""
        self.fail(0, -1, 0)

    def stop(self) -> tuple[int, int, str, str]:
        """Ends the faults; returns the numbers of calls and of failures, and the first failed call and its path."""
        values = _CONTROL.unpack_from(self._memory, 0)
        _CONTROL.pack_into(self._memory, 0, *bytes(8), b"", b"")
        call, path = (name.rstrip(b"\0").decode() for name in values[8:])
        return values[1], values[7], call, path

    def record(self) -> None:
        """Records operations from now on."""
        self.log.write_bytes(b"")
        _CONTROL.pack_into(self._memory, 0, 0, 0, 0, -1, 0, 0, 1, 0, b"", b"")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Blocks all operations, with the lock that also serializes them."""
        with open(os.environ["FAULTS_CONTROL"], "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def operations(log: Path) -> Iterator[Operation]:
    """The recorded operations, in order."""
    content, at = log.read_bytes(), 0
    while at < len(content):
        call, inode, offset, size, path, other = _RECORD.unpack_from(content, at)
        at += _RECORD.size
        ends = (at + path, at + path + other, at + path + other + (size if call.startswith(b"write") else 0))
        names = content[at : ends[0]].decode(), content[ends[0] : ends[1]].decode()
        yield Operation(call.rstrip(b"\0").decode(), inode, offset, *names, content[ends[1] : ends[2]])
        at = ends[2]
