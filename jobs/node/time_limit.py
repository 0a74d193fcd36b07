"""Stops a job before its time limit where Slurm does not: a site may remove the request for a signal (--signal).

At the time limit itself Slurm sends SIGTERM and does not requeue the job: the run would save and end.
"""

import threading
import time
from datetime import datetime

from jobs.node import signals, slurm_job
from jobs.node.slurm_job import STOP_SECONDS
from vit.run.progress import show

MARGIN_SECONDS = 5.0  # in addition to the time to save; Slurm's own signal comes at least 10 s before the time to save
POLL_SECONDS = 1.0


def watch(nodes: int) -> None:
    """Starts a thread that stops this job if there is just enough time left to save, and no signal has come."""
    if slurm_job.job_id() is not None:
        threading.Thread(target=_watch, args=(nodes,), daemon=True).start()


def seconds_to_save(left: float) -> float:
    """How long before the time limit a job stops that has `left` seconds at its start: half of a very short job."""
    return min(STOP_SECONDS + MARGIN_SECONDS, left / 2)


def _watch(nodes: int) -> None:
    left, now = slurm_job.seconds_left(), time.time()
    end = _end_by_slurm() if left is None else now + left
    if end is None:
        return
    needed = seconds_to_save(end - now)
    while not signals.stop_requested():
        if time.time() > end - needed:
            later = _end_by_slurm()
            if later is None or later <= end + POLL_SECONDS:
                show(
                    f"{end - time.time():.0f} s before the time limit, Slurm has not sent the requested signal: "
                    "saving now",
                    lasting=True,
                )
                signals.stop_job(nodes)
                return
            end = later  # somebody has extended the time limit
        time.sleep(POLL_SECONDS)


def _end_by_slurm() -> float | None:
    """When this start of the job ends, by its time limit; None if Slurm does not tell."""
    try:
        return datetime.fromisoformat(slurm_job.show_job(slurm_job.job_id() or "").get("EndTime", "")).timestamp()
    except ValueError:
        return None
