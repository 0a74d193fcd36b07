"""The journal of an unfinished file: records what is safely on disk, so that a killed command can resume.

The first line identifies the file (recipe, list of images, versions).  Every few seconds another line describes the
images written since the previous line, after they were forced to disk.  Each line starts with the CRC-32 of all lines
up to its end, so the journal is valid up to the first torn or damaged line.  A line is used only while the image files
that it describes have the same sizes and modification times.
"""

import base64
import hashlib
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.beton_writer import BetonWriter, WriteState
from data_prep.sources.progress import progress
from vit.data.ffcv_format import SAMPLE
from vit.run.fsync import fsync

INTERVAL = 5.0  # seconds between lines: the most work that a kill can lose
FORMAT = "vit-beton-journal-2"
_MB = 1_000_000


class _Line(NamedTuple):
    content: dict[str, Any]
    end: int  # bytes: offset of its end
    crc: int  # CRC-32 of all lines up to its end


def journal_path(temporary: Path) -> Path:
    """The path of the journal of the unfinished file `temporary`."""
    return temporary.with_name(f"{temporary.name}.journal")


def resumable_fraction(temporary: Path) -> float | None:
    """The fraction of the samples that need not be processed again, 0 to 1; None if there is nothing to resume."""
    lines = [line.content for line in _valid_lines(journal_path(temporary))]
    return lines[-1]["asked"] / lines[0]["samples"] if len(lines) > 1 else None


def _valid_lines(path: Path) -> Iterator[_Line]:
    """The lines before the first damaged one."""
    if not path.exists():
        return
    crc, end = 0, 0
    with path.open("rb") as file:
        for line in file:
            crc, end = zlib.crc32(line[9:], crc), end + len(line)
            if line[:9] != b"%08x " % crc:
                return
            yield _Line(json.loads(line[9:]), end, crc)


class Journal:
    """The journal of `file`, an unfinished file at `temporary`; a context manager.

    `identity` holds the settings that must be the same to resume; `stamps` (samples,) changes where the image file of
    a sample is replaced.  A separate thread writes the lines, because a disk may take seconds for each.
    """

    def __init__(
        self, temporary: Path, file: BetonWriter, identity: dict[str, Any], stamps: NDArray[np.uint64]
    ) -> None:
        self._path = journal_path(temporary)
        self._file = file
        self._stamps = stamps
        settings = {"format": FORMAT, "samples": len(file.sample_records)} | identity
        self._identity = json.loads(json.dumps(settings))  # comparable with what was read from a journal
        self._crc, self._end = 0, 0  # of the lines written so far
        self._processed, self._stored, self._left_out = 0, 0, 0  # numbers of samples that these lines describe
        self._next_line_at = time.monotonic() + INTERVAL
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None  # the line being written

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def resume(self, allow_left_out: bool) -> str:
        """Restores the state of the file from the journal, as far as the bytes of the file match it, or resets it.

        Without `allow_left_out`, restores it to before the first sample that was left out; always to before the first
        image that was replaced.  Returns the reason if work was discarded for any other cause than damage at the end of
        the file, else "".
        """
        lines = list(_valid_lines(self._path))
        reason = "the journal is damaged" if self._path.exists() and not lines else ""
        if lines and lines[0].content != self._identity:
            reason, lines = _first_difference(lines[0].content, self._identity), []
        if len(lines) > 1:
            replaced = self._replay(lines, allow_left_out)
            reason = "" if self._file.state.processed else "the unfinished file is damaged"
            reason = "the images have changed" if replaced else reason
        if not self._file.state.processed:
            self._path.unlink(missing_ok=True)
            self._file.reset()
            return reason
        os.truncate(self._path, self._end)
        self._file.file.truncate(self._file.state.position)
        return reason

    def _replay(self, lines: list[_Line], allow_left_out: bool) -> bool:
        """Restores the state; returns whether it stopped at an image that was replaced."""
        file = self._file
        with progress((lines[-1].content["position"] - file.first_page) // _MB, "MB") as advance:
            for line, end, crc in lines[1:]:
                state = file.state
                if line["images"] != self._digest(state.processed, line["asked"]):
                    return True
                if line["left_out"] and not allow_left_out:
                    return False
                if file.crc_at(line["position"]) != line["crc"]:
                    return False
                rows = slice(state.stored, line["stored"])
                file.sample_records[rows] = np.frombuffer(base64.b64decode(line["rows"]), SAMPLE)
                file.image_sizes[rows] = np.frombuffer(base64.b64decode(line["sizes"]), "<i8")
                advance(line["position"] // _MB - state.position // _MB)
                file.state = WriteState(
                    processed=line["asked"],
                    **{key: line[key] for key in ("stored", "position", "crc", "copied")},
                    histogram=np.array(line["histogram"], np.int64),
                    left_out=state.left_out + [(name, why) for name, why in line["left_out"]],
                    defects=Counter(line.get("defects")),
                )
                self._processed = file.state.processed
                self._stored, self._left_out = file.state.stored, len(file.state.left_out)
                self._end, self._crc = end, crc
        return False

    def _digest(self, start: int, end: int) -> str:
        """Identifies the image files of the samples `start` to `end`, in the order of writing."""
        return hashlib.sha256(self._stamps[start:end].astype("<u8").tobytes()).hexdigest()[:16]

    def append_if_due(self) -> None:
        """Starts to write a line if the last one is old enough.

        Raises OSError if the disk was full when the previous line was written.
        """
        if self._pending and self._pending.done():
            self._pending.result()
            self._pending = None
        if not self._pending and time.monotonic() >= self._next_line_at:
            self._pending = self._start_line()

    def flush(self) -> None:
        """Writes a line and waits until everything is on disk.  Raises OSError if the disk is full."""
        if self._pending:
            self._pending.result()
        self._pending = self._start_line()
        self._pending.result()

    def _start_line(self) -> "Future[None]":
        file, state = self._file, self._file.state
        rows = slice(self._stored, state.stored)
        line = {
            "asked": state.processed,
            "stored": state.stored,
            "position": state.position,
            "crc": state.crc,
            "copied": state.copied,
            "histogram": state.histogram.tolist(),
            "left_out": state.left_out[self._left_out :],
            "defects": state.defects,
            "images": self._digest(self._processed, state.processed),
            "rows": base64.b64encode(file.sample_records[rows].tobytes()).decode(),
            "sizes": base64.b64encode(file.image_sizes[rows].tobytes()).decode(),
        }
        text = b"" if self._path.exists() else self._encode(self._identity)
        text += self._encode(line)
        self._processed, self._stored, self._left_out = state.processed, state.stored, len(state.left_out)
        self._next_line_at = time.monotonic() + INTERVAL
        return self._thread.submit(self._write, text)

    def _encode(self, content: dict[str, Any]) -> bytes:
        text = json.dumps(content).encode() + b"\n"
        self._crc = zlib.crc32(text, self._crc)
        return b"%08x " % self._crc + text

    def _write(self, text: bytes) -> None:
        os.fsync(self._file.file.fileno())
        with self._path.open("ab") as journal:
            journal.write(text)
            journal.flush()
            os.fsync(journal.fileno())
        fsync(self._path.parent)  # the names of the journal and of the file


def _first_difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first setting in which a journal differs from this command."""
    for name, value in wanted.items():
        if found.get(name) != value:
            if name == "images":
                return "the images have changed"
            return f"the unfinished file has {name} {found.get(name)}, not {value}"
    return "the unfinished file is from another version of this command"
