"""Watches the ranks of a node during one attempt, and ends them all when one of them died or stands still."""

import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from jobs.node.forkserver import GONE_SECONDS
from jobs.node.peers import PAUSE_SECONDS, LostError, Team
from vit.run.heartbeat import LEAVING, STACKS_SIGNAL, Sign, Slots

LOOK_SECONDS = 0.2
LAST_WORDS_SECONDS = 3  # for ranks to tell that they lost one of them
STACKS_SECONDS = 1  # for ranks to write down what they do
FLIGHT_SECONDS = 5  # for NCCL, where there is one, to write down its last operations
LONG = 10  # times the patience with a step: for what may take long, and that all ranks do seldom
FLIGHT = "flight-"  # NCCL's own record of its last operations, in the logs' folder


class Watch(threading.Thread):
    """Ends the ranks itself; the agent that started them then sees that they are dead.

    A rank may stand still in one phase for `stall_seconds`, or ten times the longest that any rank of this node needed
    for it so far if that is more; starting, compiling, saving, evaluating and the first steps have ten times as much.
    """

    def __init__(self, slots: Slots, team: Team, attempt: int, stall_seconds: float, logs: Path) -> None:
        super().__init__(daemon=True)
        self.slots, self.team, self.attempt, self.stall_seconds, self.logs = slots, team, attempt, stall_seconds, logs
        self.stalled: tuple[Sign, str] | None = None  # the rank that stood still, and what it did
        self.signs: dict[int, Sign] = {}  # the last of each rank
        self.ended: set[int] = set()  # the ranks that were ended from here
        self.stuck: frozenset[int] = frozenset()  # those that nothing can end
        self._longest: dict[str, float] = defaultdict(float)  # seconds of each phase
        self._woke = (
            0.0  # time.monotonic() at which this process, and the ranks, went on after a pause of the whole job
        )
        self._over = threading.Event()

    def run(self) -> None:
        """Looks until the attempt is over."""
        before = time.monotonic()
        while not self._over.wait(LOOK_SECONDS):
            signs = self.slots.read()
            now = time.monotonic()
            if now - before > PAUSE_SECONDS:
                self._woke = now
            before = now
            self._learn(signs)
            still = [s for s in signs if now - max(s.since, self._woke) > self.patience(s) and process_state(s.pid)]
            gone = [s for s in signs if s.phase != LEAVING and not process_state(s.pid)]
            if still:
                self.stalled = self._culprit(still, now)
                self._end(last_words=0)
                return
            if gone or self._others_are_over():
                self._end(last_words=LAST_WORDS_SECONDS)
                return

    def stop(self) -> None:
        """The attempt is over.  Returns when nothing is ended any more."""
        self._over.set()
        self.join()

    def patience(self, sign: Sign) -> float:
        """Seconds for which a rank may stay in its phase."""
        everyday = sign.phase in {"data", "step", "other"} and sign.steps > 2
        return max(self.stall_seconds * (1 if everyday else LONG), LONG * self._longest[sign.phase])

    def _learn(self, signs: Sequence[Sign]) -> None:
        """Notes how long phases took.  Shorter ones than a look do not matter."""
        for sign in signs:
            before = self.signs.get(sign.rank)
            if before is not None and before.signs + 1 == sign.signs and before.since >= self._woke:
                self._longest[before.phase] = max(self._longest[before.phase], sign.since - before.since)
            self.signs[sign.rank] = sign

    def _culprit(self, still: Sequence[Sign], now: float) -> tuple[Sign, str]:
        """Of ranks that all wait for one of them: one that was stopped, else the one that is furthest behind."""
        worst = min(still, key=lambda s: (process_state(s.pid) != psutil.STATUS_STOPPED, s.steps, s.signs, s.since))
        told = f"for {now - worst.since:.0f} s in its phase {worst.phase!r}"
        if process_state(worst.pid) == psutil.STATUS_STOPPED:
            return replace(worst, steps=-1), f"was stopped by SIGSTOP {told}"  # as far behind as can be
        return worst, f"stood still {told}"

    def _others_are_over(self) -> bool:
        try:
            return self.team.lost is not None or self.team.over(self.attempt)
        except LostError:
            return True

    def _end(self, last_words: float) -> None:
        """Gives the ranks time for last words, has them write down what they do, and ends them."""
        deadline = time.monotonic() + last_words
        while (left := self._left()) and time.monotonic() < deadline:
            if self._over.wait(LOOK_SECONDS):
                return
        if not left:
            return
        patience = STACKS_SECONDS
        for sign in left:
            with suppress(ProcessLookupError):
                os.kill(sign.pid, STACKS_SIGNAL)
                os.kill(sign.pid, signal.SIGCONT)  # one that is stopped would never write
            with suppress(OSError):  # there is a pipe where there is NCCL
                fd = os.open(self.logs / f"{FLIGHT}{sign.rank}.pipe", os.O_WRONLY | os.O_NONBLOCK)
                os.write(fd, b"1")
                os.close(fd)
                patience = FLIGHT_SECONDS
        self._over.wait(patience)
        for sign in left:
            if process_state(sign.pid):
                self.ended.add(sign.rank)
                with suppress(ProcessLookupError):
                    os.kill(sign.pid, signal.SIGKILL)
        deadline = time.monotonic() + GONE_SECONDS
        while (left := self._left()) and not self._over.wait(LOOK_SECONDS):
            if time.monotonic() > deadline:
                self.stuck = frozenset(sign.rank for sign in left)
                return

    def _left(self) -> list[Sign]:
        return [sign for sign in self.slots.read() if process_state(sign.pid)]


def current_step(signs: Sequence[Sign]) -> int | None:
    """The training step of this attempt, from 0, that its ranks were in; None before the first."""
    furthest = max((s.steps for s in signs), default=0)
    return furthest - 1 if furthest else None


def process_state(pid: int) -> str:
    """What the kernel says of a process: nothing if it is gone or only waits to be taken leave of."""
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return ""
    return "" if status == psutil.STATUS_ZOMBIE else status
