"""Runs a job on this machine and shows its progress until it ends."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import submitit

from jobs.login.resources import relative
from jobs.node.train_job import TrainJob
from vit.run.folder import Event, RunFolder
from vit.run.jsonl import read_lines
from vit.run.progress import progress_line, show

TELL_SECONDS = 2  # between two signals to a job that may not have heard the first
QUIET_SECONDS = 10  # between two lines where there is no terminal to draw on


def follow(job: TrainJob, run: RunFolder, executor: submitit.Executor) -> int:
    """Submits the job, shows its progress, and returns the exit code of the command."""
    print(f"{run.path.name}: {job.gpus} ranks on this machine; {relative(run.path)} holds the run")
    known = len(run.events())
    submitted, received = _submit_shielded(job, executor)
    said, told_at = False, 0.0
    for _ in _until_done(submitted, run):
        if received and not said:
            said = True
            show("stopping: the run is saved at its next step (Ctrl-C again: at once, without saving)", lasting=True)
        # submitit's controller passes it on, but not before the job was started: say it until it was heard.
        if received and time.monotonic() > told_at + TELL_SECONDS and "told to stop" not in news(run, known):
            told_at = time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(int(submitted.job_id), signal.SIGTERM)
        if len(received) > 1:
            _kill(int(submitted.job_id))
            show("ended at once; the same command goes on from the newest checkpoint", lasting=True)
            return 130
    # A job that is told while Python starts ends without a word.
    return _verdict(run, known, None if received else submitted.exception())


def news(run: RunFolder, known: int) -> set[str]:
    """What happened after the first `known` events."""
    return {e["event"] for e in run.events()[known:]}


def in_foreground(job: TrainJob, run: RunFolder) -> int:
    """Runs the job in this very process, where a debugger can see it, and returns the exit code of the command."""
    known = len(run.events())
    try:
        job()
    except KeyboardInterrupt:
        pass  # the ranks were told, and saved
    except Exception as error:
        return _verdict(run, known, error)
    return _verdict(run, known, None)


def summary(run: RunFolder, finished: Event) -> str:
    """What a finished run reached, where it is, and what to type next."""
    folder = relative(run.path)
    ema = f", EMA {finished['val_top1_average']:.2%}" if "val_top1_average" in finished else ""
    damaged = len({event["problem"] for event in run.events() if event["event"] == "damaged sample"})
    return (
        f"  test accuracy   top-1 {finished['val_top1']:.2%}, top-5 {finished['val_top5']:.2%}{ema}\n"
        + (f"  damaged images  {damaged}, replaced or left out: see {folder}/ledger.jsonl\n" if damaged else "")
        + (
            f"  skipped steps   {', '.join(map(str, finished['skipped']))}, which failed\n"
            if "skipped" in finished
            else ""
        )
        + f"  run folder      {folder}   (metrics.jsonl, checkpoints/, logs/)\n"
        f"  next            python jobs/report.py {folder} --out curve.png   draws its learning curve"
    )


def _until_done(submitted: submitit.Job[Any], run: RunFolder) -> Iterator[None]:
    """Shows each new line of the learning curve; on a terminal in place, elsewhere now and then."""
    records = read_lines(run.metrics)
    seen, written, quiet_until = len(records), 0, 0.0
    while True:
        done = submitted.done()
        if run.metrics.exists() and (last := run.metrics.stat().st_mtime_ns) != written:
            records, written = read_lines(run.metrics), last
        seen = min(seen, len(records))  # a resumed run takes back what it had written after its checkpoint
        for record in records[seen:]:
            evaluation = "val_top1" in record
            if evaluation or sys.stdout.isatty() or time.monotonic() > quiet_until:
                show(progress_line(record), lasting=evaluation)
                quiet_until = time.monotonic() + QUIET_SECONDS
        seen = len(records)
        yield
        if done:
            return
        time.sleep(0.2)


def _verdict(run: RunFolder, known: int, error: object) -> int:
    """Says how it ended, by the events after the `known` ones and what the job raised."""
    news = [e for e in run.events()[known:] if e["event"] in {"finished", "stopped"}]
    if news and news[-1]["event"] == "finished":
        minutes, seconds = divmod(round(time.time() - run.events()[known]["time"]), 60)
        show(f"finished in {minutes}:{seconds:02d}", lasting=True)
        print(summary(run, news[-1]))
        return 0
    if news and "unsaved" in news[-1]:
        show(f"stopped; {news[-1]['unsaved']}; the same command goes on from there", lasting=True)
        return 130
    if news:
        show(f"stopped at step {news[-1]['step']:,}, saved; the same command goes on from there", lasting=True)
        return 130
    if error is None:
        show("stopped before its first step; the same command starts it again", lasting=True)
        return 130
    show("the run failed", lasting=True)
    given_up = [e["why"] for e in run.events()[known:] if e["event"] == "gave up"]
    print(
        f"{given_up[-1] if given_up else error}\n{relative(run.jobs)} and {relative(run.logs)} hold the logs",
        file=sys.stderr,
    )
    return 1


def _submit_shielded(job: TrainJob, executor: submitit.Executor) -> tuple[submitit.Job[Any], list[int]]:
    """Submits; from then on a signal to this process is noted in the list that is returned, and does nothing else.

    A terminal sends Ctrl-C to submitit's local controller too, which then kills the job within a second.  The
    controller inherits that SIGINT is ignored, and gets a SIGTERM from us instead.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    # Blocked, it is kept until we have our handler: else a Ctrl-C in the meantime would be lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    submitted = executor.submit(job)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return submitted, received


def _kill(controller: int) -> None:
    """Ends a local job at once: the controller, the supervisor and the ranks."""
    import psutil  # a fiftieth of the time that submitting to Slurm takes

    with suppress(psutil.NoSuchProcess):
        job = psutil.Process(controller)
        for process in [*job.children(recursive=True), job]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
