"""What the owner of a run does about its other jobs: answers those that start, and lets the others wait.

A job that the owner would decline must not start: it would burn an allocation.  So the owner moves its earliest start
DEFERRAL_MINUTES ahead, again and again.  If the owner is lost in any way, nobody does, and the job may start by itself.
"""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from jobs.node import other_jobs, signals, slurm_job
from jobs.node.candidacy import Ownership, withdraw
from jobs.node.candidates import Candidate
from jobs.node.handover import Measured, decide, gain_seconds, measure
from jobs.node.job_spec import JobSpec
from jobs.node.ownership import Answer, Claim
from jobs.node.signals import stop_job
from vit.history.learning_curve import read_curve
from vit.run.folder import RunFolder
from vit.run.progress import show

POLL_SECONDS = 2.0  # between looks at the folder of claims
DECLINED_SECONDS = 20.0  # until one that was declined has put itself back into the queue
DEFER_SECONDS = 300.0  # between deferrals: several may fail before one of the jobs starts
TELL_SECONDS = 15.0  # for another thread to let them start, before this process exits


class WaitingJobs:
    """A thread in the supervisor of the owner's first node."""

    def __init__(self, job: JobSpec, folder: RunFolder, ownership: Ownership) -> None:
        self.job, self.folder, self.ownership = job, folder, ownership
        self.handed_over: Claim | None = None  # to this job, which is running
        self._closed = threading.Event()
        self._failed = False  # an unexpected error was shown
        self._left = threading.Lock()  # taken by the thread that tells the others that this job leaves
        self._teller: int | None = None  # that thread
        self._told = threading.Event()  # set once it has done so
        self._deferring = threading.Lock()  # held while they are deferred: afterwards they would wait
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self.ownership.leave = self.leave
        self._thread.start()

    def leave(self) -> None:
        """Lets the other jobs start, because this one ends before the run does; cancels them if it was canceled.

        To be called as soon as the job is told to stop: little time may be left.  Returns once they are told, also if
        another thread does it.
        """
        if not self._left.acquire(blocking=False):
            if self._teller != threading.get_ident():  # else a signal handler has interrupted it here
                self._told.wait(TELL_SECONDS)  # this process may exit next, and end the other thread
            return
        self._teller = threading.get_ident()
        self._closed.set()
        try:
            if self.handed_over is None and not self.ownership.end_if_canceled(self.folder):
                with suppress(OSError), self._deferring:
                    self._let_start(other_jobs.pending_jobs([each.job for each in self.ownership.others]))
        finally:
            self._told.set()

    def end(self, why: str) -> None:
        """Cancels the other jobs: the run has ended."""
        if self._left.acquire(blocking=False):
            self._teller = threading.get_ident()
            self._closed.set()
            withdraw(self.folder, self.ownership.others, why)
            self._told.set()

    def _watch(self) -> None:
        begun, next_deferral = time.monotonic(), 0.0
        while not self._closed.wait(POLL_SECONDS) and not signals.stop_requested():
            try:
                if requests := self.ownership.owners.requests(self.ownership.claim):
                    if self._answer(requests):
                        stop_job(self.job.nodes)
                        return
                    next_deferral = min(next_deferral, time.monotonic() + DECLINED_SECONDS)
                if time.monotonic() > next_deferral:
                    with self._deferring:
                        self._defer_or_let_start()
                    # Soon again at first: a job that handed over is not back in the queue yet.
                    pause = max(DECLINED_SECONDS, time.monotonic() - begun)
                    next_deferral = time.monotonic() + min(pause, DEFER_SECONDS)
            except OSError:  # the run folder cannot be read now; the jobs that ask wait for a while
                pass
            except Exception as error:  # the jobs that wait depend on this thread, whatever a damaged record has
                if not self._failed:
                    show(f"the other jobs of this run could not be told what to do: {error!r}", lasting=True)
                self._failed = True

    def _measured(self) -> Measured:
        return measure(self.folder.events(), read_curve(self.folder.metrics), self.ownership.owners.claims())

    def _answer(self, requests: Mapping[Path, Claim]) -> bool:
        """Answers the jobs that have started.  Returns True if the run is handed over to one of them, the fastest."""
        owners = self.ownership.owners
        measured, accepted = self._measured(), dict[Path, Answer]()
        for request, asking in requests.items():
            answer = self._decide(measured, asking.size)
            if asking.size not in self.ownership.others or other_jobs.start_is_over(asking.start):
                answer = Answer(False, "it is not a running job of this run")
            if answer.accepted:
                accepted[request] = answer
            else:
                owners.reply(request, answer)
        mine = self.ownership.claim.size
        gains = {path: gain_seconds(measured, mine, requests[path].size) or 0.0 for path in accepted}
        best = max(accepted, key=lambda path: (gains[path], requests[path].size.ranks), default=None)
        if best is None:
            return False
        owners.reply(best, accepted[best])
        self._hand_over(requests[best], accepted[best])
        with suppress(OSError):  # they give up by themselves
            for request in accepted.keys() - {best}:
                owners.reply(request, Answer(False, f"job {requests[best].size.job} takes this run over"))
        return True

    def _decide(self, measured: Measured, other: Candidate) -> Answer:
        return decide(measured, self.ownership.claim.size, other, self.job.min_gain_minutes)

    def _hand_over(self, to: Claim, answer: Answer) -> None:
        self.handed_over = to
        event = {"to": to.size.job, "ranks": to.size.ranks, "size": to.size.size, "why": answer.why}
        with suppress(OSError):
            self.folder.record("handover", life=slurm_job.start_id(), **event)
        show(f"handing over to job {to.size.job} ({to.size.size}): {answer.why}", lasting=True)

    def _defer_or_let_start(self) -> None:
        pending = other_jobs.pending_jobs([each.job for each in self.ownership.others])
        if not pending or self._closed.is_set():
            return
        measured = self._measured()
        useful = {o.job for o in self.ownership.others if o.job in pending and self._decide(measured, o).accepted}
        slurm_job.defer(sorted(pending.keys() - useful))
        self._let_start({job: pending[job] for job in sorted(useful)})

    def _let_start(self, pending: Mapping[str, dict[str, str]]) -> None:
        """Makes those pending jobs that are deferred eligible, as soon as Slurm allows it after their last start."""
        credential: float | None = None
        for job, facts in pending.items():
            if not other_jobs.is_deferred(facts):
                continue
            wait = 0.0
            if facts.get("Restarts", "0") != "0":
                credential = other_jobs.credential_seconds() if credential is None else credential
                wait = max(0.0, credential - (time.time() - self._last_sign(job)))
            slurm_job.defer([job], wait)

    def _last_sign(self, job: str) -> float:
        """When a start of this job may have ended: the newest event or claim of it."""
        starts = [claim.time for claim in self.ownership.owners.claims() if claim.size.job == job]
        events = [e["time"] for e in self.folder.events() if str(e.get("life", "")).startswith(f"{job}.")]
        return max([*starts, *events], default=0.0)
