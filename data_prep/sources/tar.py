"""Where each file of a tar lies, so that it can be read in place: nothing is unpacked.

Format: POSIX ustar with GNU's long names and pax's path and size,
https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from data_prep.sources.source import InputError

_BLOCK = 512  # bytes; headers and contents begin at multiples of it
_MOST_NAME = 1 << 20  # bytes of a pax header or long name; a longer one is damage


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int  # bytes from the start of the outermost tar
    size: int  # bytes


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of `path`, for the length of the block.  Raises InputError if it cannot be opened, or read in it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the tar file as it was downloaded") from None


def members(descriptor: int, name: str, within: Member | None = None) -> list[Member]:
    """The files of the tar open as `descriptor`, or of the tar that lies `within` it, in their order there.

    `name` says in messages which tar it is.  Raises InputError if it is no tar, damaged, or cut short.
    """
    start = within.offset if within else 0
    end = start + within.size if within else os.fstat(descriptor).st_size
    found: list[Member] = []
    position = start
    longer: dict[str, str] = {}  # what a long-name or pax header says of the next file
    while True:
        header = os.pread(descriptor, _BLOCK, position) if position + _BLOCK <= end else b""
        if len(header) < _BLOCK:
            raise InputError(f"{name}: cut short at byte {position - start:,}; download it again")
        if header == bytes(_BLOCK):  # the end mark
            return found
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            what = "no tar file" if position == start else f"damaged at byte {position - start:,}"
            raise InputError(f"{name}: {what}; download it again")
        size = int(longer.get("size", _number(header[124:136])))
        position += _BLOCK
        if position + size > end:
            raise InputError(f"{name}: cut short in {_name(header)}; download it again")
        kind = header[156:157]
        if kind in (b"L", b"x"):
            if size > _MOST_NAME:
                raise InputError(f"{name}: damaged at byte {position - start:,}; download it again")
            content = os.pread(descriptor, size, position)
            longer |= {"path": _text(content)} if kind == b"L" else _pax(content)
        else:
            if kind in (b"0", b"\0"):
                found.append(Member(longer.get("path", _name(header)), position, size))
            elif kind not in (b"5", b"g"):  # folders and remarks on all files hold no images
                raise InputError(f"{name}: {_name(header)} is a link or device; give the tar as it was downloaded")
            longer = {}
        position += -(-size // _BLOCK) * _BLOCK


def _number(field: bytes) -> int:
    """Octal digits, or GNU's binary for what they cannot hold; -1 if neither."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else -1


def _text(content: bytes) -> str:
    return content.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""  # GNU keeps times there
    return f"{prefix}/{_text(header[:100])}" if prefix else _text(header[:100])


def _pax(content: bytes) -> dict[str, str]:
    """`path` and `size` of records such as "20 path=some/name\\n", whose first number is their length."""
    records = {}
    while content:
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(content):
            break  # damage that the next header's checksum shows, or padding
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        records[key.decode("utf-8", "replace")] = _text(value)
        content = content[int(length) :]
    return {key: value for key, value in records.items() if key == "path" or (key == "size" and value.isdigit())}
