"""Sends the learning curve of a run to Weights & Biases: every record that the server lacks, each one once.

python -m vit.wandb_sender runs/vit_b16

Training with --log.wandb online runs this beside itself.  By hand it sends what could not be sent then, or the records
of a run that was trained with --log.wandb offline.  With --offline it writes them to a folder in `wandb/` of the run
folder, which `wandb sync` sends; training with --log.wandb offline runs it so.  Imports no torch.
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()

import argparse
import json
import os
import select
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from vit.config.option_errors import CommandParser
from vit.config.paths import user_path
from vit.config.user_error import UserError
from vit.history.attempts import read_attempts
from vit.history.wandb_values import attempt_of, summary
from vit.run.command import run_command
from vit.run.console import started_as
from vit.run.folder import RunFolder
from vit.run.jsonl import Record
from vit.run.output import protect_output
from vit.run.wandb_log import Registration, read_registration, registration_file, write_registration
from vit.run.wandb_sent import Curve, NotSentError, Sent, digest

POLL_SECONDS = 2.0  # between looks at metrics.jsonl
CONFIRM_SECONDS = 600.0  # between questions whether the server has what was sent


class TimeLimit:
    """Ends this process if it waits too long: wandb may wait for hours, or forever."""

    def __init__(self, on_timeout: Callable[[str], None]) -> None:
        self._on_timeout = on_timeout
        self._end, self._doing = float("inf"), ""
        threading.Thread(target=self._watch, daemon=True).start()

    def set(self, seconds: float, doing: str) -> None:
        """From now on, this process may take so many seconds for what it is doing."""
        self._end, self._doing = time.monotonic() + seconds, doing

    def _watch(self) -> None:
        while True:
            time.sleep(0.1)
            if time.monotonic() > self._end:
                self._on_timeout(f"no answer while {self._doing}")
                os._exit(1)


class Sender:
    """Sends the records of one run folder."""

    def __init__(
        self, run: RunFolder, timeout: float, limit: TimeLimit, report: Callable[..., None], offline: bool
    ) -> None:
        """Raises NotSentError, UserError if the folder does not log to Weights & Biases."""
        self.run, self.timeout, self.limit, self.report, self.offline = run, timeout, limit, report, offline
        registration = read_registration(run)
        if registration is None:
            if not registration_file(run).exists():
                raise UserError(f"{run.path} is not a run that was trained with --log.wandb online or offline")
            report(note="this run folder is a copy: it gets a run of its own")
            registration = self._new_run(json.loads(registration_file(run).read_text()))
        self.registration = registration
        self.curve = Curve(run.metrics)
        self.sent = Sent(run.path / "wandb_sent.jsonl", registration["id"], timeout)
        self._shared = False  # whether a record of the file was sent before
        if self._began_again(*Curve(run.metrics).read()):
            self.registration = self._new_run(registration)
            self.sent.begin(self.registration["id"])
        self._session: Any = None
        self._next_step = 0

    def _began_again(self, records: list[Record], from_start: bool) -> bool:
        """Whether the file has other values than those that were sent, from its first record on."""
        before = self.registration["sent_before"]
        shared = not self.sent.digests.isdisjoint(map(digest, records)) or any(r["step"] <= before for r in records)
        self._shared = shared or not len(self.sent) or (self._shared and not from_start)
        return bool(records) and not self._shared

    def _new_run(self, registration: Registration) -> Registration:
        return write_registration(self.run, registration, new_id=True)

    def connect(self, scratch: str, stats_pid: int | None) -> None:
        """Starts or continues the run, and asks the server which records it has.  Raises what wandb raises."""
        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            os.environ.setdefault(name, scratch)  # the home directory may be full or not writable
        os.environ |= system_metrics(stats_pid)
        import wandb

        self.limit.set(2 * self.timeout + 20, "connecting")
        self._session = wandb.init(
            project=self.registration["project"],
            name=self.registration["name"],
            id=self.registration["id"],
            resume="allow",
            mode="offline" if self.offline else "online",
            dir=str(self.run.path) if self.offline else scratch,
            config=self.registration["config"],
            allow_val_change=True,
            settings=wandb.Settings(init_timeout=self.timeout, console="off"),
        )
        # The step of a record is not W&B's own step: after a rollback, other values may follow for the same step.
        self._session.define_metric("*", step_metric="step")
        if self.offline:
            before = self.registration["sent_before"]  # of W&B's steps, at most so many and one
            self._next_step = self.sent.last_step + 1 if len(self.sent) or not before else before + 1
            return
        self._next_step = self._session.starting_step
        self.sent.forget_from(self._next_step)
        self.report(connected=self._session.url)

    def send_new(self) -> None:
        """Sends the records that were appended to the learning curve, unless they were sent before."""
        records, from_start = self.curve.read()
        if self._began_again(records, from_start):
            raise NotSentError("this run began again with other values; they are sent to a new run")
        new = [r for r in records if r["step"] > self.registration["sent_before"] and self.sent.is_new(r)]
        if not new:
            return
        self.limit.set(self.timeout, "sending")
        self.sent.add(new, self._next_step)
        attempts = read_attempts(self.run.events())
        for record in new:
            values = {name: value for name, value in record.items() if name not in ("time", "seconds")}
            number = attempt_of(record, attempts)
            values |= {"attempt": number} if number is not None else {}
            values |= {"_timestamp": record["time"]} if "time" in record else {}
            self._session.log(values, step=self._next_step, commit=True)
            self._next_step += 1
            self.limit.set(self.timeout, "sending")

    def follow(self, closed: Callable[[float], bool]) -> None:
        """Sends records until `closed`, which waits for the given seconds, says that training has ended."""
        confirmed_at, sent_then = time.monotonic(), self.sent.last_step
        while True:
            self.limit.set(self.timeout, "sending")
            ended = closed(POLL_SECONDS)
            self.send_new()
            if ended:
                return
            if not self.offline and time.monotonic() > confirmed_at + CONFIRM_SECONDS:
                self.confirm(sent_then)
                confirmed_at, sent_then = time.monotonic(), self.sent.last_step

    def finish(self) -> None:
        """Ends the session, and waits until the server has everything."""
        self.limit.set(self.timeout + len(self.sent) / 100, "finishing")  # 100 records a second, and usually more
        self._session.summary.update(summary(self.run))
        self._session.finish()
        if not self.offline:
            self.confirm(self.sent.last_step)
            if not self.registration["sent_before"]:  # else some of the folders are of an older version
                mark_as_synced(self.run, self.registration["id"])

    def confirm(self, step: int) -> None:
        """Waits until the server has W&B's step `step`.  Raises NotSentError."""
        import wandb

        self.limit.set(2 * self.timeout, "asking what has arrived")
        deadline, problem = time.monotonic() + self.timeout, "the server does not have all records yet"
        while step >= 0:
            try:
                api = wandb.Api(timeout=max(1, int(self.timeout / 2)))
                path = f"{self._session.entity}/{self._session.project}/{self._session.id}"
                if api.run(path).lastHistoryStep >= step:
                    return
            except Exception as error:  # of any kind: wandb raises many
                problem = one_line(error)
            if time.monotonic() > deadline:
                raise NotSentError(problem)
            time.sleep(min(1.0, self.timeout / 10))


def system_metrics(pid: int | None) -> dict[str, str]:
    """wandb's settings for the metrics of the node: those of a process and of the GPUs that it may use; None: none."""
    if pid is None:
        return {"WANDB_X_DISABLE_STATS": "true"}
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    chosen = {"WANDB_X_STATS_GPU_DEVICE_IDS": json.dumps(list(map(int, gpus)))} if all(map(str.isdigit, gpus)) else {}
    return {"WANDB_X_STATS_PID": str(pid)} | chosen


def mark_as_synced(run: RunFolder, run_id: str) -> None:
    """Makes `wandb sync` skip the offline folders of a run, all of whose records the server has."""
    for file in (run.path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"):
        file.with_name(f"{file.name}.synced").touch()


def one_line(error: Exception) -> str:
    """What went wrong, for a line of the log."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _stdin_closed(seconds: float) -> bool:
    """Waits for so many seconds, or until the other end of standard input is closed."""
    return bool(select.select([0], [], [], seconds)[0]) and not os.read(0, 1)


def main(args: list[str] | None = None) -> int:
    """The command line.  Exit codes: 0 if the server has all records, 1 if not, 2 for errors that the user can fix."""
    parser = CommandParser(started_as("vit.wandb_sender"), description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=user_path, help="run folder")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for an answer (default: 60)")
    parser.add_argument("--offline", action="store_true", help="write them to a folder for `wandb sync` instead")
    parser.add_argument("--follow", action="store_true", help="send until standard input is closed, and report in JSON")
    parser.add_argument("--scratch", help=argparse.SUPPRESS)  # folder for temporary files; removed at the end
    options = parser.parse_args(args)
    channel = os.fdopen(os.dup(1), "w")
    if options.follow:
        os.nice(5)  # training goes first
        os.dup2(2, 1)  # wandb may print to standard output
        protect_output(keep_going=True)

    def report(**message: Any) -> None:
        text = json.dumps(message) if options.follow else "\n".join(f"{k}: {v}" for k, v in message.items())
        with suppress(OSError):  # training may have been killed: what is left is sent nevertheless
            print(text, file=channel, flush=True)

    def give_up(problem: str) -> None:
        report(problem=problem)
        shutil.rmtree(scratch, ignore_errors=True)

    scratch = options.scratch or tempfile.mkdtemp(prefix="vit-wandb-")
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    try:
        sender = Sender(RunFolder(options.run), options.timeout, TimeLimit(give_up), report, options.offline)
        sender.connect(scratch, os.getppid() if options.follow else None)
        sender.follow(_stdin_closed if options.follow else lambda _: True)
        sender.finish()
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # of any kind: wandb raises many, and its process may have been killed
        report(problem=one_line(error))
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report(complete=True)
    return 0


def _main_without_exit_handlers() -> None:
    code = main()
    sys.stdout.flush()
    os._exit(code)  # wandb's handlers at exit may wait forever


if __name__ == "__main__":
    run_command(_main_without_exit_handlers)
