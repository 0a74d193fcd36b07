"""The status of a run, from the files in its folder and the state of its Slurm job."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from jobs.node.candidates import job_ids
from jobs.slurm.tables import QueuedJob
from jobs.watch import file_cache
from jobs.watch.candidate_states import CandidateState, candidate_states, changed_requests, queue_state
from jobs.watch.file_cache import cached
from jobs.watch.local_process import local_process
from jobs.watch.time_left import expected_end
from jobs.watch.waiting import advice
from vit.history.attempts import Attempt, mark_killed, read_attempts
from vit.history.learning_curve import integer, number, read_newest, top1
from vit.history.slow_ranks import slow_now
from vit.history.time_spent import TimeSpent, time_spent
from vit.run.folder import Event, RunFolder
from vit.run.rank_log import describe

# Ledger events from which the state of a run is derived.
STATE_EVENTS = {
    *("submitted", "supervising", "started", "stopped", "finished", "reopened", "gave up", "failed"),
    *("canceled", "preempted"),
}
RECENT_SECONDS = 600.0  # a run that wrote something since then seems to run
FINAL_EVENTS = {"finished", "gave up"}
# Events after which a run has stopped, and why, given its job.
WHY_ENDED = {
    "reopened": "",
    "canceled": "job {} was canceled",
    "preempted": "Slurm preempted job {} and canceled it (PreemptMode=CANCEL): the same command resumes the run",
}


@dataclass(frozen=True, kw_only=True)
class Status:
    """One row of the table; None if a value is unknown or does not exist yet."""

    run: str
    folder: str
    # queued, running, requeued, stopped, finished, gave up, failed, lost, unknown, not submitted, unreadable
    state: str
    alive: bool = False  # it trains now, or seems to while Slurm does not answer
    detail: str = ""  # why it is pending, or where it runs
    why: str = ""  # why it ended, if it failed
    job: str | None = None  # Slurm's job id; of several jobs, the one that trained last
    candidates: tuple[CandidateState, ...] = ()  # if it was submitted in several sizes: the job of each
    changed: tuple[str, ...] = ()  # what the cluster has changed of the request
    step: int | None = None
    steps: int | None = None  # of the whole run
    epoch: float | None = None
    epochs: float | None = None  # of the whole run
    loss: float | None = None
    top1: float | None = None  # of the newest evaluation
    best_top1: float | None = None
    best_epoch: float | None = None
    images_per_second: float | None = None
    mfu: float | None = None  # model FLOP/s utilization, as recorded; `details.py` computes it where it is not
    seconds_left: float | None = None  # from now on, evaluations and checkpoints included
    ends: float | None = None  # Unix time
    attempt: int = 0  # number of the newest one
    restarts: int = 0  # in place
    requeues: int = 0
    device: str = ""  # name of the GPU, or "cpu"
    ranks: int | None = None
    goodput: float | None = None  # share of the time on the nodes that went into steps that count
    data_wait: float | None = None  # share of the time on the nodes that was spent waiting for images
    checkpoint: int | None = None  # the newest step that was saved
    checkpoint_age: float | None = None  # seconds
    waiting: float | None = None  # seconds in the queue, since it was submitted or requeued
    seconds_since_sign: float | None = None  # since the run last wrote anything
    slow_ranks: tuple[str, ...] = ()  # ranks that are slow now, each with its node and what it is slow at
    attempts: tuple[Attempt, ...] = ()
    time_spent: TimeSpent = field(default_factory=TimeSpent)
    # Added by `details.py`:
    gpu: float | None = None  # share of the time in which a kernel ran
    gpu_memory: int | None = None  # bytes: the peak of the GPU that used most
    gpu_memory_total: int | None = None
    problems: tuple[str, ...] = ()  # what could not be read
    damaged: tuple[str, ...] = ()  # what is damaged, and left out; only of a run that is looked at alone


def is_run(path: Path) -> bool:
    """Whether a folder is a run folder, possibly an incomplete one: it has a config or a ledger."""
    run = RunFolder(path)
    if file_cache.is_file(run.ledger):  # most have one
        return True
    try:
        return run.config.is_file() or run.ledger.is_file()
    except OSError:
        return True  # its status says what cannot be read


def newest_jobs(run: RunFolder) -> list[str]:
    """The ids of the jobs of the run's newest submission; none also if the ledger cannot be read."""
    try:
        return job_ids(read_events(run))
    except OSError:
        return []


def prefetch(run: RunFolder) -> None:
    """Reads what `status` needs beside the ledger; an error is reported there."""
    _seconds_since_write(run)
    with suppress(OSError):
        file_cache.best_evaluation(run.metrics, cached(read_newest, run.metrics).evaluation)
    with suppress(OSError):
        file_cache.usage(run)


def status(run: RunFolder, jobs: Mapping[str, QueuedJob] | None) -> Status:
    """The status of a run; "unreadable" if one of its files cannot be read.

    `jobs` are those in Slurm's queue; None if they are unknown.
    """
    try:
        return _status(run, jobs)
    except OSError as error:
        return Status(run=_name(run), folder=str(run.path), state="unreadable", why=str(error))


def _status(run: RunFolder, jobs: Mapping[str, QueuedJob] | None) -> Status:
    events = read_events(run)
    changes = [event for event in events if event["event"] in STATE_EVENTS]
    state, detail, why = _state(run, changes, jobs)
    curve = cached(read_newest, run.metrics)
    newest, trained, evaluation = curve.record, curve.training, curve.evaluation
    attempts = read_attempts(events, newest)
    if attempts and attempts[-1].ending == "running" and state not in ("running", "unknown"):
        mark_killed(attempts[-1])
    spent, highest = time_spent(attempts), file_cache.best_evaluation(run.metrics, evaluation)
    age = _seconds_since_write(run)
    runs = state == "running" and "suspended" not in detail
    alive = runs or (state == "unknown" and age is not None and age < RECENT_SECONDS)
    ends = expected_end(trained, newest, attempts[-1] if attempts else None) if alive else None
    saved = [e for e in events if e["event"] == "checkpoint" and integer(e, "step") is not None]
    last, now = attempts[-1] if attempts else None, time.time()
    return Status(
        run=_name(run),
        folder=str(run.path),
        state=state,
        detail=detail,
        why=why,
        job=_newest_job(changes),
        candidates=candidate_states(changes, jobs, _owner(changes, job_ids(changes))),
        changed=changed_requests(events),
        step=integer(newest, "step"),
        steps=integer(newest, "steps"),
        epoch=number(newest, "epoch"),
        epochs=number(newest, "epochs"),
        loss=number(trained, "loss"),
        top1=top1(evaluation),
        best_top1=number(highest, "best_top1"),
        best_epoch=number(highest, "best_epoch"),
        images_per_second=number(trained, "images_per_second"),
        mfu=number(trained, "mfu"),
        seconds_left=None if ends is None else max(0.0, round(ends - now, 1)),
        ends=ends,
        attempt=len(attempts),
        restarts=sum(event["event"] == "restarting in place" for event in events),
        requeues=_requeues(changes),
        device=last.device if last else "",
        ranks=last.ranks if last else None,
        goodput=spent.goodput,
        data_wait=spent.share("data") if spent.goodput is not None else None,
        checkpoint=saved[-1]["step"] if saved else None,
        checkpoint_age=_age(saved[-1:], now),
        waiting=_age(events[-1:], now) if state in ("queued", "requeued") else None,
        seconds_since_sign=age,
        alive=alive,
        slow_ranks=tuple(map(describe, slow_now(events))) if alive else (),
        attempts=tuple(attempts),
        time_spent=spent,
    )


def read_events(run: RunFolder) -> list[Event]:
    """The events of the ledger.  The folder may be incomplete, or not a run folder at all.  Raises OSError."""
    return cached(_read_events, run.ledger)


def _read_events(ledger: Path) -> list[Event]:
    return [event for event in RunFolder(ledger.parent).events() if isinstance(event["event"], str)]


def _age(events: Sequence[Event], now: float) -> float | None:
    """Seconds since the last of the events."""
    recorded = number(events[-1], "time") if events else None
    return None if recorded is None else round(max(0.0, now - recorded), 1)


def _name(run: RunFolder) -> str:
    """The name of the folder, also of `.` and `..`."""
    return run.path.name if run.path.name not in ("", "..") else run.path.resolve().name


def _newest_job(events: Sequence[Event]) -> str | None:
    """The job that trained last, else the first one that was submitted last."""
    ids = job_ids(events)
    return _owner(events, ids) or next(iter(ids), None)


def _owner(events: Sequence[Event], ids: Sequence[str]) -> str:
    """Which of these jobs has trained last; "" if none has."""
    lives = (str(e.get("life")).rpartition(".")[0] for e in reversed(events) if e["event"] == "supervising")
    return next((job for job in lives if job in ids), "")


def _requeues(events: Sequence[Event]) -> int:
    """Starts of jobs except for the first start of each; `life` is JOB.COUNT, and COUNT starts at 0."""
    starts = {str(event.get("life")) for event in events if event["event"] == "supervising"}
    return sum(not start.endswith(".0") for start in starts)


def _state(run: RunFolder, events: Sequence[Event], jobs: Mapping[str, QueuedJob] | None) -> tuple[str, str, str]:
    """`state`, `detail` and `why` of a run's Status, from its STATE_EVENTS."""
    ids = job_ids(events)
    starts = [str(event.get("life")).rpartition(".")[0] for event in events if event["event"] == "supervising"]
    has_started = not set(ids).isdisjoint(starts)
    newest = events[-1]["event"] if events else ""
    # A later start that is not the job's is a local run.
    on_slurm = bool(ids) and (newest == "submitted" or not starts or starts[-1] in ids)
    if on_slurm and jobs is not None and (found := queue_state(events, jobs, _owner(events, ids))):
        if found[0] == "running":
            return *found, ""
        if newest not in FINAL_EVENTS:  # else its jobs are being canceled, or end at once if Slurm starts them again
            return ("requeued" if has_started else "queued"), found[1], advice(found[1], ids)
    if newest in FINAL_EVENTS:
        return newest, "", without_log_lines(str(events[-1].get("why", "")))
    if on_slurm and jobs is None:
        return "unknown", f"job {' '.join(ids)}", ""
    if not on_slurm and (local := local_process(run, events)):
        return *local, ""
    return _state_after_end(run, events, ids[0] if on_slurm and not has_started else None)


def _state_after_end(run: RunFolder, events: Sequence[Event], never_started: str | None) -> tuple[str, str, str]:
    """The state of an unfinished run without process or job.  `never_started`: its job, if that ended before it ran."""
    newest = events[-1] if events else {"event": "not submitted"}
    if newest["event"] in WHY_ENDED:
        return "stopped", "", WHY_ENDED[newest["event"]].format(newest.get("job"))
    if newest["event"] in {"stopped", "failed", "not submitted"}:
        return newest["event"], "", without_log_lines(str(newest.get("unsaved", newest.get("error", ""))))
    if never_started:
        why = f"job {never_started} ended before the run started; see `sacct -j {never_started}` (without accounting: "
        why += f"soon, `scontrol show job {never_started}`), and check that its nodes see this folder"
        return "lost", "", why
    return "lost", "", f"ended without recording a reason; see the logs in {run.jobs} and {run.logs}"


def without_log_lines(reason: str) -> str:
    """The reason for the end of a run in one line, without the indented lines of the log that follow it."""
    return "; ".join(line for line in reason.splitlines() if line and not line.startswith("  "))


def _seconds_since_write(run: RunFolder) -> float | None:
    found = map(file_cache.look_at, (run.metrics, run.ledger, run.logs / "rank-0.log", run.checkpoints))
    times = [each.st_mtime for each in found if each is not None]
    return round(max(0.0, time.time() - max(times)), 1) if times else None
