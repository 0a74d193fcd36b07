"""What all ranks agree on at the same step: to stop, to save, and which parts of a checkpoint are written."""

import os
import signal
import time
from types import FrameType
from typing import NamedTuple

import torch
import torch.distributed as dist

from vit.distributed.world import World


class Agreed(NamedTuple):
    """What all ranks know at the same step."""

    stop: bool  # a rank got a signal
    save: bool  # rank 0's clock asked for a checkpoint
    written: int  # the least of the ranks' counts of parts that they have written


class Agreement:
    """Turns what single ranks know, a signal or the time, into what all ranks do at the same step.

    SIGTERM, SIGINT, SIGUSR1, SIGUSR2 (and SIGHUP, unless nohup is there) set a flag and nothing else; a second SIGINT,
    a while after the first, leaves at once.  Each look starts a reduction of the flags and returns the result of the
    one before, which is there by then: an agreement costs a step no waiting, and takes effect one step later.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self, world: World) -> None:
        self.world = world
        self.received: str | None = None  # the first signal's name
        self._interrupted = 0.0
        self._saving = False
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def install(self) -> None:
        """Takes over the signals of this process, for the rest of its life."""
        for number in self.SIGNALS:
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        # One Ctrl-C can arrive twice: from the terminal and from the process that started us.
        if number == signal.SIGINT and self._interrupted and now - self._interrupted > 2:
            os._exit(130)
        if number == signal.SIGINT and not self._interrupted:
            self._interrupted = now
        self.received = self.received or signal.Signals(number).name

    def look(self, save: bool = False, written: int = 0) -> Agreed:
        """What all ranks should do now, where `save` asks for it.  Every rank must call this equally often."""
        if self.world.size == 1:
            return Agreed(self.received is not None, save, written)
        stop, saving, unwritten = 0, 0, 0
        if self._pending is not None:
            work, flags = self._pending
            work.wait()
            stop, saving, unwritten = flags.tolist()
        flags = torch.tensor([self.received is not None, save, -written], dtype=torch.int64)
        self._pending = (dist.all_reduce(flags, dist.ReduceOp.MAX, async_op=True), flags)
        # What was asked for while the result was on its way is the same save, not another one.
        self._saving = bool(saving) and not self._saving
        return Agreed(bool(stop), self._saving, -unwritten)

    def close(self) -> None:
        """Waits for the last reduction, so that no rank leaves while another still needs it."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
