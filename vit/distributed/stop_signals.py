"""Signals that stop a rank (SIGTERM, USR1, USR2, Ctrl-C), and what all ranks then agree to do at the same step."""

import os
import signal
import time
from types import FrameType
from typing import NamedTuple

import torch
import torch.distributed as dist

from vit.distributed.world import World


class StepDecision(NamedTuple):
    """The same on all ranks."""

    stop: bool  # a rank received a signal
    save: bool  # rank 0 asked for a checkpoint
    parts_written: int  # the minimum over ranks of the checkpoint parts that they have written


class Agreement:
    """Turns what one rank knows (a signal, the time) into a decision of all ranks at the same step.

    SIGTERM, SIGINT, SIGUSR1, SIGUSR2 (and SIGHUP, unless nohup ignores it) only set a flag; a second SIGINT, more than
    two seconds after the first, exits at once.  Each call of `exchange` starts an all-reduce of the flags and returns
    the result of the previous one, which is complete by then: a step never waits for it, and a decision takes effect
    one step later.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self, world: World) -> None:
        self.world = world
        self.received_signal: str | None = None  # name of the first one
        self._first_interrupt = 0.0  # time.monotonic() of the first SIGINT
        self._saving = False
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def install_signal_handlers(self) -> None:
        """Handles the signals of this process from now on."""
        for number in self.SIGNALS:
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        # One Ctrl-C can arrive twice: from the terminal and from the parent process.
        if number == signal.SIGINT and self._first_interrupt and now - self._first_interrupt > 2:
            os._exit(130)
        if number == signal.SIGINT and not self._first_interrupt:
            self._first_interrupt = now
        self.received_signal = self.received_signal or signal.Signals(number).name

    def exchange(self, save: bool = False, parts_written: int = 0) -> StepDecision:
        """Shares this rank's flags; returns the decision that the previous call started.

        All ranks must call it equally often.
        """
        if self.world.size == 1:
            return StepDecision(self.received_signal is not None, save, parts_written)
        stop, saving, negative_parts = 0, 0, 0
        if self._pending is not None:
            work, flags = self._pending
            work.wait()
            stop, saving, negative_parts = flags.tolist()
        flags = torch.tensor([self.received_signal is not None, save, -parts_written], dtype=torch.int64)
        self._pending = (dist.all_reduce(flags, dist.ReduceOp.MAX, async_op=True), flags)
        # A rank asks until it sees the decision, one call later: the second request is for the same save.
        self._saving = bool(saving) and not self._saving
        return StepDecision(bool(stop), self._saving, -negative_parts)

    def close(self) -> None:
        """Waits for the last all-reduce, so that no rank exits while another still needs it."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
