"""Finds the location of each file in a tar, so that it can be read in place, without unpacking.

Format: POSIX ustar with GNU's long names and pax's path and size,
https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from data_prep.sources.source import InputError, Slice, open_at_once

_BLOCK = 512  # bytes; headers and contents start at multiples of it
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_MAX_NAME = 1 << 20  # bytes of a pax header or long name; a longer one means that the file is damaged


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int  # bytes from the start of the outermost tar
    size: int  # bytes


class TarImages(Sequence[Slice]):
    """The images of one tar, stored compactly: 1.3 million take 60 MB."""

    def __init__(self, path: Path, images: Sequence[Member]) -> None:
        self.path = str(path)
        self._names = np.array([image.name.encode("utf-8", "surrogateescape") for image in images], np.bytes_)
        self._locations = np.array([image[1:] for image in images], np.int64).reshape(-1, 2)  # offset, size

    def __len__(self) -> int:
        return len(self._locations)

    @overload
    def __getitem__(self, index: int) -> Slice: ...
    @overload
    def __getitem__(self, index: slice) -> list[Slice]: ...
    def __getitem__(self, index: int | slice) -> Slice | list[Slice]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        offset, size = self._locations[index].tolist()
        return Slice(self.path, offset, size, self._names[index].decode("utf-8", "surrogateescape"))


@contextmanager
def open_tar(path: Path) -> Iterator[int]:
    """A file descriptor of `path`, open during the block.  Raises InputError for an OSError, also from the block."""
    try:
        descriptor = open_at_once(path, os.O_RDONLY)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(f"{path}: is not a regular file; give the tar file as downloaded")
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the tar file as downloaded") from None


def list_members(descriptor: int, name: str, outer: Member | None = None) -> list[Member]:
    """The files of the tar open as `descriptor`, or of the tar stored in it as member `outer`, in stored order.

    `name` is the name of the tar in messages.  Raises InputError if it is not a tar, damaged, or truncated.
    """
    start = outer.offset if outer else 0
    end = start + outer.size if outer else os.fstat(descriptor).st_size
    found: list[Member] = []
    position = start
    begin = os.pread(descriptor, min(8, end - start), start)
    if kind := next((kind for magic, kind in _COMPRESSED.items() if begin.startswith(magic)), None):
        raise InputError(f"{name}: is compressed with {kind}, so it cannot be read in place; decompress it first")
    overrides: dict[str, str] = {}  # path and size of the next file, from a long-name or pax header
    while True:
        header = os.pread(descriptor, _BLOCK, position) if position + _BLOCK <= end else b""
        if len(header) < _BLOCK:
            raise InputError(f"{name}: is truncated at byte {position - start:,}; download it again")
        if header == bytes(_BLOCK):  # the end marker
            return found
        if _parse_number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            what = "is not a tar file" if position == start else f"is damaged at byte {position - start:,}"
            raise InputError(f"{name}: {what}; download it again")
        size = int(overrides.get("size", _parse_number(header[124:136])))
        position += _BLOCK
        if position + size > end:
            raise InputError(f"{name}: is truncated in {_header_name(header)}; download it again")
        member_type = header[156:157]
        if member_type in (b"L", b"x"):
            if size > _MAX_NAME:
                raise InputError(f"{name}: is damaged at byte {position - start:,}; download it again")
            content = os.pread(descriptor, size, position)
            overrides |= {"path": _decode_text(content)} if member_type == b"L" else _parse_pax(content)
        else:
            if member_type in (b"0", b"\0"):
                found.append(Member(overrides.get("path", _header_name(header)), position, size))
            elif member_type not in (b"5", b"g"):  # folders and global pax headers contain no images
                what = f"{_header_name(header)} is a link or device, not a file"
                raise InputError(f"{name}: {what}; give the tar file as downloaded")
            overrides = {}
        position += -(-size // _BLOCK) * _BLOCK


def _parse_number(field: bytes) -> int:
    """Octal digits, or GNU's binary form of larger numbers; -1 if it is neither."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else -1


def _decode_text(content: bytes) -> str:
    return content.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _header_name(header: bytes) -> str:
    prefix = _decode_text(header[345:500]) if header[257:263] == b"ustar\0" else ""  # GNU stores times there
    return f"{prefix}/{_decode_text(header[:100])}" if prefix else _decode_text(header[:100])


def _parse_pax(content: bytes) -> dict[str, str]:
    """`path` and `size` from records such as "20 path=some/name\\n", whose first number is the record's length."""
    records = {}
    while content:
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(content):
            break  # padding, or damage that the checksum of the next header reveals
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        records[key.decode("utf-8", "replace")] = _decode_text(value)
        content = content[int(length) :]
    return {key: value for key, value in records.items() if key == "path" or (key == "size" and value.isdigit())}
