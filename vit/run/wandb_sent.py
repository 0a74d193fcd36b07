"""What was sent to Weights & Biases: the learning curve as it grows, and which of its records were handed over."""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from vit.run.file_lock import try_lock
from vit.run.jsonl import Record, line
from vit.run.metrics import TIMING_KEYS


class NotSentError(RuntimeError):
    """Why the records could not be sent now."""


def digest(record: Record) -> str:
    """Identifies a record by its values: a step that is repeated after a kill, or for a longer run, has the same."""
    values = {name: value for name, value in record.items() if name not in (*TIMING_KEYS, "steps", "epochs")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class Curve:
    """The records of metrics.jsonl, read as they are appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode, self._offset = 0, 0

    def read(self) -> tuple[list[Record], bool]:
        """The complete records since the last call, and whether they are from the start of the file."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return [], False
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:  # replaced when the run was resumed
                self._inode, self._offset = status.st_ino, 0
            start = self._offset
            file.seek(start)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self._offset += len(lines)
        records = []
        for text in lines.splitlines():
            try:
                records.append(json.loads(text))
            except ValueError:  # truncated by a kill
                continue
        return records, start == 0


def place_of(record: Record) -> str:
    """The place of a record in the learning curve: its step, and whether it is an evaluation."""
    return f"{'evaluation' if 'val_top1' in record else 'step'} {record['step']}"


@dataclass(frozen=True)
class _Entry:
    """A record that was handed over."""

    step: int  # W&B's own
    digest: str
    place: str
    end: int  # of the line in the file, in bytes


class Sent:
    """wandb_sent.jsonl: which records were handed over to wandb, each with W&B's own step (`_step`), in this order.

    One process at a time has the file.  What is in it is on disk before the record is handed over, so nothing is ever
    sent twice; the server says what did not arrive.
    """

    def __init__(self, path: Path, run_id: str, wait_seconds: float) -> None:
        """Raises NotSentError if another process has the file, OSError."""
        self.run_id = run_id
        self._file = path.open("ab+", buffering=0)
        deadline = time.monotonic() + wait_seconds
        while not try_lock(self._file.fileno()):
            if time.monotonic() > deadline:
                raise NotSentError("another process is sending the records of this run")
            time.sleep(0.1)
        self._entries: list[_Entry] = []
        self._file.seek(0)
        end = 0
        for text in self._file.read().splitlines(keepends=True):
            try:
                entry = json.loads(text)
                step, record = entry["_step"], entry["record"]
                place = str(entry.get("place", record))  # older versions did not write it
            except (ValueError, LookupError, TypeError):
                break  # damaged by a crash
            if entry["run"] != run_id or not text.endswith(b"\n"):
                break  # of another run, with whose folder the file was copied; or truncated
            end += len(text)
            self._entries.append(_Entry(step, record, place, end))
        os.ftruncate(self._file.fileno(), end)
        self._update()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def last_step(self) -> int:
        """W&B's step of the last record; -1 if there is none."""
        return self._entries[-1].step if self._entries else -1

    def is_new(self, record: Record) -> bool:
        """Whether neither the record nor another one of the same step was handed over.

        An attempt on another kind of device repeats steps with slightly other values: a chart needs one of them.
        """
        return digest(record) not in self.digests and place_of(record) not in self._places

    def begin(self, run_id: str) -> None:
        """Forgets everything: nothing was sent to this run of Weights & Biases yet.  Raises OSError."""
        self.run_id = run_id
        self.forget_from(-1)

    def forget_from(self, step: int) -> None:
        """Removes the records that the server, which expects `step` next, never received.  Raises OSError."""
        while self._entries and self._entries[-1].step >= step:
            self._entries.pop()
        os.ftruncate(self._file.fileno(), self._entries[-1].end if self._entries else 0)
        self._update()

    def add(self, records: list[Record], step: int) -> None:
        """Appends records that get the steps from `step` on, and waits until they are on disk.  Raises OSError."""
        end = self._entries[-1].end if self._entries else 0
        content, entries = b"", list[_Entry]()
        for i, record in enumerate(records, start=step):
            values = {"run": self.run_id, "_step": i, "record": digest(record), "place": place_of(record)}
            content += line(values)
            entries.append(_Entry(i, digest(record), place_of(record), end + len(content)))
        if self._file.write(content) != len(content):
            raise OSError(f"{self._file.name}: no space left on device")
        os.fsync(self._file.fileno())
        self._entries += entries
        self._update()

    def _update(self) -> None:
        self.digests = {entry.digest for entry in self._entries}
        self._places = {entry.place for entry in self._entries}
