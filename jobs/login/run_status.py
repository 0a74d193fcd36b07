"""The status of a run, from the files in its folder and the state of its Slurm job."""

import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.login.slurm_queries import QueuedJob
from jobs.node import submitter_lock
from vit.run.disk_errors import naming, read_if_exists
from vit.run.folder import Event, RunFolder
from vit.run.jsonl import read_lines

# Ledger events from which the state of a run is derived.
STATE_EVENTS = {"submitted", "supervising", "started", "stopped", "finished", "reopened", "gave up", "failed"}
FINAL_EVENTS = {"finished", "gave up"}
TAIL_BYTES = 1 << 14  # how much of the learning curve is read: some epochs


@dataclass(frozen=True, kw_only=True)
class Status:
    """One row of the table; None if a value is unknown or does not exist yet."""

    run: str
    folder: str
    # queued, running, requeued, stopped, finished, gave up, failed, lost, unknown, not submitted, unreadable
    state: str
    detail: str = ""  # why it is pending, or where it runs
    why: str = ""  # why it ended, if it failed
    job: str | None = None  # Slurm's job id
    step: int | None = None
    steps: int | None = None  # of the whole run
    loss: float | None = None
    top1: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    restarts: int = 0  # in place
    requeues: int = 0
    seconds_since_sign: float | None = None  # since the run last wrote anything


def is_run(path: Path) -> bool:
    """Whether a folder is a run folder, possibly an incomplete one: it has a config or a ledger."""
    run = RunFolder(path)
    try:
        return run.config.is_file() or run.ledger.is_file()
    except OSError:
        return True  # its status says what cannot be read


def newest_job(run: RunFolder) -> str | None:
    """The id of the run's newest Slurm job, None also if the ledger cannot be read."""
    try:
        return _newest_job(read_events(run))
    except OSError:
        return None


def status(run: RunFolder, jobs: Mapping[str, QueuedJob] | None) -> Status:
    """The status of a run; "unreadable" if one of its files cannot be read.

    `jobs` are those in Slurm's queue; None if they are unknown.
    """
    try:
        return _status(run, jobs)
    except OSError as error:
        return Status(run=run.path.name, folder=str(run.path), state="unreadable", why=str(error))


def _status(run: RunFolder, jobs: Mapping[str, QueuedJob] | None) -> Status:
    events = read_events(run)
    state, detail, why = _state(run, events, jobs)
    records = read_tail(run.metrics)
    trained = next((r for r in reversed(records) if "loss" in r), {})
    evaluated = next((r for r in reversed(records) if "val_top1" in r), None)
    if evaluated is None and records and run.metrics.stat().st_size > TAIL_BYTES:
        evaluated = next((r for r in reversed(read_lines(run.metrics)) if "val_top1" in r), None)
    newest = records[-1] if records else {}
    return Status(
        run=run.path.name,
        folder=str(run.path),
        state=state,
        detail=detail,
        why=why,
        job=_newest_job(events),
        step=newest.get("step"),
        steps=newest.get("steps"),
        loss=trained.get("loss"),
        top1=evaluated.get("val_top1_average", evaluated["val_top1"]) if evaluated else None,
        images_per_second=trained.get("images_per_second"),
        seconds_left=trained.get("seconds_left"),
        restarts=sum(event["event"] == "restarting in place" for event in events),
        requeues=_requeues(events),
        seconds_since_sign=_seconds_since_write(run),
    )


def read_events(run: RunFolder) -> list[Event]:
    """The events of the ledger.  The folder may be incomplete, or not a run folder at all.  Raises OSError."""
    return [event for event in run.events() if isinstance(event["event"], str)]


def read_tail(path: Path) -> list[Event]:
    """The newest records of a learning curve, from the last TAIL_BYTES of the file.  Raises OSError."""

    def read() -> list[str]:
        with naming(path), path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[size > TAIL_BYTES :]

    lines = read_if_exists(path, read) or []
    out = []
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            out.append(record)
    return out


def _newest_job(events: Sequence[Event]) -> str | None:
    return next((str(e["job"]) for e in reversed(events) if e["event"] == "submitted" and "job" in e), None)


def _requeues(events: Sequence[Event]) -> int:
    """Starts of jobs except for the first start of each; `life` is JOB.COUNT, and COUNT starts at 0."""
    starts = {str(event.get("life")) for event in events if event["event"] == "supervising"}
    return sum(not start.endswith(".0") for start in starts)


def _state(run: RunFolder, events: Sequence[Event], jobs: Mapping[str, QueuedJob] | None) -> tuple[str, str, str]:
    """`state`, `detail` and `why` of a run's Status."""
    events = [event for event in events if event["event"] in STATE_EVENTS]
    job_id = _newest_job(events)
    starts = [str(event.get("life")) for event in events if event["event"] == "supervising"]
    starts_of_job = [start for start in starts if start.startswith(f"{job_id}.")]
    newest = events[-1]["event"] if events else ""
    # A later start that is not the job's is a local run.
    on_slurm = job_id is not None and (newest == "submitted" or not starts or starts[-1] in starts_of_job)
    if on_slurm and jobs is not None and (job := jobs.get(str(job_id))):
        if job.state == "PENDING":
            return ("requeued" if starts_of_job else "queued"), job.reason, ""
        return "running", job.nodes if job.state == "RUNNING" else f"{job.nodes}, {job.state.lower()}", ""
    if newest in FINAL_EVENTS:
        return newest, "", without_log_lines(str(events[-1].get("why", "")))
    if on_slurm and jobs is None:
        return "unknown", f"job {job_id}", ""
    if not on_slurm and (found := _local_process(run, events)):
        return *found, ""
    return _state_after_end(run, events, job_id if on_slurm and not starts_of_job else None)


def _state_after_end(run: RunFolder, events: Sequence[Event], never_started: str | None) -> tuple[str, str, str]:
    """The state of an unfinished run without process or job.  `never_started`: its job, if that ended before it ran."""
    newest = events[-1] if events else {"event": "not submitted"}
    if newest["event"] == "reopened":
        return "stopped", "", ""
    if newest["event"] in {"stopped", "failed", "not submitted"}:
        return newest["event"], "", without_log_lines(str(newest.get("unsaved", newest.get("error", ""))))
    if never_started:
        why = f"job {never_started} ended before the run started; see `sacct -j {never_started}`, and check that its "
        return "lost", "", why + "nodes see this folder"
    return "lost", "", f"ended without recording a reason; see the logs in {run.jobs} and {run.logs}"


def _local_process(run: RunFolder, events: Sequence[Event]) -> tuple[str, str] | None:
    """`running` or `queued`, and the process on this machine that owns the run; None if there is none."""
    for name in ("owner", submitter_lock.NAME):  # between two attempts only the second one runs
        try:
            owner = (run.path / name).read_text()
            match = re.match(r"process (\d+) on (\S+?),?\s", owner)
            if match is None or match[2] != socket.gethostname():
                continue
            command = Path("/proc", match[1], "cmdline").read_bytes()
        except (OSError, UnicodeDecodeError):
            continue
        if b"vit.train" in command:
            return "running", f"process {match[1]}"
        if b"submit" in command:
            # The submit.py of a sweep has locked all runs of the sweep, and trains them one after the other.
            return "running" if _began_after(int(match[1]), events) else "queued", f"process {match[1]}"
    return None


def _began_after(process: int, events: Sequence[Event]) -> bool:
    """Whether an attempt of the run, which has not ended, is newer than the start of this process."""
    import psutil  # not at the top: it takes time, and is rarely needed

    newest = next((e for e in reversed(events) if e["event"] in {"supervising", "started", "stopped"}), None)
    try:
        started = psutil.Process(process).create_time()
    except psutil.Error:  # it has just ended
        return False
    return newest is not None and newest["event"] != "stopped" and float(newest.get("time", 0)) > started


def without_log_lines(reason: str) -> str:
    """The reason for the end of a run in one line, without the indented lines of the log that follow it."""
    return "; ".join(line for line in reason.splitlines() if line and not line.startswith("  "))


def _seconds_since_write(run: RunFolder) -> float | None:
    times = []
    for path in (run.metrics, run.ledger, run.logs / "rank-0.log", run.checkpoints):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return round(max(0.0, time.time() - max(times)), 1) if times else None
