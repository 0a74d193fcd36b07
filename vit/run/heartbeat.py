"""Heartbeats: the phase of each rank of a node and when it began, in memory shared with the supervisor.

The memory is an anonymous file of the supervisor, so nothing is left behind when it dies.  Writing a heartbeat takes a
microsecond.  Imports no torch.
"""

import faulthandler
import mmap
import os
import signal
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

HEARTBEAT_VARIABLE = "VIT_HEARTBEAT"  # in the environment of ranks: path of the shared memory
STACKS_SIGNAL = signal.SIGQUIT  # makes a rank write the stacks of its threads, as it does for a Java program
LEAVING = "leave"  # last phase: everything is saved, and the end of the process is no failure
PHASES = ("start", "data", "step", "compile", "checkpoint", "evaluate", "rollback", "stage", "other", LEAVING)
STEP_PHASES = ("step", "compile")  # each of these is one training step
SLOT = struct.Struct("=iiiiqd")  # global rank, process id, phase, steps, count, time
CHECKSUM = struct.Struct("=I")  # CRC-32 after the slot: a rank may be stopped while it writes
SLOT_BYTES = 64  # one cache line of the CPU, so that ranks do not share one


@dataclass(frozen=True)
class Beat:
    """The last heartbeat of a rank."""

    rank: int
    pid: int
    phase: str
    steps: int  # training steps begun in this attempt
    count: int  # heartbeats so far
    since: float  # time.monotonic() at which the phase began


class HeartbeatSlots:
    """The supervisor's side: shared memory with one slot for each of the `ranks` processes of this node."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._fd = os.memfd_create("heartbeat")
        os.ftruncate(self._fd, ranks * SLOT_BYTES)
        self._memory = mmap.mmap(self._fd, ranks * SLOT_BYTES)
        self._last: dict[int, Beat] = {}  # last valid heartbeat of each slot
        self.name = f"/proc/{os.getpid()}/fd/{self._fd}"  # for HEARTBEAT_VARIABLE

    def clear(self) -> None:
        """Removes the heartbeats of the previous attempt."""
        self._memory[:] = bytes(len(self._memory))
        self._last.clear()

    def read(self) -> list[Beat]:
        """The last valid heartbeat of each rank that has written one."""
        for i in range(self.ranks):
            start = i * SLOT_BYTES
            slot = self._memory[start : start + SLOT.size]
            if CHECKSUM.unpack_from(self._memory, start + SLOT.size) == (zlib.crc32(slot),):
                rank, pid, phase, steps, count, since = SLOT.unpack(slot)
                self._last[i] = Beat(rank, pid, PHASES[phase], steps, count, since)
        return [self._last[i] for i in sorted(self._last)]


class Heartbeat:
    """A rank's side.  Without a supervisor, as under torchrun, `beat` does nothing."""

    def __init__(self, logs: Path) -> None:
        """On STACKS_SIGNAL, stacks are written to `logs/rank-N.stacks`; after a crash in native code, to stderr."""
        self._memory: mmap.mmap | None = None
        self._rank, self._offset = int(os.environ.get("RANK", "0")), 0
        self._steps = self._count = 0
        if name := os.environ.get(HEARTBEAT_VARIABLE):
            fd = os.open(name, os.O_RDWR)
            self._memory = mmap.mmap(fd, 0)
            os.close(fd)
            self._offset = int(os.environ.get("LOCAL_RANK", "0")) * SLOT_BYTES
            self._stacks = (logs / f"rank-{self._rank}.stacks").open("a")
            faulthandler.enable()
            faulthandler.register(STACKS_SIGNAL, self._stacks)
        self.beat("start")

    def rewind(self, steps: int) -> None:
        """Subtracts steps that will be repeated."""
        self._steps -= steps

    def beat(self, phase: str) -> None:
        """Writes a heartbeat: this rank is alive and begins this phase now."""
        if self._memory is None:
            return
        self._count += 1
        self._steps += phase in STEP_PHASES
        number = PHASES.index(phase) if phase in PHASES else PHASES.index("other")
        slot = SLOT.pack(self._rank, os.getpid(), number, self._steps, self._count, time.monotonic())
        end = self._offset + SLOT.size + CHECKSUM.size
        self._memory[self._offset : end] = slot + CHECKSUM.pack(zlib.crc32(slot))
