"""Watches the ranks of a node during one attempt, and kills all of them when one dies or stalls."""

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

from jobs.node.forkserver import KILL_SECONDS
from jobs.node.peers import PeerLostError, Peers
from jobs.node.suspension_log import SUSPENDED_SECONDS
from vit.run.dump_pipe import request_dump
from vit.run.heartbeat import LEAVING, STACKS_SIGNAL, Beat, HeartbeatSlots

POLL_SECONDS = 0.2
ERROR_SECONDS = 3  # for the other ranks to report that they lost a peer
STACKS_SECONDS = 1  # for ranks to write their stack traces
SLOW_STACKS_SECONDS = 10  # the same on a busy node: ranks that have not written, or still write, get so long
FLIGHT_RECORDER_SECONDS = 5  # for NCCL, if it is used, to write its last operations
TIMEOUT_FACTOR = 10  # multiplies `stall_seconds` in rare, long phases, and the longest time seen for a phase


class Watchdog(threading.Thread):
    """Kills the ranks itself; the agent that started them then sees that they are dead.

    A rank is stalled if it stays in one phase for longer than `stall_seconds`, or than ten times the longest time that
    any rank of this node has needed for that phase, whichever is more.  For starting, compiling, saving, evaluating and
    the first steps, ten times `stall_seconds` takes the place of `stall_seconds`.
    """

    def __init__(self, slots: HeartbeatSlots, peers: Peers, attempt: int, stall_seconds: float, logs: Path) -> None:
        super().__init__(daemon=True)
        self.slots, self.peers, self.attempt, self.logs = slots, peers, attempt, logs
        self.stall_seconds = stall_seconds
        self.stalled: tuple[Beat, str] | None = None  # the stalled rank, and the reason
        self.beats: dict[int, Beat] = {}  # the last heartbeat of each rank
        self.killed: set[int] = set()  # ranks killed by this watchdog
        self.unkillable: frozenset[int] = frozenset()  # ranks that SIGKILL did not end
        self._longest: dict[str, float] = defaultdict(float)  # seconds, by phase
        self._resumed = 0.0  # time.monotonic() at which the job resumed after it was suspended
        self._attempt_over = threading.Event()

    def run(self) -> None:
        """Checks the ranks until the attempt is over."""
        before = time.monotonic()
        while not self._attempt_over.wait(POLL_SECONDS):
            beats = self.slots.read()
            now = time.monotonic()
            if now - before > SUSPENDED_SECONDS:
                self._resumed = now
            before = now
            self._record_phases(beats)
            stalled = [b for b in beats if now - max(b.since, self._resumed) > self.timeout(b) and process_state(b.pid)]
            dead = [b for b in beats if b.phase != LEAVING and not process_state(b.pid)]
            if stalled:
                self.stalled = self._first_stalled(stalled, now)
                self._kill_ranks(grace_seconds=0)
                return
            if dead or self._peer_has_ended():
                self._kill_ranks(grace_seconds=ERROR_SECONDS)
                return

    def stop(self) -> None:
        """Ends the watchdog.  After it returns, no rank is killed any more."""
        self._attempt_over.set()
        self.join()
        self._record_phases(self.slots.read())  # a rank may have begun steps since the last poll, and failed in one

    def timeout(self, beat: Beat) -> float:
        """Seconds for which a rank may stay in its phase."""
        usual = beat.phase in {"data", "step", "other"} and beat.steps > 2
        return max(self.stall_seconds * (1 if usual else TIMEOUT_FACTOR), TIMEOUT_FACTOR * self._longest[beat.phase])

    def _record_phases(self, beats: Sequence[Beat]) -> None:
        """Records how long phases took.  Phases shorter than the polling interval may be missed."""
        for beat in beats:
            before = self.beats.get(beat.rank)
            if before is not None and before.count + 1 == beat.count and before.since >= self._resumed:
                self._longest[before.phase] = max(self._longest[before.phase], beat.since - before.since)
            self.beats[beat.rank] = beat

    def _first_stalled(self, stalled: Sequence[Beat], now: float) -> tuple[Beat, str]:
        """The rank that the others wait for: one stopped by SIGSTOP, or else the one that is furthest behind."""
        worst = min(stalled, key=lambda b: (process_state(b.pid) != psutil.STATUS_STOPPED, b.steps, b.count, b.since))
        how_long = f"for {now - worst.since:.0f} s in phase {worst.phase!r}"
        if process_state(worst.pid) == psutil.STATUS_STOPPED:
            return replace(worst, steps=-1), f"was stopped by SIGSTOP {how_long}"  # counts as furthest behind
        return worst, f"stalled {how_long}"

    def _peer_has_ended(self) -> bool:
        try:
            return self.peers.lost is not None or self.peers.has_ended(self.attempt)
        except PeerLostError:
            return True

    def _kill_ranks(self, grace_seconds: float) -> None:
        """Waits for ranks to exit by themselves; makes the others write their stack traces, and kills them."""
        deadline = time.monotonic() + grace_seconds
        while (left := self._running()) and time.monotonic() < deadline:
            if self._attempt_over.wait(POLL_SECONDS):
                return
        if not left:
            return
        before = self._stack_sizes(left)
        begun, seconds, now = time.monotonic(), self._request_stacks(left), before
        while not self._attempt_over.wait(POLL_SECONDS) and time.monotonic() < begun + SLOW_STACKS_SECONDS:
            last, now = now, self._stack_sizes(left)
            if (
                time.monotonic() > begun + seconds
                and now == last
                and all(size > before[rank] for rank, size in now.items())
            ):
                break
        for beat in left:
            if process_state(beat.pid):
                self.killed.add(beat.rank)
                with suppress(ProcessLookupError):
                    os.kill(beat.pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_SECONDS
        while (left := self._running()) and not self._attempt_over.wait(POLL_SECONDS):
            if time.monotonic() > deadline:
                self.unkillable = frozenset(beat.rank for beat in left)
                return

    def _request_stacks(self, ranks: Sequence[Beat]) -> float:
        """Makes ranks write their stack traces, and NCCL its last operations; returns the seconds to wait for it."""
        seconds: float = STACKS_SECONDS
        for beat in ranks:
            with suppress(ProcessLookupError):
                os.kill(beat.pid, STACKS_SIGNAL)
                os.kill(beat.pid, signal.SIGCONT)  # a stopped rank would never write
            if request_dump(beat.rank):
                seconds = FLIGHT_RECORDER_SECONDS
        return seconds

    def _stack_sizes(self, ranks: Sequence[Beat]) -> dict[int, int]:
        """The sizes of the files of those ranks that run: a stack trace is whole when its file grows no more."""
        files = {b.rank: self.logs / f"rank-{b.rank}.stacks" for b in ranks if process_state(b.pid)}
        return {rank: file.stat().st_size if file.exists() else 0 for rank, file in files.items()}

    def _running(self) -> list[Beat]:
        return [beat for beat in self.slots.read() if process_state(beat.pid)]


def current_step(beats: Sequence[Beat]) -> int | None:
    """The training step of this attempt, from 0, that its ranks were in; None before the first."""
    furthest = max((b.steps for b in beats), default=0)
    return furthest - 1 if furthest else None


def process_state(pid: int) -> str:
    """The kernel's state of a process; "" if it is gone or is a zombie."""
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return ""
    return "" if status == psutil.STATUS_ZOMBIE else status
