"""Downloads a file, and continues where an interrupted download of it ended.

torchvision's own function starts over each time, and Food-101 has 5 GB.
"""

import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_prep.sources.progress import progress

_CHUNK = 1 << 18  # bytes
_TIMEOUT_SECONDS = 60.0  # without a byte
_ATTEMPTS = 3  # in a row that bring no byte
_MB = 1_000_000

_NETWORK_ERRORS = (
    *(urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError),
    EOFError,
)

Advance = Callable[[int], object]


class DownloadError(Exception):
    """A file could not be downloaded; the message says why."""


def download(url: str, path: Path, md5: str, pause_seconds: float = 2.0) -> None:
    """Downloads `url` to `path`, which appears when it is complete and has this MD5 checksum.

    A connection that breaks is made again, after a pause.  What was received is kept next to `path` for the next call
    if this one fails or is interrupted.  Raises DownloadError, OSError of the disk.
    """
    unfinished = unfinished_file(path)
    failed = 0
    while True:
        before = unfinished.stat().st_size if unfinished.exists() else 0
        try:
            _receive(url, unfinished, path.name)
            break
        except _NETWORK_ERRORS as error:
            failed = failed + 1 if unfinished.exists() and unfinished.stat().st_size <= before else 0
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            # A first request that fails means that there is no network, or no such file.
            if refused or failed >= _ATTEMPTS or not unfinished.exists():
                raise DownloadError(_reason(error)) from error
            time.sleep(pause_seconds)
    with unfinished.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        unfinished.unlink()
        raise DownloadError(f"the file has the MD5 checksum {found}, not {md5}, and was removed")
    unfinished.rename(path)


def unfinished_file(path: Path) -> Path:
    """Where the bytes are kept that were received of a file that is not complete."""
    return path.with_name(f".{path.name}.download")


def _receive(url: str, unfinished: Path, name: str) -> None:
    """Appends what is missing of a file.  Raises EOFError if the connection ends before it is complete."""
    done = unfinished.stat().st_size if unfinished.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "vit", **({"Range": f"bytes={done}-"} if done else {})}
    )
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # all of it was received already
            return
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:  # the server sends it from the start
            done = 0
        total = done + response.length if response.length is not None else None
        with unfinished.open("ab" if done else "wb") as file, _progress(name, done, total) as advance:
            _copy(response, file, advance)
            if total is not None and file.tell() < total:
                raise EOFError(f"the connection ended after {file.tell():,} of {total:,} bytes")


def _copy(response: http.client.HTTPResponse, file: BinaryIO, advance: Advance) -> None:
    while chunk := response.read1(_CHUNK):
        file.write(chunk)
        advance(len(chunk))


@contextmanager
def _progress(name: str, done: int, total: int | None) -> Iterator[Advance]:
    """Reports the progress in MB.  Yields a function to call with the number of bytes that were received."""
    received = done
    with progress((total or 0) // _MB, f"MB of {name}", done // _MB) as advance:

        def update(count: int) -> None:
            nonlocal received
            before, received = received // _MB, received + count
            if received // _MB > before:
                advance(received // _MB - before)

        yield update


def _reason(error: Exception) -> str:
    """The reason in one line, without Python's decoration."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    text = inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)
    return " ".join(text.split()) or type(error).__name__
