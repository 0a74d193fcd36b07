"""How a run is doing, from what it wrote down and from what Slurm has of it."""

import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.login.slurm_queries import Queued
from vit.run.folder import Event, RunFolder
from vit.run.jsonl import read_lines

# Events of a run's life.
TELLING = {"submitted", "supervising", "started", "stopped", "finished", "reopened", "gave up", "failed"}
ENDS = {"finished", "gave up"}
TAIL_BYTES = 1 << 14  # of the learning curve: some epochs of it


@dataclass(frozen=True, kw_only=True)
class Status:
    """One row of the table; None is what is not known, or not yet."""

    run: str
    folder: str
    state: str  # queued, running, requeued, stopped, finished, gave up, failed, lost, unknown, not submitted
    detail: str = ""  # what it waits for, where it runs
    why: str = ""  # why it ended, if it ended badly
    job: str | None = None  # Slurm's number
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    top1: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    restarts: int = 0  # in place
    requeues: int = 0
    seconds_since_sign: float | None = None

    def cells(self) -> tuple[str, ...]:
        """As text, for COLUMNS."""
        share = f"{100 * self.step / self.steps:.1f}" if self.step is not None and self.steps else "-"
        step = f"{self.step:,}/{self.steps:,}" if self.step is not None and self.steps else "-"
        running = self.state == "running"
        return (
            self.run,
            f"{self.state} ({self.detail})" if self.detail else self.state,
            step,
            share,
            "-" if self.loss is None else f"{self.loss:.4f}",
            "-" if self.top1 is None else f"{self.top1:.2%}",
            "-" if self.images_per_second is None or not running else f"{self.images_per_second:,.0f}",
            "-" if self.seconds_left is None or not running else spoken(self.seconds_left),
            str(self.restarts) if self.restarts else "-",
            str(self.requeues) if self.requeues else "-",
            "-" if self.seconds_since_sign is None else spoken(self.seconds_since_sign),
        )


def is_run(path: Path) -> bool:
    """Whether a folder is one of ours; one that is not quite, say without a config, may be."""
    run = RunFolder(path)
    return run.config.is_file() or run.ledger.is_file()


def newest_job(run: RunFolder) -> str | None:
    """The number of the run's newest job of Slurm's."""
    return _job(events(run))


def status(run: RunFolder, jobs: Mapping[str, Queued] | None) -> Status:
    """How it is doing.  `jobs` are those that Slurm has; None if it does not answer."""
    happened = events(run)
    state, detail, why = _state(run, happened, jobs)
    records = curve(run.metrics)
    last = next((r for r in reversed(records) if "loss" in r), {})
    scored = next((r for r in reversed(records) if "val_top1" in r), None)
    if scored is None and records and run.metrics.stat().st_size > TAIL_BYTES:
        scored = next((r for r in reversed(read_lines(run.metrics)) if "val_top1" in r), None)
    newest = records[-1] if records else {}
    return Status(
        run=run.path.name,
        folder=str(run.path),
        state=state,
        detail=detail,
        why=why,
        job=_job(happened),
        step=newest.get("step"),
        steps=newest.get("steps"),
        loss=last.get("loss"),
        top1=scored.get("val_top1_average", scored["val_top1"]) if scored else None,
        images_per_second=last.get("images_per_second"),
        seconds_left=last.get("seconds_left"),
        restarts=sum(e["event"] == "restarting in place" for e in happened),
        requeues=_requeues(happened),
        seconds_since_sign=_age(run),
    )


def events(run: RunFolder) -> list[Event]:
    """What happened, as far as it can be read: a folder may be half-written, or somebody else's."""
    try:
        found = run.events()
    except (OSError, UnicodeDecodeError):
        return []
    return [event for event in found if isinstance(event, dict) and isinstance(event.get("event"), str)]


def curve(path: Path) -> list[Event]:
    """The newest records of a learning curve; a long one is not read from its beginning."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[size > TAIL_BYTES :]
    except OSError:
        return []
    out = []
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            out.append(record)
    return out


def _job(happened: Sequence[Event]) -> str | None:
    return next((str(e["job"]) for e in reversed(happened) if e["event"] == "submitted" and "job" in e), None)


def _requeues(happened: Sequence[Event]) -> int:
    """Starts of a job after its first one."""
    lives = {str(e.get("life")) for e in happened if e["event"] == "supervising"}
    return sum(not life.endswith(".0") for life in lives)


def _state(run: RunFolder, happened: Sequence[Event], jobs: Mapping[str, Queued] | None) -> tuple[str, str, str]:
    """State, detail and why."""
    since = [e for e in happened if e["event"] in TELLING]
    number = _job(since)
    starts = [str(e.get("life")) for e in since if e["event"] == "supervising"]
    started = [life for life in starts if life.startswith(f"{number}.")]
    newest = since[-1]["event"] if since else ""
    on_slurm = number is not None and (newest == "submitted" or not starts or starts[-1] in started)
    if on_slurm and jobs is not None and (job := jobs.get(str(number))):
        if job.state == "PENDING":
            return ("requeued" if started else "queued"), job.reason, ""
        return "running", job.nodes if job.state == "RUNNING" else f"{job.nodes}, {job.state.lower()}", ""
    if newest in ENDS:
        return newest, "", first_lines(str(since[-1].get("why", "")))
    if on_slurm and jobs is None:
        return "unknown", f"job {number}", ""
    if not on_slurm and (owner := _living_owner(run)):
        return "running", owner, ""
    return _ended(run, since, number if on_slurm and not started else None)


def _ended(run: RunFolder, since: Sequence[Event], never_started: str | None) -> tuple[str, str, str]:
    """Of a run that nobody has any more, and that is not finished."""
    newest = since[-1] if since else {"event": "not submitted"}
    if newest["event"] == "reopened":
        return "stopped", "", ""
    if newest["event"] in {"stopped", "failed", "not submitted"}:
        return newest["event"], "", first_lines(str(newest.get("unsaved", newest.get("error", ""))))
    if never_started:
        why = f"job {never_started} ended before it began: see sacct -j {never_started}; do its nodes see this folder?"
        return "lost", "", why
    return "lost", "", f"ended without a word; {run.jobs} and {run.logs} hold what it said"


def _living_owner(run: RunFolder) -> str:
    """The process that holds a run of this machine, if it lives."""
    try:
        words = (run.path / "owner").read_text()
    except (OSError, UnicodeDecodeError):
        return ""
    found = re.match(r"process (\d+) on (\S+?),?\s", words)
    if found is None or found[2] != socket.gethostname():
        return ""
    try:
        command = Path("/proc", found[1], "cmdline").read_bytes()
    except OSError:
        return ""
    return f"process {found[1]}" if b"vit.train" in command or b"submit" in command else ""


def first_lines(text: str) -> str:
    """The reason of a run's end without the last words of its log, which are indented."""
    return "; ".join(line for line in text.splitlines() if line and not line.startswith("  "))


def _age(run: RunFolder) -> float | None:
    """Seconds since anything was written."""
    times = []
    for path in (run.metrics, run.ledger, run.logs / "rank-0.log", run.checkpoints):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return round(max(0.0, time.time() - max(times)), 1) if times else None


def spoken(seconds: float) -> str:
    """`42 s`, `3:05`, `2:10:00`, `3 d 4 h`: as short as it may be."""
    seconds = round(seconds)
    if seconds < 100:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d}"
    if seconds < 2 * 86400:
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"
