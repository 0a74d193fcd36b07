"""Python side of the fault-injection layer for reading (reads.c): makes calls fail, and records them."""

import enum
import errno
import itertools
import mmap
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import layer

SOURCE = Path(__file__).with_name("reads.c")
ERRORS = (errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOENT)
_CONTROL = struct.Struct("=7q16s1000s")


class Extent(enum.IntEnum):
    """What fails after the call that fails first.  A file that is lost with ENOENT is not listed either."""

    ONCE = 0
    FILE_LOST = 1  # every call on that file, or on that folder and what it contains
    DISK_LOST = 2  # every call on any file


@dataclass(frozen=True)
class Call:
    """A call on the read path: "open", "stat", "list", "read", "pread", "mmap" or "lock", and its file."""

    call: str
    path: Path


@dataclass(frozen=True)
class Fault:
    """The call that fails first, and how."""

    call: Call
    nth: int  # which of these calls, from 1
    error: int  # errno
    extent: Extent


def environment(root: Path, folder: Path) -> Mapping[str, str]:
    """Builds the layer; returns the environment variables that load it into a process, for files below `root`.

    `folder` is for the files of the layer itself; it must not be below `root`.
    """
    return layer.environment(root, folder, SOURCE)


class ReadLayer:
    """Controls the layer that is loaded into this process and its descendants.

    Between `arm` or `record` and `stop` this process must not touch the files below the root itself.
    """

    def __init__(self) -> None:
        self._log = Path(os.environ["FAULTS_LOG"])
        with open(os.environ["FAULTS_CONTROL"], "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), layer.CONTROL_BYTES)

    def record(self) -> None:
        """Records all calls from now on."""
        self._log.write_bytes(b"")
        _CONTROL.pack_into(self._memory, 0, 1, 0, 0, 0, 0, 0, 0, b"", b"")

    def arm(self, fault: Fault) -> None:
        """Counts calls from now on; those of the fault fail."""
        self._log.write_bytes(b"")
        names = fault.call.call.encode(), os.fsencode(fault.call.path)
        _CONTROL.pack_into(self._memory, 0, 0, 1, fault.nth, fault.extent, fault.error, 0, 0, *names)

    def stop(self) -> list[Call]:
        """Ends the faults; returns the recorded calls: those that failed, or all after `record`."""
        _CONTROL.pack_into(self._memory, 0, *bytes(7), b"", b"")
        lines = (line.split("\t") for line in self._log.read_text().splitlines())
        return [Call(call, Path(path)) for _, call, path in lines]


def faults(calls: list[Call]) -> Iterator[Fault]:
    """All faults of a command that makes these calls.

    The first call of each kind on each file fails with each error and to each extent; the second and the last one with
    one of the errors, once and from then on.
    """
    errors = itertools.cycle(ERRORS)
    for call, count in Counter(calls).items():
        for error in ERRORS:
            for extent in Extent:
                yield Fault(call, 1, error, extent)
        for nth in {2, count} - {1} if count > 1 else ():
            error = next(errors)
            for extent in (Extent.ONCE, Extent.FILE_LOST):
                yield Fault(call, nth, error, extent)
