"""What a run folder holds, what happened to the run, and where its time went.  No torch: `jobs` reads it too."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vit.run.fsync import sync
from vit.run.heartbeat import Heartbeat

T = TypeVar("T")
Event = dict[str, Any]

UNWILLING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # what a disk says that may take more later
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
        """Which samples each step used, one JSON object a step and shard; only where `log.samples` asks for it."""
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
            while not _locked(file.fileno()):
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise InUseError(f"{self.path} is in use by {file.read().strip() or 'another process'}")
                time.sleep(0.1)
            file.truncate(0)
            job = os.environ.get(JOB_VARIABLE)
            file.write(f"process {os.getpid()} on {socket.gethostname()}{f', {job}' if job else ''}\n")
            file.flush()
            yield


_unwritten: dict[Path, list[bytes]] = {}  # lines that a full disk did not take


def append(path: Path, record: Event, durable: bool = False) -> None:
    """Adds one line under a lock, so that lines of several processes never mix.

    A run does not end because a disk is full or cannot be written: the line is then kept, and added with a later one.
    """
    _unwritten.setdefault(path, []).append((json.dumps(record) + "\n").encode())
    _flush(path, durable)


def flush() -> None:
    """Adds what a disk did not take before, as far as it does now: the last chance, before a process ends."""
    for path in list(_unwritten):
        _flush(path, durable=True)


def _flush(path: Path, durable: bool) -> None:
    lines = _unwritten.pop(path)
    try:
        _append(path, b"".join(lines), durable)
    except OSError as error:
        if error.errno not in UNWILLING:
            raise
        _unwritten[path] = lines


def _append(path: Path, lines: bytes, durable: bool) -> None:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        _lock(fd, fcntl.LOCK_EX)  # until it is closed
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            lines = b"\n" + lines  # a kill cut the last line short; only that one is lost
        written = 0
        try:
            written = os.write(fd, lines)
            if written < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fsync(fd)
                sync(path.parent)
        except OSError:
            if _shortened(fd, size) or written < len(lines):
                raise  # they are kept, and must not stand twice
    finally:
        os.close(fd)


def _shortened(fd: int, size: int) -> bool:
    """Whether what was appended could be taken back."""
    try:
        os.ftruncate(fd, size)
    except OSError:
        return False
    return True


def _locked(fd: int) -> bool:
    """Whether a lock could be had at once."""
    try:
        _lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(fd: int, how: int) -> None:
    """Locks a file, on file systems that know locks: some mounts of Lustre and NFS do not."""
    try:
        fcntl.flock(fd, how)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}:
            raise


def read_lines(path: Path) -> list[Event]:
    """The whole lines of a file; a last one that a kill cut short is left out."""
    out: list[Event] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                out.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return out


class Clock:
    """Accounts for each second of an attempt, and gives a sign of life at each turn; what is not booked is `other`."""

    def __init__(self, started: float, heart: Heartbeat | None = None) -> None:
        self.started = started  # time.time() at which the process began
        self.heart = heart
        self.seconds: dict[str, float] = {}
        self._phase, self._inner = "other", 0.0  # what goes on, and the seconds of it that are booked elsewhere

    @contextmanager
    def spend(self, on: str) -> Iterator[None]:
        """Books the time of a block, but for that of blocks inside of it."""
        start, outer, aside = time.perf_counter(), self._phase, self._inner
        self._phase, self._inner = on, 0.0
        self.sign(on)
        try:
            yield
        finally:
            whole = time.perf_counter() - start
            self.add(on, whole - self._inner)
            self._phase, self._inner = outer, aside + whole
            self.sign(outer)

    def sign(self, phase: str) -> None:
        """Tells the process above, if one listens, what begins now."""
        if self.heart is not None:
            self.heart.sign(phase)

    def take_back(self, steps: int) -> None:
        """Tells it that so many steps are to be done again."""
        if self.heart is not None:
            self.heart.take_back(steps)

    def add(self, on: str, seconds: float) -> None:
        """Books seconds that were measured elsewhere."""
        self.seconds[on] = self.seconds.get(on, 0.0) + seconds

    def waiting(self, on: str, items: Iterable[T]) -> Iterator[T]:
        """Passes items through and books the time that each one is waited for."""
        source = iter(items)
        while True:
            with self.spend(on):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def summary(self) -> dict[str, float]:
        """Seconds for each thing, which add up to the attempt's whole time so far."""
        booked = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        return booked | {"other": round(time.time() - self.started - sum(self.seconds.values()), 3)}
