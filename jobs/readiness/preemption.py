"""What preemption really does: a small job of our own is signaled and requeued, and records what arrived when."""

import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.login.resources import Resources
from jobs.login.slurm_queries import SlurmNotFoundError, queued_jobs
from jobs.readiness import signal_probe
from jobs.readiness.finding import Finding
from jobs.readiness.own_job import OwnJobError, call_slurm, end_job, own_folder, submit, why_not_running
from vit.run.hints import command
from vit.run.jsonl import read_lines

JOB_NAME, MINUTES = "vit-preemption-check", 15  # of the job, and its time limit
ARRIVAL_SECONDS = 30  # a signal that takes longer does not arrive
END_SECONDS = 300  # after a requeue was requested, for the processes to be killed

Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds that were measured; None if it did not happen."""

    queued: float  # from the submission until the job ran
    signal: float | None  # from `scancel --signal USR2` until the job had the signal
    refused: str = ""  # why Slurm refused to requeue the job
    term: float | None = None  # from `scontrol requeue` until SIGTERM
    kill: float | None = None  # from SIGTERM until SIGKILL
    again: float | None = None  # from `scontrol requeue` until the job ran again
    nodes: tuple[str, ...] = ()  # on which it ran
    reason: str = ""  # why it waits, if it does not run again


def check_preemption(
    resources: Resources, runs: Path, wait_seconds: float, save_seconds: float | None, say: Callable[[str], None]
) -> Iterator[Finding]:
    """Measures, and judges whether a save of `save_seconds` fits; `say` shows what is being waited for.

    The job requests one core of a node, and a GPU only where Slurm rejects it without.  It is canceled at the end.
    """
    try:
        measured = measure(resources, runs, wait_seconds, say)
    except (OwnJobError, SlurmNotFoundError) as error:
        yield Finding(
            "preemption", "FAIL", str(error), f"`{command('jobs/doctor.py')}` without --preempt checks the settings"
        )
        return
    yield from judge(measured, save_seconds)


def judge(measured: Measured, save_seconds: float | None) -> Iterator[Finding]:
    """What follows from the measurement."""
    if measured.signal is None:
        text = f"USR2 did not reach the job within {ARRIVAL_SECONDS} s: a run would not save before its time limit"
        yield Finding("signals", "FAIL", text, "ask the cluster's administrators whether srun forwards signals")
    else:
        yield Finding("signals", "OK", f"USR2 reached the job {measured.signal:.1f} s after it was sent")
    if measured.refused:
        text = f"Slurm refuses to requeue jobs: {measured.refused}"
        yield Finding("requeue", "FAIL", text, "set `requeue: true` in the cluster file, or submit again by hand")
        return
    if measured.term is None or measured.kill is None:
        text = "the job was killed without a SIGTERM before" if measured.term is None else "the job was not killed"
        yield Finding("requeue", "WARN", text, "set a short `checkpoint.every_minutes`: a preempted run loses more")
    else:
        text = f"SIGTERM {measured.term:.1f} s after `scontrol requeue`, SIGKILL {measured.kill:.1f} s later"
        yield Finding("requeue", "OK", text)
        yield _save_fits(measured.kill, save_seconds)
    if measured.again is None:
        text = f"the requeued job did not run again while it was waited for: it {measured.reason}"
        yield Finding("restart", "WARN", text, "look at such a job with `squeue --start`; the cluster may just be busy")
    else:
        where = "on the same node" if len(set(measured.nodes)) == 1 else f"on {measured.nodes[-1]}"
        waited = "" if measured.again < 60 else "; after a failure, a restart in place saves this time"
        yield Finding("restart", "OK", f"the job ran again {measured.again:.0f} s after the requeue, {where}{waited}")


def _save_fits(kill: float, save_seconds: float | None) -> Finding:
    if save_seconds is None:
        return Finding("time to save", "OK", f"{kill:.0f} s; with --config, this is compared with a save of the model")
    if save_seconds < kill / 2:
        return Finding("time to save", "OK", f"{kill:.0f} s: enough, a save of this model takes {save_seconds:.1f} s")
    what = f"a save of this model takes {save_seconds:.1f} s, SIGKILL comes {kill:.0f} s after SIGTERM"
    advice = "ask for a longer KillWait or GraceTime, or set a shorter checkpoint.every_minutes"
    if save_seconds < kill:
        return Finding("time to save", "WARN", f"{what}: a slow disk would lose steps", advice)
    return Finding("time to save", "FAIL", f"{what}: the steps since the newest checkpoint would be lost", advice)


def proposed_signal(save_seconds: float | None) -> str:
    """A value of `signal:` that leaves time for two saves and half a minute of margin, at least two minutes."""
    needed = 2 * (save_seconds or 0.0) + 30
    return f"USR2@{max(120, 30 * -(-int(needed + 0.999) // 30))}"


def measure(resources: Resources, runs: Path, wait_seconds: float, say: Callable[[str], None]) -> Measured:
    """Runs the job.  Raises OwnJobError, SlurmNotFoundError."""
    with own_folder(runs) as folder:
        shutil.copy(str(signal_probe.__file__), folder / "signal_probe.py")
        program = f"{shlex.quote(f'{folder}/signal_probe.py')} {shlex.quote(str(folder))}"
        submitted = time.time()
        job = _submit(resources, folder, program)
        try:
            say(f"job {job} is waiting to start")
            began = _wait(folder, job, lambda events: _named(events, "began", 0), wait_seconds)
            if not began:
                raise OwnJobError(f"after {time.time() - submitted:.0f} s the job {why_not_running(job, folder)}")
            found = Measured(queued=began[0]["time"] - submitted, signal=_signal(folder, job))
            return _requeue(folder, job, found, wait_seconds, say)
        finally:
            (folder / signal_probe.END).touch()
            end_job(job)


def _signal(folder: Path, job: str) -> float | None:
    """Sends USR2 to the job's processes; returns the seconds until they had it."""
    sent = time.time()
    call_slurm("scancel", "--signal", "USR2", job)
    arrived = _wait(folder, job, lambda events: _named(events, "SIGUSR2", 0), ARRIVAL_SECONDS)
    return max(0.0, arrived[0]["time"] - sent) if arrived else None


def _requeue(folder: Path, job: str, found: Measured, wait_seconds: float, say: Callable[[str], None]) -> Measured:
    """Requeues the job as an administrator would, waits until it is killed, and then until it runs again."""
    requested = time.time()
    refused = call_slurm("scontrol", "requeue", job)
    if refused:
        return replace(found, refused=refused)
    say(f"job {job} was requeued; waiting until it is killed and runs again")
    deadline = time.monotonic() + END_SECONDS
    while _is_running(job) and time.monotonic() < deadline:
        time.sleep(0.5)
    with suppress(OSError, ValueError):
        last_beat = float((folder / f"{signal_probe.ALIVE}0").read_text())
        terms = [e for e in _named(_events(folder), "SIGTERM", 0) if e["time"] >= requested]
        term = terms[0]["time"] if terms else None
        found = replace(found, term=None if term is None else term - requested)
        found = replace(found, kill=last_beat - (requested if term is None else term))
    again = _wait(folder, job, lambda events: _named(events, "began", 1), wait_seconds)
    nodes = tuple(str(event["node"]) for event in _events(folder) if event["event"] == "began")
    if not again:
        return replace(found, nodes=nodes, reason=why_not_running(job, folder))
    return replace(found, nodes=nodes, again=again[0]["time"] - requested)


def _submit(resources: Resources, folder: Path, program: str) -> str:
    """Submits the job with one core and, only if Slurm rejects it so, a GPU.  Raises OwnJobError."""
    cluster = replace(resources.cluster, time=str(MINUTES), exclusive=False, mem="")
    small = replace(resources, nodes=1, gpus=1, cpus=1, use_gpus=False, cluster=cluster)
    try:
        return submit(small, folder, f"{small.python} -u {program}", JOB_NAME)
    except OwnJobError:
        if not resources.use_gpus:
            raise
        return submit(replace(small, use_gpus=True), folder, f"{small.python} -u {program}", JOB_NAME)


def _wait(folder: Path, job: str, condition: Callable[[list[Event]], Sequence[Event]], seconds: float) -> list[Event]:
    """Waits until a condition on the events has a result, and returns it; empty after `seconds`, or once it ended."""
    deadline, looked = time.monotonic() + seconds, 0.0
    while not (found := condition(_events(folder))) and time.monotonic() < deadline:
        if time.monotonic() > looked + 5:
            looked = time.monotonic()
            if not queued_jobs({job}):
                return list(condition(_events(folder)))
        time.sleep(0.1)
    return list(found)


def _events(folder: Path) -> list[Event]:
    try:
        return read_lines(folder / signal_probe.EVENTS)
    except OSError:
        return []  # it may be readable later


def _named(events: Sequence[Event], name: str, start: int) -> list[Event]:
    """The events of this name in the start of the job with this number."""
    return [event for event in events if event["event"] == name and event["start"] == start]


def _is_running(job: str) -> bool:
    found = queued_jobs({job}).get(job)
    return found is not None and found.state in ("RUNNING", "COMPLETING", "SIGNALING", "STOPPED")
