"""Check a .beton file against its manifest: every digest, every image, every label.

    python -m data_prep.check_beton data/train.beton --picture sheet.png

Exit code 0: whole.  1: what is wrong, in one line, with the first damaged sample and where it lies.
"""

import argparse
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data_prep import contact_sheet
from data_prep.beton_reader import Beton, open_beton
from data_prep.digests import digests
from data_prep.progress import progress
from data_prep.sources.source import InputError
from vit.data.dataset_manifest import DatasetManifest, read_dataset_manifest

_CHUNK = 64  # images, for a thread at a time


def check(path: Path, threads: int) -> tuple[DatasetManifest, Beton]:
    """Check the file at `path` against the manifest beside it, and decode all of its images with `threads` threads.

    Raises InputError, which says what is wrong, with the first damaged sample, its offset and its part of the file
    (counted from 0, of `page_size` bytes); OSError if the file cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        manifest = read_dataset_manifest(path, training=False)
    except ValueError as error:
        raise InputError(str(error)) from None
    size = path.stat().st_size
    if size != manifest.bytes:
        # What is missing or too much is named, but first whether it is such a file at all.
        open_beton(path, len(manifest.classes))
        raise InputError(f"{path}: has {size:,} bytes of {manifest.bytes:,}; copy or write it again")
    page_size = manifest.page_size or max(1, size)
    sha256, pages = digests(path, page_size)
    wrong = [
        part for part, (found, said) in enumerate(zip(pages, manifest.pages or pages, strict=False)) if found != said
    ]
    try:
        beton = open_beton(path, len(manifest.classes))
    except InputError as error:
        raise InputError(f"{error}{_parts(wrong, page_size)}") from None
    damaged = next(_damaged(beton, threads), None)
    if damaged:
        sample, why = damaged
        at = (
            f"sample {sample} at offset {int(beton.offset[sample]):,}, in part {int(beton.offset[sample]) // page_size}"
        )
        raise InputError(f"{path}: {at}, {why}{_parts(wrong, page_size)}; copy or write it again")
    if wrong:
        raise InputError(f"{path}: {_touched(beton, wrong[0], page_size)}{_parts(wrong, page_size)}; copy it again")
    if len(pages) != len(manifest.pages or pages) or sha256 != manifest.sha256:
        raise InputError(f"{path}: is not the file of its manifest: its sha256 is {sha256}, not {manifest.sha256}")
    _compare(beton, manifest)
    return manifest, beton


def _damaged(beton: Beton, threads: int) -> Iterator[tuple[int, str]]:
    """The samples that cannot be decoded, and why, in order."""
    descriptor = os.open(beton.path, os.O_RDONLY)

    def decode(start: int) -> list[tuple[int, str]]:
        found = []
        for sample in range(start, min(start + _CHUNK, len(beton))):
            try:
                beton.pixels(descriptor, sample)
            except (InputError, OSError) as error:
                found.append((sample, str(error)))
        return found

    pool = ThreadPoolExecutor(threads)
    try:
        with progress(len(beton)) as advance:
            for found in pool.map(decode, range(0, len(beton), _CHUNK)):
                yield from found
                advance(_CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(descriptor)


def _parts(wrong: Sequence[int], page_size: int) -> str:
    """Which parts do not have their digests."""
    if not wrong:
        return ""
    start = wrong[0] * page_size
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"; part {wrong[0]} (bytes {start:,} to {start + page_size - 1:,}){more} does not match its digest"


def _touched(beton: Beton, part: int, page_size: int) -> str:
    """The first sample that lies in a part, and so may be damaged though it can be decoded."""
    start, end = part * page_size, (part + 1) * page_size
    for sample in np.flatnonzero((beton.offset < end) & (beton.offset + beton.size > start))[:1].tolist():
        return f"pixels may be wrong from sample {sample} at offset {int(beton.offset[sample]):,}"
    return (
        "labels or places of samples may be wrong" if start < beton.data_start else "what lies beside images is damaged"
    )


def _compare(beton: Beton, manifest: DatasetManifest) -> None:
    """Raises InputError unless the file holds what its manifest says; one of them was replaced, if not."""
    if len(beton) != manifest.samples:
        raise InputError(f"{beton.path}: has {len(beton):,} samples, its manifest says {manifest.samples:,}")
    histogram = np.bincount(beton.labels, minlength=len(manifest.classes)).tolist()
    for name, found, said in itertools.zip_longest(manifest.classes, histogram, manifest.histogram):
        if found != said:
            raise InputError(f"{beton.path}: class {name} has {found} samples, its manifest says {said}")
    image = manifest.image
    found_sizes = [int(end(sizes)) for sizes in (beton.height, beton.width) for end in (np.min, np.max)]
    if found_sizes != [image.min_height, image.max_height, image.min_width, image.max_width]:
        raise InputError(f"{beton.path}: its images' smallest and largest sides are not those of its manifest")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 for a file that is not whole, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.check_beton", description="Check a .beton file.")
    parser.add_argument("file", type=Path, metavar="FILE", help="the .beton; its manifest lies beside it")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw random samples with their classes' names")
    parser.add_argument("--count", type=int, default=48, metavar="N", help="of samples in the picture (48)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice (0)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads (all cores)")
    args = parser.parse_args(arguments)
    for name, least in (("count", 1), ("seed", 0), ("workers", 1)):
        if getattr(args, name) < least:
            parser.error(f"{name} must be at least {least}, not {getattr(args, name)}")
    started = time.monotonic()
    try:
        manifest, beton = check(args.file, args.workers)
        seconds = time.monotonic() - started
        if args.picture:
            contact_sheet.draw(beton, manifest.names or manifest.classes, args.picture, args.count, args.seed)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or args.file}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"error: {args.file}: not checked to the end, interrupted", file=sys.stderr)
        return 130
    print(
        f"{args.file}: whole: {len(beton):,} samples of {len(manifest.classes)} classes, "
        f"{manifest.bytes / 1e6:,.1f} MB\n"
        f"  digests of {len(manifest.pages) or 1:,} parts and all images checked in {seconds:.1f} s"
    )
    if args.picture:
        print(f"  {min(args.count, len(beton))} of them drawn in {args.picture}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
