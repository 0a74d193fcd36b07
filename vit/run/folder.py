"""The run folder: its file names, its ledger of events, and the lock of its owner.  Imports no torch."""

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vit.run.disk_errors import naming, retry_reads
from vit.run.file_lock import owner_of, try_lock
from vit.run.jsonl import append, parse_lines, raw_lines, read_lines

Event = dict[str, Any]  # one line of the ledger

# Environment variables that a job sets for its ranks: the name of the job, and that of their node in it.
JOB_VARIABLE, NODE_VARIABLE = "VIT_JOB", "VIT_NODE"


def recorded_save(events: Iterable[Event]) -> int | None:
    """The newest step with a checkpoint, as far as a ledger knows; without those found damaged when read back."""
    saved: set[int] = set()
    for event in events:
        if event["event"] == "checkpoint":
            saved.add(event["step"])
        elif event["event"] == "damaged checkpoint":
            saved.discard(event.get("step", -1))
    return max(saved, default=None)


class InUseError(RuntimeError):
    """Another process has locked the run folder."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files: what training, jobs and reports share."""

    path: Path
    patience: float = 0  # seconds for which reading the ledger is tried again, if the disk cannot be read

    @cached_property
    def config(self) -> Path:
        """The resolved config of the run."""
        return self.path / "config.yaml"

    @cached_property
    def checkpoints(self) -> Path:
        """Complete checkpoints, one folder each."""
        return self.path / "checkpoints"

    @property
    def compiled(self) -> Path:
        """The torch.compile cache: a folder for each kind of device and local rank."""
        return self.path / "compiled"

    @cached_property
    def metrics(self) -> Path:
        """The learning curve, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """The samples of each step, one JSON object per step and micro-batch; written if `log.samples` is set."""
        return self.path / "samples.jsonl"

    @cached_property  # `status.py` asks for it often
    def ledger(self) -> Path:
        """The events of the run, one JSON object per line."""
        return self.path / "ledger.jsonl"

    @property
    def evaluations(self) -> Path:
        """What `vit.evaluate --save` writes: a folder for each data set, step and weights (`evaluation_file.py`)."""
        return self.path / "evaluation"

    @cached_property
    def logs(self) -> Path:
        """The output of the ranks, one file each."""
        return self.path / "logs"

    @property
    def jobs(self) -> Path:
        """submitit's files: batch scripts, pickles, the output of the supervisors."""
        return self.path / "slurm"

    @property
    def source(self) -> Path:
        """A copy of the packages, made when the run was submitted."""
        return self.path / "source"

    def record(self, event: str, **what: Any) -> None:
        """Appends an event to the ledger and waits until it is on the disk."""
        self.note(event, durable=True, **what)

    def note(self, event: str, durable: bool = False, **what: Any) -> None:
        """Appends an event; without `durable`, a crash of the machine may lose it."""
        append(self.ledger, {"event": event, "time": round(time.time(), 3), **what}, durable)

    def events(self) -> list[Event]:
        """All events, oldest first.  Raises OSError, which names the ledger, if it cannot be read."""
        lines = retry_reads(lambda: read_lines(self.ledger), self.patience)
        return [event for event in lines if "event" in event]

    def last(self, *names: str) -> Event | None:
        """The newest event that has one of these names; others are not even parsed.  Raises OSError."""
        words = [json.dumps(name).encode() for name in names]
        for line in reversed(retry_reads(lambda: raw_lines(self.ledger), self.patience)):
            if any(word in line for word in words):
                for event in parse_lines([line]):
                    if event.get("event") in names:
                        return event
        return None

    def finished(self) -> Event | None:
        """The event that completed the run, or None if the run is unfinished or was extended since."""
        event = self.last("finished", "reopened")
        return event if event and event["event"] == "finished" else None

    @contextmanager
    def owned(self, wait_seconds: float = 0) -> Iterator[None]:
        """Holds the lock of the run folder, which is released when the process ends, however it ends.

        Waits up to `wait_seconds` for it: the ranks of a killed supervisor may still be saving.  Raises InUseError,
        which names the owner.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "owner").open("a+") as file:
            deadline = time.monotonic() + wait_seconds
            while not self._try_lock(file.fileno()):
                if time.monotonic() > deadline:
                    raise InUseError(f"{self.path} is in use by {owner_of(file)}")
                time.sleep(0.1)
            file.truncate(0)
            job = os.environ.get(JOB_VARIABLE)
            file.write(f"process {os.getpid()} on {socket.gethostname()}{f', {job}' if job else ''}\n")
            file.flush()
            yield

    def _try_lock(self, fd: int) -> bool:
        with naming(self.path / "owner"):
            return try_lock(fd)
