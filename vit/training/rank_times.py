"""How much of each step a rank spends on its own work, and how much on waiting for the other ranks.

On CPUs these are times of the host.  A GPU works behind the host: there, events are recorded between its kernels, and
their times are read once they have passed.  Nothing waits for them.
"""

import enum
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from vit.config.sections import ChecksConfig
from vit.distributed.world import World
from vit.integrity.places import gather_places
from vit.run.folder import RunFolder
from vit.run.rank_log import RankLog
from vit.run.slow_ranks import FIELDS

FIRST_STEPS = 5  # of an attempt; not counted, as memory is allocated and libraries are loaded in them
MOST_MARKS = 2000  # events that a rank keeps before it reads their times; a step has five


class Boundary(enum.Enum):
    """A point of a step, in the order in which a rank passes them."""

    BATCH_REQUESTED = 0
    BATCH_DECODED = 1
    BATCH_AUGMENTED = 2
    STEP = 3  # the batch is there, and forward and backward begin
    GRADIENTS = 4  # some gradients are complete, and are passed to the sum over all ranks; the last time counts
    SUMMED = 5
    UPDATE = 6
    UPDATED = 7


# What the time before a boundary is spent on; None: on something that is not compared.  On GPUs, batches are augmented
# ahead of the step, and the step waits until that is done: "data".
_ON_HOST = {
    Boundary.BATCH_REQUESTED: None,
    Boundary.BATCH_DECODED: "data",
    Boundary.BATCH_AUGMENTED: "augment",
    Boundary.STEP: None,
    Boundary.GRADIENTS: "forward_backward",
    Boundary.SUMMED: "wait",
    Boundary.UPDATE: None,
    Boundary.UPDATED: "update",
}
_ON_DEVICE = {
    Boundary.BATCH_REQUESTED: None,
    Boundary.STEP: "data",
    Boundary.GRADIENTS: "forward_backward",
    Boundary.SUMMED: "wait",
    Boundary.UPDATED: "update",
}


class RankTimes:
    """The times of one rank since they were last shared, and those of all ranks that were.

    A run on a single rank has nothing to compare: nothing is measured.  Nor with `wanted` False, on any rank.
    """

    def __init__(self, world: World, wanted: bool = True) -> None:
        self.measures, on_gpu = wanted and world.size > 1, world.device.type == "cuda"
        self._laps = _DeviceLaps(world.device, self._add) if on_gpu else _HostLaps(self._add)
        self._own = dict.fromkeys(FIELDS, 0.0)
        self._steps_left = FIRST_STEPS  # steps that are not counted any more
        self._all: Tensor | None = None  # of all ranks, since `take`: (ranks, FIELDS)
        # Pinned, so that the host need not wait for the copy to the GPU.
        self._buffer = torch.zeros(len(FIELDS) if self.measures else 0, pin_memory=on_gpu and self.measures)

    def reached(self, boundary: Boundary) -> None:
        """This rank passes a boundary of its step now, or its GPU will with the kernels that are queued."""
        if self.measures:
            self._laps.mark(boundary)

    def decoded(self, seconds: float) -> None:
        """A batch is decoded; it took each of the decoding threads so many seconds, on average."""
        self.reached(Boundary.BATCH_DECODED)
        self._add("decode", seconds)

    def exclude(self) -> None:
        """What has happened since the last boundary is not counted: it was an evaluation, for example."""
        self._laps.exclude()

    def own(self, device: torch.device) -> Tensor:
        """FIELDS of this rank since the last call, as far as they are known: (FIELDS,), or (0,) for a single rank.

        The caller waits for the device before the next call.
        """
        if self.measures:
            self._laps.read()
            self._buffer.copy_(torch.tensor([self._own[name] for name in FIELDS]))
            self._own = dict.fromkeys(FIELDS, 0.0)
        return self._buffer.to(device, non_blocking=True)

    def gathered(self, all_ranks: Tensor) -> None:
        """Adds the times of all ranks: (ranks, FIELDS)."""
        if self.measures:
            self._all = all_ranks.double() if self._all is None else self._all + all_ranks

    def take(self) -> list[list[float]]:
        """The FIELDS of each rank that were shared since the last call; empty if there are none."""
        taken, self._all = self._all, None
        return [] if taken is None else taken.tolist()

    def _add(self, what: str, seconds: float) -> None:
        if self._steps_left == 0:
            self._own[what] += seconds
            self._own["steps"] += what == "update"
        elif what == "update":
            self._steps_left -= 1


class _HostLaps:
    """Boundaries that the host passes."""

    def __init__(self, add: Callable[[str, float], None]) -> None:
        self._add = add
        self._last: float | None = None

    def mark(self, boundary: Boundary) -> None:
        now, what = time.perf_counter(), _ON_HOST[boundary]
        if what is not None and self._last is not None:
            self._add(what, now - self._last)
        self._last = now

    def exclude(self) -> None:
        self._last = None

    def read(self) -> None:
        """Nothing is left to read."""


class _DeviceLaps:
    """Boundaries that a GPU passes: events in the stream that is current on the host."""

    def __init__(self, device: torch.device, add: Callable[[str, float], None]) -> None:
        self.device, self._add = device, add
        self._marks: deque[tuple[Boundary, bool, torch.cuda.Event]] = deque()  # and whether the time before it counts
        self._free: list[torch.cuda.Event] = []
        self._excluded = True

    def mark(self, boundary: Boundary) -> None:
        if boundary not in _ON_DEVICE:
            return
        stream = torch.cuda.current_stream(self.device)
        if self._marks and self._marks[-1][0] is boundary:  # again: the last time counts
            self._marks[-1][2].record(stream)
            return
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record(stream)
        self._marks.append((boundary, not self._excluded, event))
        self._excluded = False
        if len(self._marks) > MOST_MARKS:
            self.read()

    def exclude(self) -> None:
        self._excluded = True

    def read(self) -> None:
        """Adds the laps that are over; the newest event is kept, as the next lap begins there."""
        while len(self._marks) > 2 and self._marks[1][2].query():
            start = self._marks.popleft()[2]
            boundary, counts, end = self._marks[0]
            what = _ON_DEVICE[boundary]
            if what is not None and counts:
                self._add(what, start.elapsed_time(end) / 1e3)
            self._free.append(start)


def watch_ranks(run: RunFolder, checks: ChecksConfig, world: World) -> RankLog:
    """What rank 0 records of all ranks.  Collective: it needs their nodes and the UUIDs of their GPUs."""
    return RankLog(run, checks, gather_places(world))
