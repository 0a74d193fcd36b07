"""Writes a .beton: images are appended, and the header, which readers look at first, is written last.

The layout is that of FFCV's own writer, to the byte: space for the header and the sample records, then pages of images,
where no image crosses a page boundary, then a table with the location of each image.  FFCV's writer itself cannot
resume an unfinished file, and does not check whether its writes succeed.
"""

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit.data.ffcv_format import ALLOCATION, FIELD, FIELDS, HEADER, SAMPLE, TYPES

_READ_SIZE = 8 << 20  # bytes per read


@dataclass
class WriteState:
    """The state of an unfinished file: which samples were processed, and where the next image goes."""

    processed: int = 0  # samples that are in the file or were left out
    stored: int = 0  # samples in the file
    position: int = 0  # bytes: offset of the next image
    crc: int = 0  # CRC-32 of the file from its first page to `position`
    copied: int = 0  # stored JPEGs that are unchanged copies
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))  # of all stored pixels
    left_out: list[tuple[str, str]] = field(default_factory=list)  # name and reason of each
    defects: Counter[str] = field(default_factory=Counter)  # stored samples with each kind of harmless defect


class BetonWriter:
    """Writes up to `samples` images, in pages of `page_size` bytes, to the existing file at `path`."""

    def __init__(self, path: Path, samples: int, page_size: int) -> None:
        self.page_size = page_size
        self.sample_records = np.zeros(samples, SAMPLE)
        self.image_sizes = np.zeros(samples, np.int64)  # bytes
        header_bytes = HEADER.itemsize + len(FIELDS) * FIELD.itemsize + self.sample_records.nbytes
        self.first_page = -(-header_bytes // page_size) * page_size  # bytes: its offset
        self.state = WriteState(position=self.first_page)
        self.file = path.open("r+b", buffering=0)

    def reset(self) -> None:
        """Discards the content of the file and reserves space for the header.  Raises OSError if the disk is full."""
        self.state = WriteState(position=self.first_page)
        self.file.truncate(0)
        self._write(0, bytes(self.first_page))

    def append(self, images: NDArray[Any], labels: NDArray[np.int64], contents: Sequence[bytes]) -> None:
        """Writes the next N images, given FFCV's records of them without offsets (N,), their labels and their bytes.

        Raises OSError if the disk is full.
        """
        state = self.state
        pieces, end, offsets = [], state.position, []
        for content in contents:
            assert 0 < len(content) <= self.page_size
            rest_of_page = -end % self.page_size
            if len(content) > rest_of_page:  # the image starts on the next page
                pieces.append(bytes(rest_of_page))
                end += rest_of_page
            offsets.append(end)
            pieces.append(content)
            end += len(content)
        written = b"".join(pieces)
        self._write(state.position, written)
        rows = slice(state.stored, state.stored + len(contents))
        self.sample_records["image"][rows] = images
        self.sample_records["image"]["offset"][rows] = offsets
        self.sample_records["label"][rows] = labels
        self.image_sizes[rows] = [len(content) for content in contents]
        state.stored, state.position, state.crc = rows.stop, end, zlib.crc32(written, state.crc)

    def finish(self) -> None:
        """Writes the table and the header.  If samples were left out, unused space remains before the first page."""
        table = np.zeros(self.state.stored, ALLOCATION)
        records = self.sample_records[: len(table)]
        table["sample"], table["offset"] = np.arange(len(table)), records["image"]["offset"]
        table["size"] = self.image_sizes[: len(table)]
        end = -(-self.state.position // self.page_size) * self.page_size
        self._write(self.state.position, bytes(end - self.state.position) + table.tobytes())
        self.file.truncate(end + table.nbytes)
        type_numbers = {name: number for number, name in TYPES.items()}
        fields = np.zeros(len(FIELDS), FIELD)
        for row, (name, kind) in zip(fields, FIELDS, strict=True):
            row["type"], row["name"][: len(name)] = type_numbers[kind], list(name.encode())
        header = np.zeros(1, HEADER)
        header["version"], header["fields"], header["page_size"] = 2, len(fields), self.page_size
        header["samples"], header["table"] = len(table), end
        self._write(0, (header.tobytes() + fields.tobytes() + records.tobytes()).ljust(self.first_page, b"\0"))

    def crc_at(self, position: int) -> int | None:
        """The value of `state.crc` at a later `position`, computed from the file; None if the file is shorter."""
        at, crc = self.state.position, self.state.crc
        while at < position:
            content = os.pread(self.file.fileno(), min(_READ_SIZE, position - at), at)
            if not content:
                return None
            at, crc = at + len(content), zlib.crc32(content, crc)
        return crc

    def _write(self, position: int, content: bytes) -> None:
        rest = memoryview(content)
        while rest:  # on an almost full disk, a write may be partial; the next one then fails
            count = os.pwrite(self.file.fileno(), rest, position)
            rest, position = rest[count:], position + count
