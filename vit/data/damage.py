"""Damaged data: replaces or skips samples that cannot be decoded, reports them, and checks pages against digests."""

import hashlib
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vit.data.beton import Beton
from vit.data.decode import DamagedDataError, DecodeError


class DamagedSamples:
    """The damaged samples found in a file so far.  `replace` and `skip` are `on_damage` functions of a `Decoder`.

    Thread-safe.
    """

    def __init__(self, beton: Beton) -> None:
        self._beton = beton
        self._lock = threading.Lock()
        self._found: set[int] = set()
        self._messages: list[str] = []

    def replace(self, error: DecodeError) -> int:
        """The next sample of the same class in the file; after the last one, the first one.  The same in every run.

        Raises DamagedDataError if all samples of the class are damaged.
        """
        of_class = np.flatnonzero(self._beton.labels == self._beton.labels[error.sample])
        replacement = int(of_class[(np.searchsorted(of_class, error.sample) + 1) % len(of_class)])
        self._add(error, f"replaced by sample {replacement}")
        if self._found >= set(of_class.tolist()):
            name = self._beton.classes[int(self._beton.labels[error.sample])]
            raise DamagedDataError(f"{self._beton.path}: all {len(of_class)} samples of class {name} are damaged")
        return replacement

    def skip(self, error: DecodeError) -> int:
        """Always -1, so that an evaluation counts no other image twice."""
        self._add(error, "skipped")
        return -1

    def _add(self, error: DecodeError, action: str) -> None:
        with self._lock:
            if error.sample not in self._found:
                self._messages.append(f"{error}; {action}")
            self._found.add(error.sample)

    def take_messages(self) -> list[str]:
        """One message for each sample found damaged since the last call."""
        with self._lock:
            messages, self._messages = self._messages, []
        return messages


def check_pages(beton: Beton, pages: Iterable[int]) -> None:
    """Compares pages of the file with their digests.  Raises DamagedDataError that names the first damaged page."""
    for page in pages:
        start = page * beton.page_size
        size = min(beton.page_size, beton.bytes - start)
        content, offset = beton.storage.fetch(np.array([start]), np.array([size]))
        if hashlib.sha256(content[int(offset[0]) :][:size].data).hexdigest() != beton.pages[page]:
            inside = np.flatnonzero((beton.offset < start + size) & (beton.offset + beton.size > start))
            samples = f", samples {inside.min()} to {inside.max()}" if len(inside) else ", no images"
            raise damaged_page(beton.path, page, start, size, samples)


def damaged_page(path: Path, page: int, start: int, size: int, samples: str = "") -> DamagedDataError:
    """The error for a page whose bytes do not match its digest."""
    return DamagedDataError(
        f"{path}: page {page} ({size:,} bytes at offset {start:,}{samples}) does not match its digest in the manifest. "
        "Write or copy the file again, or use --data.verify never to skip this check"
    )
