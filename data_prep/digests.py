"""SHA-256 of a file and of each of its pages."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.progress import progress


def digests(path: Path, page_size: int) -> tuple[str, list[str]]:
    """SHA-256 in hexadecimal of the file and of each part of it of `page_size` bytes, of which the last may be shorter.

    Raises OSError if it cannot be read.
    """
    whole, pages = hashlib.sha256(), []
    parts = -(-path.stat().st_size // page_size)
    # Two threads, as hashing leaves Python's lock alone: 2 GB/s, where the disk can.
    with path.open("rb") as file, ThreadPoolExecutor(1) as thread, progress(parts, "parts") as advance:
        while page := file.read(page_size):
            digest = thread.submit(hashlib.sha256, page)
            whole.update(page)
            pages.append(digest.result().hexdigest())
            advance(1)
    return whole.hexdigest(), pages
