"""Which of a run's jobs trains it: numbered claims in the run folder, of which the highest number is the owner's.

    owners/000001.json       a start of a job owns the run
    owners/000001.released   its ranks have ended: anybody may claim the next number
    owners/000002-13.json    job 13 asks the owner to hand over, so that it may claim number 2
    owners/000002-13.answer  what the owner answered

A number is claimed by a hard link, of which one succeeds also on NFS and Lustre, without file locks.  Claims are never
removed, so that nobody whose list of the folder is old can claim a number a second time.
"""

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from jobs.node.candidates import Candidate
from vit.run.disk_errors import naming, retry_reads
from vit.run.fsync import fsync, replace_file

Result = TypeVar("Result")


@dataclass(frozen=True)
class Claim:
    """A start of a job that owns the run, or wants to."""

    size: Candidate
    start: str  # `slurm_job.start_id()`: the job and its number of restarts
    node: str
    time: float  # Unix time
    number: int = 0  # of the claim, from 1 on; 0: not claimed


NOBODY = Claim(Candidate("", 0, 0), "", "", 0.0)  # stands for a claim that is damaged


@dataclass(frozen=True)
class Answer:
    """What the owner answers to a job that asks it to hand over."""

    accepted: bool
    why: str


class Owners:
    """The folder of claims.  Reads are tried again for `patience` seconds; then they raise OSError."""

    def __init__(self, run: Path, patience: float = 0) -> None:
        self.folder, self.patience = run / "owners", patience

    def claims(self) -> list[Claim]:
        """All claims, oldest first."""
        return [self._read(number) for number in self._numbers()]

    def newest(self) -> Claim | None:
        """The claim of the owner, who may have released it or ended."""
        numbers = self._numbers()
        return self._read(numbers[-1]) if numbers else None

    def claim(self, wanted: Claim, number: int) -> Claim | None:
        """Claims a number; None if another start has it already.  Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = replace(wanted, number=number, time=round(time.time(), 3))
        aside = self.folder / f"{wanted.start}.{os.getpid()}.new"
        with naming(aside), aside.open("w") as file:
            file.write(json.dumps(asdict(mine)))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, self._file(number))
            fsync(self.folder)
        except FileExistsError:
            # A server may have linked it, and its answer was lost: then there is an error although it is ours.
            return mine if self._read(number).start == mine.start else None
        finally:
            with suppress(OSError):
                aside.unlink()
        return mine

    def release(self, claim: Claim) -> None:
        """Says that the ranks of the owner have ended.  Raises OSError."""
        replace_file(self._file(claim.number).with_suffix(".released"), b"")

    def is_released(self, claim: Claim) -> bool:
        """Whether the owner said so."""
        released = self._file(claim.number).with_suffix(".released")
        return self._retried(lambda: released.name in os.listdir(self.folder))

    def ask(self, owner: Claim, wanted: Claim) -> Path:
        """Asks the owner to hand over; returns the request, which `answer` and `withdraw` take."""
        path = self.folder / f"{owner.number + 1:06}-{wanted.size.job}.json"
        path.with_suffix(".answer").unlink(missing_ok=True)  # to an earlier start of this job
        replace_file(path, json.dumps(asdict(wanted)).encode())
        return path

    def requests(self, owner: Claim) -> dict[Path, Claim]:
        """The requests to this owner that it has not answered."""
        names = self._retried(lambda: os.listdir(self.folder))
        asked = [name for name in names if re.fullmatch(rf"{owner.number + 1:06}-\w+\.json", name)]
        open_ = [self.folder / name for name in sorted(asked) if name.replace(".json", ".answer") not in names]
        out = {}
        for path in open_:
            with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # just withdrawn, or damaged
                out[path] = _claim_from(path.read_text())
        return out

    def reply(self, request: Path, answer: Answer) -> None:
        """Answers a request.  Raises OSError."""
        replace_file(request.with_suffix(".answer"), json.dumps(asdict(answer)).encode())

    def answer(self, request: Path) -> Answer | None:
        """The owner's answer; None if there is none yet."""
        path = request.with_suffix(".answer")

        def read() -> Answer | None:
            if path.name not in os.listdir(self.folder):  # a client of NFS may know an old list of names
                return None
            return Answer(**json.loads(path.read_text()))

        return self._retried(read)

    def withdraw(self, request: Path) -> None:
        """Takes back a request."""
        with suppress(OSError):
            request.unlink(missing_ok=True)
            request.with_suffix(".answer").unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        try:
            names = self._retried(lambda: os.listdir(self.folder))
        except FileNotFoundError:
            return []
        return sorted(int(name[:-5]) for name in names if re.fullmatch(r"\d+\.json", name))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.json"

    def _read(self, number: int) -> Claim:
        text = self._retried(lambda: self._file(number).read_text())
        try:
            return _claim_from(text)
        except (ValueError, KeyError, TypeError):  # damaged: whose it was is not known any more
            return replace(NOBODY, number=number)

    def _retried(self, read: Callable[[], Result]) -> Result:
        def read_folder() -> Result:
            try:
                return read()
            except FileNotFoundError:
                if self.folder.parent.exists() and not self.folder.exists():
                    raise _NoOwnersError from None  # no job has claimed the run yet: no need to try again
                raise

        try:
            return retry_reads(read_folder, self.patience)
        except _NoOwnersError:
            raise FileNotFoundError(self.folder) from None


class _NoOwnersError(Exception):
    """The folder does not exist."""


def _claim_from(text: str) -> Claim:
    values = json.loads(text)
    return Claim(**values | {"size": Candidate(**values["size"])})
