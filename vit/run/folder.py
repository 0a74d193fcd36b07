"""The run folder: the names of its files, its ledger of events, and who owns it.  No torch: `jobs` reads it too."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit.run.file_lock import try_lock
from vit.run.jsonl import append, read_lines

Event = dict[str, Any]  # of the ledger

JOB_VARIABLE = "VIT_JOB"  # in the environment of ranks that a job started: what the job is called


class InUseError(RuntimeError):
    """Another process owns the run folder."""


@dataclass(frozen=True)
class RunFolder:
    """The names of a run's files: known here and nowhere else."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config that the run is started with."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Whole checkpoints, one folder each."""
        return self.path / "checkpoints"

    @property
    def compiled(self) -> Path:
        """What torch.compile made, a folder for each kind of device and rank of a node."""
        return self.path / "compiled"

    @property
    def metrics(self) -> Path:
        """The learning curve, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Which samples each step used, one JSON object a step and micro-batch; written if `log.samples`."""
        return self.path / "samples.jsonl"

    @property
    def ledger(self) -> Path:
        """What happened, one JSON object a line."""
        return self.path / "ledger.jsonl"

    @property
    def logs(self) -> Path:
        """What the ranks print, a file each."""
        return self.path / "logs"

    @property
    def jobs(self) -> Path:
        """What submitit keeps: scripts, pickles, what the supervisors print."""
        return self.path / "slurm"

    @property
    def source(self) -> Path:
        """The packages as they were when the run was submitted."""
        return self.path / "source"

    def record(self, event: str, **what: Any) -> None:
        """Appends an event to the ledger, durably."""
        self.note(event, durable=True, **what)

    def note(self, event: str, durable: bool = False, **what: Any) -> None:
        """Appends an event without waiting for the disk; a crash of the machine may lose it."""
        append(self.ledger, {"event": event, "time": round(time.time(), 3), **what}, durable)

    def events(self) -> list[Event]:
        """Everything that happened, oldest first."""
        return read_lines(self.ledger)

    def last(self, *names: str) -> Event | None:
        """The newest event of one of these names."""
        return next((e for e in reversed(self.events()) if e["event"] in names), None)

    def finished(self) -> Event | None:
        """The event that ended the run, if it is complete and was not given more to do since."""
        event = self.last("finished", "reopened")
        return event if event and event["event"] == "finished" else None

    @contextmanager
    def owned(self, patience_seconds: float = 0) -> Iterator[None]:
        """Keeps every other process out.  Raises InUseError that names the owner.  A dead owner owns nothing.

        Patience is for the ranks of a killed supervisor, which are saving.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "owner").open("a+") as file:
            deadline = time.monotonic() + patience_seconds
            while not try_lock(file.fileno()):
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise InUseError(f"{self.path} is in use by {file.read().strip() or 'another process'}")
                time.sleep(0.1)
            file.truncate(0)
            job = os.environ.get(JOB_VARIABLE)
            file.write(f"process {os.getpid()} on {socket.gethostname()}{f', {job}' if job else ''}\n")
            file.flush()
            yield
