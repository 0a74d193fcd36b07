"""What a job of a run with several jobs does before it trains: it becomes the owner of the run, or leaves at once."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from jobs.node import other_jobs, signals, slurm_job
from jobs.node.candidates import Candidate, candidates
from jobs.node.job_spec import READ_SECONDS, JobSpec
from jobs.node.ownership import Claim, Owners
from jobs.node.run_over import OVER, event_that_ended
from vit.run.disk_errors import TOLERATED_WRITE_ERRORS, explained
from vit.run.folder import Event, RunFolder
from vit.run.progress import show

POLL_SECONDS = 0.3
ANSWER_SECONDS = 60.0  # for the owner to answer
YIELD_SECONDS = 10.0  # for a larger job that has just started to claim the run
LEAVE_SECONDS = 300.0  # for an owner that has agreed to save and to leave
ASK_SLURM_SECONDS = 5.0  # between questions whether the owner's job has ended
RECORD_SECONDS = 3600.0  # in which a job records only once that it was declined


@dataclass
class Ownership:
    """The claim of this job, and the other jobs of its run."""

    owners: Owners
    claim: Claim
    others: list[Candidate]
    released: bool = False
    canceled: bool | None = None  # whether this job was canceled; None: Slurm has not been asked
    lock: threading.Lock = field(default_factory=threading.Lock)
    leave: Callable[[], None] = lambda: None  # tells the other jobs that this one leaves, once it has begun to train

    def end_if_canceled(self, folder: RunFolder) -> bool:
        """If this job was told to stop because somebody canceled it, cancels the others.  Asks Slurm once."""
        with self.lock:  # a thread of the supervisor may do it, while the process is about to exit
            if self.canceled is None:
                self.canceled = slurm_job.is_being_canceled()
                if self.canceled:
                    with suppress(OSError):
                        folder.record("canceled", job=slurm_job.job_id(), life=slurm_job.start_id())
                    withdraw(folder, self.others, f"job {slurm_job.job_id()} was canceled")
            return self.canceled

    def release(self) -> None:
        """Says that the ranks of this job have ended.  If the disk cannot be written, Slurm tells that they have."""
        if not self.released:
            self.released = True
            with suppress(OSError):
                self.owners.release(self.claim)


_current: list[Ownership] = []  # that of this process, if it is the first node of a job of several


def current() -> Ownership | None:
    """The ownership of this process; None if its run has only one job, or outside of Slurm."""
    return _current[-1] if _current else None


def release() -> None:
    """Releases the run, if this process owns it, and lets its other jobs start: this process exits next.

    To be called when its ranks have ended.
    """
    if _current:
        _current[-1].release()
        _current[-1].leave()


def obtain(job: JobSpec, prepare: Callable[[], None]) -> None:
    """Returns once this job owns the run; at once if the run has no other job.

    `prepare` is called before a wait for the owner to leave.  Exits the process if the run is to stay where it is.
    Raises StoppedError on a signal, OSError if the run folder cannot be read.
    """
    folder = RunFolder(Path(job.run), patience=READ_SECONDS)
    events = folder.events()
    jobs = candidates(events)
    mine = next((each for each in jobs if each.job == slurm_job.job_id()), None)
    if mine is None or len(jobs) < 2:
        return
    owners, start = Owners(folder.path, READ_SECONDS), slurm_job.start_id()
    if slurm_job.node_rank() > 0:  # the first node claims the run, or puts the job back into the queue, which ends this
        while (owner := owners.newest()) is None or owner.start != start:
            time.sleep(POLL_SECONDS)
        return
    others = [each for each in jobs if each != mine]
    wanted = Claim(mine, start, slurm_job.node_name(), round(time.time(), 3))
    candidacy = _Candidacy(folder, owners, wanted, others, prepare)
    try:
        claim = candidacy.obtain()
    except OSError as error:
        if error.errno not in TOLERATED_WRITE_ERRORS:
            raise
        candidacy.leave_for_now(f"this run cannot be claimed: {explained(error)}")
    _current.append(Ownership(owners, claim, others))
    show(f"job {mine.job} ({mine.size}) trains this run", lasting=True)


class _Candidacy:
    """One job's way to the ownership of a run."""

    def __init__(
        self, folder: RunFolder, owners: Owners, wanted: Claim, others: Sequence[Candidate], prepare: Callable[[], None]
    ) -> None:
        self.folder, self.owners, self.wanted, self.others, self.prepare = folder, owners, wanted, others, prepare
        self._yield_until = time.monotonic() + YIELD_SECONDS

    def obtain(self) -> Claim:
        """Claims the run as soon as nobody owns it.  Exits the process if the owner keeps it, or if it is over."""
        while True:
            self._leave_if_over()
            owner = self.owners.newest()
            free = owner is None or owner.start == self.wanted.start or self._has_ended(owner)
            if free:
                self._leave_if_canceled(owner)
                self._let_larger_job_claim()
                if claim := self.owners.claim(self.wanted, 1 + (owner.number if owner else 0)):
                    return claim
            elif free is None:  # Slurm does not respond
                time.sleep(2)
            else:
                assert owner is not None
                self._ask(owner)

    def _let_larger_job_claim(self) -> None:
        """Waits a moment if a larger job has just started: it would ask this one to hand over as soon as it trains."""
        larger = [each.job for each in self.others if each.ranks > self.wanted.size.ranks]
        newest = self.owners.newest()
        while time.monotonic() < self._yield_until and self.owners.newest() == newest:
            if not any(slurm_job.show_job(job).get("JobState") in ("CONFIGURING", "RUNNING") for job in larger):
                return
            time.sleep(POLL_SECONDS)

    def _has_ended(self, owner: Claim) -> bool | None:
        return self.owners.is_released(owner) or other_jobs.start_is_over(owner.start)

    def _ask(self, owner: Claim) -> None:
        """Returns when the owner has left, or is another one; exits the process if it stays."""
        request = self.owners.ask(owner, self.wanted)
        try:
            deadline, next_question = time.monotonic() + ANSWER_SECONDS, time.monotonic() + ASK_SLURM_SECONDS
            accepted = False
            while True:
                answer = self.owners.answer(request)
                if answer is not None and not answer.accepted:
                    self._decline(owner, answer.why)
                if answer is not None and not accepted:
                    accepted, deadline = True, time.monotonic() + LEAVE_SECONDS
                    show(f"job {owner.size.job} ({owner.size.size}) hands this run over: {answer.why}", lasting=True)
                    self.prepare()
                newest = self.owners.newest()
                if newest is None or newest.number != owner.number or self.owners.is_released(owner):
                    return
                if time.monotonic() > next_question:
                    if other_jobs.start_is_over(owner.start):
                        return
                    next_question = time.monotonic() + ASK_SLURM_SECONDS
                if time.monotonic() > deadline:
                    self._decline(owner, f"job {owner.size.job} does not {'leave' if accepted else 'answer'}")
                time.sleep(POLL_SECONDS)
        finally:
            self.owners.withdraw(request)

    def _decline(self, owner: Claim, why: str) -> NoReturn:
        """Records that the owner keeps the run, and leaves."""
        before = [e for e in self.folder.events() if e["event"] == "declined" and e.get("job") == self.wanted.size.job]
        if not before or time.time() - before[-1]["time"] > RECORD_SECONDS:
            self.folder.note(
                "declined", job=self.wanted.size.job, life=self.wanted.start, owner=owner.size.job, why=why
            )
        self.leave_for_now(f"job {owner.size.job} ({owner.size.size}) keeps this run: {why}")

    def leave_for_now(self, why: str) -> NoReturn:
        """Puts this job back into the queue, for later, and exits."""
        show(why, lasting=True)
        signals.ignore_stop_signals()
        if refused := slurm_job.requeue(deferred=True):
            show(f"this job ends, because it cannot wait in the queue again: {refused}", lasting=True)
            self._end("it could not be requeued")
        sys.exit(slurm_job.REQUEUED)

    def _leave_if_over(self) -> None:
        """Exits the process if the run has finished or was given up."""
        if (ended := event_that_ended(self.folder)) is not None:
            show(f"nothing to do: this run has {OVER[ended['event']]}", lasting=True)
            withdraw(self.folder, self.others, OVER[ended["event"]])
            self._end("the run was over")

    def _leave_if_canceled(self, owner: Claim | None) -> None:
        """Ends all jobs of the run if somebody canceled the one that trained it, and it had no time to do so itself.

        Canceling a job that waits only takes away its size.
        """
        if owner is None or owner.size.job in withdrawn_jobs(self.folder.events()):
            return
        if owner.size in self.others and other_jobs.was_canceled(owner.start, self.owners.is_released(owner)):
            show(f"job {owner.size.job}, which trained this run, was canceled; so this one ends, too", lasting=True)
            self.folder.record("canceled", job=owner.size.job, life=self.wanted.start)
            withdraw(self.folder, self.others, f"job {owner.size.job} was canceled")
            self._end("the run was canceled")

    def _end(self, why: str) -> NoReturn:
        """Exits the process.  The other nodes of this job wait for a claim that will not come: Slurm ends them."""
        signals.ignore_stop_signals()
        if self.wanted.size.nodes > 1:
            withdraw(self.folder, [self.wanted.size], why)
        sys.exit(0)


def withdrawn_jobs(events: Sequence[Event]) -> set[str]:
    """The jobs that this project canceled itself."""
    return {job for event in events if event["event"] == "withdrawn" for job in event["jobs"]}


def withdraw(folder: RunFolder, jobs: Sequence[Candidate], why: str) -> None:
    """Cancels other jobs of a run, which it does not need any more."""
    ids = [each.job for each in jobs]
    with suppress(OSError):
        folder.record("withdrawn", jobs=ids, why=why)  # before they are gone: a user would seem to have canceled them
    if refused := other_jobs.cancel(ids):
        show(f"the other jobs of this run could not all be canceled: {refused}", lasting=True)
