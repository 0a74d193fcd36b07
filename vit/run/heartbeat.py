"""Signs of life: what each rank of a node does and since when, in memory that the process above them reads.  No torch.

The memory is an anonymous file of the reader's, so that nothing is left when it dies; a sign costs a microsecond.
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

VARIABLE = "VIT_HEARTBEAT"  # in the environment of ranks: the file that holds a slot for each of them
STACKS_SIGNAL = signal.SIGQUIT  # makes a rank write down what its threads do, as it does to a Java program
LEAVING = "leave"  # the last phase of a rank that has nothing left to lose
PHASES = ("start", "data", "step", "compile", "checkpoint", "evaluate", "rollback", "stage", "other", LEAVING)
STEPS = ("step", "compile")  # the phases that are a training step each
SLOT = struct.Struct("=iiiiqd")  # global rank, process id, phase, steps, signs, time of the last sign
DIGEST = struct.Struct("=I")  # after it: a slot may be half written, for long if its rank is stopped just there
SLOT_BYTES = 64  # a line of the processor's cache, so that ranks do not disturb each other


@dataclass(frozen=True)
class Sign:
    """What a rank was last known to do."""

    rank: int
    pid: int
    phase: str
    steps: int  # training steps of this attempt that were begun
    signs: int  # given so far
    since: float  # time.monotonic() of the phase's beginning


class Slots:
    """The reader's side: memory for the signs of `ranks` processes of this node."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._fd = os.memfd_create("heartbeat")
        os.ftruncate(self._fd, ranks * SLOT_BYTES)
        self._memory = mmap.mmap(self._fd, ranks * SLOT_BYTES)
        self._whole: dict[int, Sign] = {}  # the last that was whole, of each slot
        self.name = f"/proc/{os.getpid()}/fd/{self._fd}"  # for VARIABLE

    def clear(self) -> None:
        """Forgets the ranks of the attempt before."""
        self._memory[:] = bytes(len(self._memory))
        self._whole.clear()

    def read(self) -> list[Sign]:
        """What the ranks do, as far as they have begun to tell."""
        for i in range(self.ranks):
            start = i * SLOT_BYTES
            slot = self._memory[start : start + SLOT.size]
            if DIGEST.unpack_from(self._memory, start + SLOT.size) == (zlib.crc32(slot),):
                rank, pid, phase, steps, signs, since = SLOT.unpack(slot)
                self._whole[i] = Sign(rank, pid, PHASES[phase], steps, signs, since)
        return [self._whole[i] for i in sorted(self._whole)]


class Heartbeat:
    """A rank's side.  Where nobody listens, as under torchrun, a sign does nothing."""

    def __init__(self, logs: Path) -> None:
        """Stacks are written to `logs/rank-N.stacks` on STACKS_SIGNAL; those of a crash in native code to stderr."""
        self._memory: mmap.mmap | None = None
        self._rank, self._offset = int(os.environ.get("RANK", "0")), 0
        self._steps = self._signs = 0
        if name := os.environ.get(VARIABLE):
            fd = os.open(name, os.O_RDWR)
            self._memory = mmap.mmap(fd, 0)
            os.close(fd)
            self._offset = int(os.environ.get("LOCAL_RANK", "0")) * SLOT_BYTES
            self._stacks = (logs / f"rank-{self._rank}.stacks").open("a")
            faulthandler.enable()
            faulthandler.register(STACKS_SIGNAL, self._stacks)
        self.sign("start")

    def take_back(self, steps: int) -> None:
        """The next step is one that was done before: so many are to be done again."""
        self._steps -= steps

    def sign(self, phase: str) -> None:
        """Tells that this rank lives and what it begins now."""
        if self._memory is None:
            return
        self._signs += 1
        self._steps += phase in STEPS
        number = PHASES.index(phase) if phase in PHASES else PHASES.index("other")
        slot = SLOT.pack(self._rank, os.getpid(), number, self._steps, self._signs, time.monotonic())
        end = self._offset + SLOT.size + DIGEST.size
        self._memory[self._offset : end] = slot + DIGEST.pack(zlib.crc32(slot))
