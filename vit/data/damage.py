"""What is done about bytes that are not what was written: named, replaced, counted; never passed over in silence."""

import hashlib
import threading
from collections.abc import Iterable

import numpy as np

from vit.data.beton import Beton
from vit.data.decode import DamagedDataError, DecodeError


class Damage:
    """The damaged samples of a file, as threads come upon them, and what is shown instead of them."""

    def __init__(self, beton: Beton) -> None:
        self._beton = beton
        self._lock = threading.Lock()
        self._instead: dict[int, int] = {}  # the last sample tried for each damaged one, or -1
        self._news: list[str] = []

    def next_of_class(self, error: DecodeError) -> int:
        """The next sample in the file of the same class, the first following the last: the same in every run.

        Raises DamagedError if all of them are damaged.
        """
        of_class = np.flatnonzero(self._beton.labels == self._beton.labels[error.sample])
        following = int(of_class[(np.searchsorted(of_class, error.sample) + 1) % len(of_class)])
        self._note(error, following, f"replaced by sample {following}")
        if self._instead.keys() >= set(of_class.tolist()):
            name = self._beton.classes[int(self._beton.labels[error.sample])]
            raise DamagedDataError(f"{self._beton.path}: all {len(of_class)} samples of class {name} are damaged")
        return following

    def left_out(self, error: DecodeError) -> int:
        """None: a score over the others counts no image twice."""
        self._note(error, -1, "left out")
        return -1

    def _note(self, error: DecodeError, instead: int, what: str) -> None:
        with self._lock:
            if error.sample not in self._instead:
                self._news.append(f"{error}; {what}")
            self._instead[error.sample] = instead

    def news(self) -> list[str]:
        """What was found since the last call, a sentence for each sample."""
        with self._lock:
            news, self._news = self._news, []
        return news


def check_pages(beton: Beton, pages: Iterable[int]) -> None:
    """Compares pieces of the file with the manifest's digests.  Raises DamagedError that names the first bad one."""
    for page in pages:
        start = page * beton.page_size
        size = min(beton.page_size, beton.bytes - start)
        content, offset = beton.storage.fetch(np.array([start]), np.array([size]))
        if hashlib.sha256(content[int(offset[0]) :][:size].data).hexdigest() != beton.pages[page]:
            inside = np.flatnonzero((beton.offset < start + size) & (beton.offset + beton.size > start))
            samples = f"samples {inside.min()} to {inside.max()}" if len(inside) else "no image, but the file's tables"
            raise DamagedDataError(
                f"{beton.path}: page {page}, {size:,} bytes at {start:,} with {samples}, is not what was "
                "written. Write or copy the file again; --data.verify never goes on with it"
            )
