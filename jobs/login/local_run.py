"""Runs a job on this machine until it ends, and prints how it ended."""

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import submitit

from jobs.login.local_progress import shown, until_done
from jobs.login.resources import command_path, display_path
from jobs.login.run_files import record_submission
from jobs.node.job_spec import SUBMITTER_VARIABLE
from jobs.node.train_job import TrainJob
from vit.history.attempts import read_attempts
from vit.history.words import closing_lines, finished_line, show_closing
from vit.run.counts import counted
from vit.run.disk_errors import retry_reads
from vit.run.folder import Event, RunFolder
from vit.run.hints import command
from vit.run.progress import show

SIGNAL_INTERVAL_SECONDS = 2  # between signals to a job that may have missed the first one
READ_SECONDS = 10.0  # for which reading how the job ended is tried again, if the disk cannot be read
INTERRUPTED = 130  # exit code after Ctrl-C


@dataclass(frozen=True)
class LocalJob:
    """A job that runs on this machine."""

    run: RunFolder
    submitted: submitit.Job[Any]
    received: list[int]  # the signals that this process receives from the start of the job on
    known: int  # events that the ledger had before


def start(job: TrainJob, run: RunFolder, executor: submitit.Executor) -> LocalJob:
    """Submits the job to the local executor and records it; raises what made that fail, and then no job runs."""
    print(f"{run.path.name}: {counted(job.gpus, 'rank')} on this machine; run folder: {display_path(run.path)}")
    known = len(run.events())
    started = LocalJob(run, *_submit_shielded(job, executor), known)
    try:
        record_submission(run)
    except OSError:
        _kill(int(started.submitted.job_id))
        raise
    return started


def wait(job: LocalJob) -> int:
    """Prints the progress of a job until it ends, and returns the exit code of the command.

    Files that cannot be read for some time do not end this process: the job would stop with it.
    """
    run, submitted, received, known = job.run, job.submitted, job.received, job.known
    announced, signaled_at = False, 0.0
    for _ in until_done(submitted.done, run, known):
        if received and not announced:
            announced = True
            show("stopping: saving at the next step (press Ctrl-C again to stop now without saving)", lasting=True)
        # submitit's controller forwards a signal only once the job has started: repeat it until the job received it.
        due = received and time.monotonic() > signaled_at + SIGNAL_INTERVAL_SECONDS
        if due and not _told_to_stop(run, known, otherwise=signaled_at > 0):
            signaled_at = time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(int(submitted.job_id), signal.SIGTERM)
        if len(received) > 1:
            _kill(int(submitted.job_id))
            show("stopped without saving; run the same command to resume from the newest checkpoint", lasting=True)
            return INTERRUPTED
    # A job that is signaled while Python starts ends without a result, which is not a failure.
    return _report_outcome(run, known, None if received else _exception(submitted))


def run_in_foreground(job: TrainJob, run: RunFolder) -> int:
    """Runs the job in this process, where a debugger can be attached, and returns the exit code of the command."""
    known, before = len(run.events()), dict(os.environ)
    os.environ["SUBMITIT_EXECUTOR"] = "debug"  # it may say "slurm", inside of another job
    os.environ.pop(SUBMITTER_VARIABLE, None)  # of another local run: this process holds the lock of this one itself
    try:
        with shown(run, known):
            job()
    except KeyboardInterrupt:
        pass  # the ranks received the signal too, and have saved
    except Exception as error:
        return _report_outcome(run, known, error)
    finally:
        os.environ.clear()  # the supervisor sets variables for its ranks, which are not for what this process does next
        os.environ.update(before)
    return _report_outcome(run, known, None)


def summary(run: RunFolder, finished: Event) -> str:
    """The accuracy of a finished run, its folder, and the command to run next."""
    folder = display_path(run.path)
    top5 = f", top-5 {finished['val_top5']:.2%}" if "val_top5" in finished else ""
    ema = f", EMA {finished['val_top1_average']:.2%}" if "val_top1_average" in finished else ""
    damaged = len({event["problem"] for event in run.events() if event["event"] == "damaged sample"})
    time, *notes = closing_lines(run) or [""]
    return (
        f"  test accuracy   top-1 {finished['val_top1']:.2%}{top5}{ema}\n"
        + (f"  damaged images  {damaged}, replaced or omitted; see {folder}/ledger.jsonl\n" if damaged else "")
        + (
            f"  skipped steps   {', '.join(map(str, finished['skipped']))} (loss, gradient or weights not finite)\n"
            if "skipped" in finished
            else ""
        )
        + (f"  time            {time}\n" if time else "")
        + "".join(f"  note            {note}\n" for note in notes)
        + f"  run folder      {folder}   (metrics.jsonl, checkpoints/, logs/)\n"
        f"  report          {command('jobs/report.py', command_path(run.path))}"
    )


def _told_to_stop(run: RunFolder, known: int, otherwise: bool) -> bool:
    """Whether the job has recorded a signal to stop; `otherwise` if its ledger cannot be read."""
    try:
        return "told to stop" in {event["event"] for event in run.events()[known:]}
    except OSError:
        return otherwise


def _exception(submitted: submitit.Job[Any]) -> object:
    """Why the job failed, or None.  It is told by a file, which may be unreadable for some time or for good."""
    try:
        return retry_reads(submitted.exception, READ_SECONDS)
    except OSError as error:
        return error


def _report_outcome(run: RunFolder, known: int, error: object) -> int:
    """Prints how the job ended, given its events (all but the first `known`) and its error; returns the exit code."""
    run = RunFolder(run.path, patience=READ_SECONDS)
    try:
        events = run.events()[known:]
    except OSError as unreadable:
        show("the job has ended, but its ledger, which says how, cannot be read", lasting=True)
        print(
            f"{unreadable}; to see the state of the run: {command('jobs/status.py', command_path(run.path))}",
            file=sys.stderr,
        )
        return 1
    ends = [event for event in events if event["event"] in {"finished", "stopped"}]
    if ends and ends[-1]["event"] == "finished":
        show(finished_line(read_attempts(run.events())), lasting=True)
        print(summary(run, ends[-1]))
        return 0
    if ends and "unsaved" in ends[-1]:
        show(f"stopped; {ends[-1]['unsaved']}; run the same command to resume", lasting=True)
        return INTERRUPTED
    if ends:
        show(f"stopped and saved at step {ends[-1]['step']:,}; run the same command to resume", lasting=True)
        return INTERRUPTED
    if error is None:
        show("stopped before the first step; run the same command to start again", lasting=True)
        return INTERRUPTED
    show("the run failed", lasting=True)
    reasons = [event["why"] for event in events if event["event"] == "gave up"]
    print(
        f"{reasons[-1] if reasons else error}\nlogs: {display_path(run.jobs)} and {display_path(run.logs)}",
        file=sys.stderr,
    )
    show_closing(run)
    return 1


def _submit_shielded(job: TrainJob, executor: submitit.Executor) -> tuple[submitit.Job[Any], list[int]]:
    """Submits the job; from then on, signals to this process are only recorded in the list that is returned.

    A terminal sends Ctrl-C to submitit's local controller too, which then kills the job within a second.  Therefore the
    controller inherits that SIGINT is ignored, and this process sends it a SIGTERM instead.
    """
    received: list[int] = []

    def record(number: int, _: FrameType | None) -> None:
        received.append(number)

    # While SIGINT is blocked, a Ctrl-C stays pending until the handler is installed; otherwise it would be lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        submitted = executor.submit(job)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, record)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return submitted, received


def _kill(controller: int) -> None:
    """Kills a local job: the controller, the supervisor and the ranks."""
    import psutil  # not at the top: it takes 2 % of the time of submitting to Slurm

    with suppress(psutil.NoSuchProcess):
        job = psutil.Process(controller)
        for process in [*job.children(recursive=True), job]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
