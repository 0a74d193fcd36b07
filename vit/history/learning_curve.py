"""Reads learning curves quickly: the newest records, all evaluations, or everything.  Imports no torch.

A file of a long run has some thousand records, of which a table needs a few.  Garbage is left out.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit.run.disk_errors import naming, read_if_exists
from vit.run.jsonl import Record, parse_lines, read_lines

TAIL_BYTES = 1 << 14  # some epochs
GROWTH = 16  # how many times more is read if the tail has no evaluation
PIECE_BYTES = 1 << 20
LIMIT = 1e15  # numbers beyond it come from damage
EVALUATION = b'"val_top1"'


@dataclass(frozen=True)
class Newest:
    """The newest records of a learning curve; empty ones if there are none."""

    record: Record
    training: Record  # of training steps
    evaluation: Record


def read_curve(path: Path) -> list[Record]:
    """All records.  Raises OSError."""
    return _with_step(read_lines(path))


def read_tail(path: Path, most: int = TAIL_BYTES) -> list[Record]:
    """The newest records, from the last `most` bytes of the file.  Raises OSError."""

    def read() -> list[bytes]:
        with naming(path), path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            return file.read().splitlines()[size > most :]

    return _with_step(parse_lines(read_if_exists(path, read) or []))


def read_newest(path: Path) -> Newest:
    """The newest record of each kind, from the end of the file: as much as it takes to find an evaluation.

    Parses only the lines that it needs.  Raises OSError.
    """

    def read() -> Newest:
        file = os.open(path, os.O_RDONLY)
        try:
            size, most = os.fstat(file).st_size, TAIL_BYTES
            while True:
                found = _newest(os.pread(file, most, max(0, size - most)).split(b"\n")[size > most :])
                if found.evaluation or most >= size:
                    return found
                most *= GROWTH
        finally:
            os.close(file)

    with naming(path):
        return read_if_exists(path, read) or Newest({}, {}, {})


def _newest(lines: Sequence[bytes]) -> Newest:
    record, trained, evaluation = Record(), Record(), Record()
    for line in reversed(lines):
        if record and trained and EVALUATION not in line:
            continue
        for found in _with_step(parse_lines([line])):
            record = record or found
            trained = trained or found if "loss" in found else trained
            evaluation = evaluation or found if top1(found) is not None else evaluation
        if record and trained and evaluation:
            break
    return Newest(record, trained, evaluation)


def read_evaluations(path: Path, start: int = 0) -> tuple[list[Record], int]:
    """The evaluations after this many bytes, oldest first, and where the next one may begin.  Raises OSError.

    Of the other records, nothing is parsed.
    """

    def read() -> tuple[list[bytes], int]:
        lines, rest = list[bytes](), b""
        with naming(path), path.open("rb") as file:
            file.seek(start)
            while piece := file.read(PIECE_BYTES):
                rest = _take_evaluations(rest + piece, lines)
            return lines, file.tell() - len(rest)

    lines, end = read_if_exists(path, read) or ([], 0)
    return [record for record in _with_step(parse_lines(lines)) if top1(record) is not None], end


def _take_evaluations(text: bytes, lines: list[bytes]) -> bytes:
    """Adds the lines of evaluations; returns the unfinished line at the end of the text."""
    end = text.rfind(b"\n") + 1
    found = text.find(EVALUATION, 0, end)
    while found >= 0:
        stop = text.index(b"\n", found)
        lines.append(text[text.rfind(b"\n", 0, found) + 1 : stop])
        found = text.find(EVALUATION, stop, end)
    return text[end:]


def _with_step(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if integer(record, "step") is not None]


def number(record: Record, name: str) -> float | None:
    """A number in a record or event; None for anything else, and if it is not finite or absurd."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LIMIT < value < LIMIT:
        return None
    return float(value)


def integer(record: Record, name: str) -> int | None:
    """An integer in a record or event; None for anything else, and if it is absurd."""
    value = record.get(name)
    return value if type(value) is int and -LIMIT < value < LIMIT else None


def top1(record: Record) -> float | None:
    """The top-1 accuracy of an evaluation, of the EMA if there is one; None for other records."""
    average = number(record, "val_top1_average")
    return number(record, "val_top1") if average is None else average


def best(evaluations: Sequence[Record]) -> Record | None:
    """The evaluation with the best top-1 accuracy; the first among equals."""
    return max((r for r in evaluations if top1(r) is not None), key=lambda r: top1(r) or 0.0, default=None)


def training(records: Iterable[Record]) -> list[Record]:
    """The records of training steps."""
    return [record for record in records if "loss" in record]
