"""A journal beside a file that is being written: what a killed command has safely on disk, so that it can go on there.

One line for what is written (recipe, images, versions), then one every few seconds for what has come since, each after
the images that it tells of were forced to disk.  A line begins with the CRC-32 of all lines up to its end, so that a
torn or damaged one ends the journal where it was still right.
"""

import base64
import json
import os
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.beton_writer import BetonWriter, Tally
from data_prep.progress import progress
from vit.data.ffcv_format import SAMPLE
from vit.run.fsync import fsync

EVERY = 5.0  # seconds between lines: what a kill may cost
FORMAT = "vit-beton-journal-1"
_MB = 1_000_000


class _Line(NamedTuple):
    content: dict[str, Any]
    end: int  # bytes up to its end
    crc: int  # of all lines up to its end


def journal_path(temporary: Path) -> Path:
    """Where the journal of the unfinished file at `temporary` lies."""
    return temporary.with_name(f"{temporary.name}.journal")


def share_kept(temporary: Path) -> float | None:
    """How much of the file at `temporary` the same command need not do again, 0 to 1; None if nothing."""
    lines = [line.content for line in _lines(journal_path(temporary))]
    return lines[-1]["asked"] / lines[0]["samples"] if len(lines) > 1 else None


def _lines(path: Path) -> Iterator[_Line]:
    """The lines from the first one on that are whole."""
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
    """The journal of `file`, written at `temporary`, which is to hold what `identity` says.

    Within a `with` block; lines are written in a thread of its own, as a disk may take seconds for each.
    """

    def __init__(self, temporary: Path, file: BetonWriter, identity: dict[str, Any]) -> None:
        self._path = journal_path(temporary)
        self._file = file
        # As JSON gives it back, so that the two can be compared.
        self._identity = json.loads(json.dumps({"format": FORMAT, "samples": len(file.samples)} | identity))
        self._crc, self._end = 0, 0  # of the lines that are there
        self._stored, self._left_out = 0, 0  # images that they tell of
        self._next = time.monotonic() + EVERY
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def resume(self, allow_left_out: bool) -> str:
        """Bring the file to where the journal and its bytes agree, or to its beginning; returns why, if to the latter.

        Without `allow_left_out`, to before the first image that was left out.
        """
        lines = list(_lines(self._path))
        why = "its journal is damaged" if self._path.exists() and not lines else ""
        if lines and lines[0].content != self._identity:
            why, lines = _differences(lines[0].content, self._identity), []
        if len(lines) > 1:
            self._replay(lines, allow_left_out)
            why = "" if self._file.tally.asked else "what was written of it is damaged"
        if not self._file.tally.asked:
            self._path.unlink(missing_ok=True)
            self._file.begin()
            return why
        os.truncate(self._path, self._end)
        self._file.file.truncate(self._file.tally.position)
        return ""

    def _replay(self, lines: list[_Line], allow_left_out: bool) -> None:
        file = self._file
        with progress((lines[-1].content["position"] - file.start) // _MB, "MB") as advance:
            for line, end, crc in lines[1:]:
                tally = file.tally
                if line["left_out"] and not allow_left_out:
                    return
                if file.crc_up_to(line["position"]) != line["crc"]:
                    return
                rows = slice(tally.stored, line["stored"])
                file.samples[rows] = np.frombuffer(base64.b64decode(line["rows"]), SAMPLE)
                file.sizes[rows] = np.frombuffer(base64.b64decode(line["sizes"]), "<i8")
                advance(line["position"] // _MB - tally.position // _MB)
                file.tally = Tally(
                    **{key: line[key] for key in ("asked", "stored", "position", "crc", "copied")},
                    histogram=np.array(line["histogram"], np.int64),
                    left_out=tally.left_out + [(which, why) for which, why in line["left_out"]],
                )
                self._stored, self._left_out = file.tally.stored, len(file.tally.left_out)
                self._end, self._crc = end, crc

    def keep(self) -> None:
        """Note down what was written, if it is time.  Raises OSError, of the line before, if the disk is full."""
        if self._writing and self._writing.done():
            self._writing.result()
            self._writing = None
        if not self._writing and time.monotonic() >= self._next:
            self._note()

    def settle(self) -> None:
        """Note down all that was written, and wait until it is on disk.  Raises OSError if the disk is full."""
        if self._writing:
            self._writing.result()
        self._note()
        assert self._writing
        self._writing.result()

    def _note(self) -> None:
        file, tally = self._file, self._file.tally
        rows = slice(self._stored, tally.stored)
        line = {
            "asked": tally.asked,
            "stored": tally.stored,
            "position": tally.position,
            "crc": tally.crc,
            "copied": tally.copied,
            "histogram": tally.histogram.tolist(),
            "left_out": tally.left_out[self._left_out :],
            "rows": base64.b64encode(file.samples[rows].tobytes()).decode(),
            "sizes": base64.b64encode(file.sizes[rows].tobytes()).decode(),
        }
        text = b"" if self._path.exists() else self._line(self._identity)
        text += self._line(line)
        self._stored, self._left_out = tally.stored, len(tally.left_out)
        self._writing = self._thread.submit(self._write, text)
        self._next = time.monotonic() + EVERY

    def _line(self, content: dict[str, Any]) -> bytes:
        text = json.dumps(content).encode() + b"\n"
        self._crc = zlib.crc32(text, self._crc)
        return b"%08x " % self._crc + text

    def _write(self, text: bytes) -> None:
        os.fsync(self._file.file.fileno())
        with self._path.open("ab") as journal:
            journal.write(text)
            journal.flush()
            os.fsync(journal.fileno())
        fsync(self._path.parent)  # its name, and that of the file


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """In a few words for people, the first thing in which a journal is another one's."""
    for name, value in wanted.items():
        if found.get(name) != value:
            if name == "images":
                return "the images are no longer the same"
            return f"it was begun with {name} {found.get(name)}, not {value}"
    return "it was begun by another version of this command"
