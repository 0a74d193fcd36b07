"""A .beton while it is written: images are appended, and what readers look at first is written last.

The layout is that of FFCV's own writer, to the byte: room for the head, then pages, none of which cuts an image in two,
then the table of images.  FFCV's writer itself cannot go on with a file, and does not look whether the disk took it.
"""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit.data.ffcv_format import FIELD, FIELDS, HEADER, PLACE, SAMPLE, TYPES

_PIECE = 8 << 20  # bytes that are read at once


@dataclass
class Tally:
    """What became of the samples that were asked for, as far as it was written."""

    asked: int = 0  # samples: those in the file, and those left out
    stored: int = 0  # samples in the file
    position: int = 0  # bytes: where in the file the next image goes
    crc: int = 0  # CRC-32 of the file from its first image to there
    copied: int = 0  # images: JPEGs stored as they were
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))  # of all pixels' values
    left_out: list[tuple[str, str]] = field(default_factory=list)  # which and why


class BetonWriter:
    """The file at `path`, which must be there, to take up to `samples` images in pages of `page_size` bytes."""

    def __init__(self, path: Path, samples: int, page_size: int) -> None:
        self.page_size = page_size
        self.samples = np.zeros(samples, SAMPLE)  # as FFCV describes each
        self.sizes = np.zeros(samples, np.int64)  # bytes of each
        head = HEADER.itemsize + len(FIELDS) * FIELD.itemsize + self.samples.nbytes
        self.start = -(-head // page_size) * page_size
        self.tally = Tally(position=self.start)
        self.file = path.open("r+b", buffering=0)

    def begin(self) -> None:
        """Whatever the file held, it is empty now, with room for the head.  Raises OSError if the disk is full."""
        self.tally = Tally(position=self.start)
        self.file.truncate(0)
        self._write(0, bytes(self.start))

    def append(self, images: NDArray[Any], labels: NDArray[np.int64], contents: Sequence[bytes]) -> None:
        """Write the next images: FFCV's records of them without their places, (N,), their labels and bytes.

        Raises OSError if the disk is full.
        """
        tally = self.tally
        pieces, end, offsets = [], tally.position, []
        for content in contents:
            assert 0 < len(content) <= self.page_size
            room = -end % self.page_size
            if len(content) > room:  # it goes to the next page
                pieces.append(bytes(room))
                end += room
            offsets.append(end)
            pieces.append(content)
            end += len(content)
        written = b"".join(pieces)
        self._write(tally.position, written)
        rows = slice(tally.stored, tally.stored + len(contents))
        self.samples["image"][rows] = images
        self.samples["image"]["offset"][rows] = offsets
        self.samples["label"][rows] = labels
        self.sizes[rows] = [len(content) for content in contents]
        tally.stored, tally.position, tally.crc = rows.stop, end, zlib.crc32(written, tally.crc)

    def finish(self) -> None:
        """Write the table and the head.  Images that were left out leave a gap in the latter, which nobody reads."""
        table = np.zeros(self.tally.stored, PLACE)
        samples = self.samples[: len(table)]
        table["sample"], table["offset"] = np.arange(len(table)), samples["image"]["offset"]
        table["size"] = self.sizes[: len(table)]
        end = -(-self.tally.position // self.page_size) * self.page_size
        self._write(self.tally.position, bytes(end - self.tally.position) + table.tobytes())
        self.file.truncate(end + table.nbytes)
        numbers = {name: number for number, name in TYPES.items()}
        fields = np.zeros(len(FIELDS), FIELD)
        for row, (name, kind) in zip(fields, FIELDS, strict=True):
            row["type"], row["name"][: len(name)] = numbers[kind], list(name.encode())
        header = np.zeros(1, HEADER)
        header["version"], header["fields"], header["page_size"] = 2, len(fields), self.page_size
        header["samples"], header["table"] = len(table), end
        self._write(0, (header.tobytes() + fields.tobytes() + samples.tobytes()).ljust(self.start, b"\0"))

    def crc_up_to(self, position: int) -> int | None:
        """What the tally's CRC-32 is at a later `position`, as the file has it; None if it does not reach so far."""
        at, crc = self.tally.position, self.tally.crc
        while at < position:
            piece = os.pread(self.file.fileno(), min(_PIECE, position - at), at)
            if not piece:
                return None
            at, crc = at + len(piece), zlib.crc32(piece, crc)
        return crc

    def _write(self, position: int, content: bytes) -> None:
        rest = memoryview(content)
        while rest:  # a disk that is almost full takes a part, and then none
            count = os.pwrite(self.file.fileno(), rest, position)
            rest, position = rest[count:], position + count
