"""Checks a .beton file against its manifest: every digest, every image, every label.

    python -m data_prep.check_beton data/train.beton --picture data/train.png

Exit code 0: the file is intact.  1: it is not; one line says why, with the first damaged sample and its offset.
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()

import argparse
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep import contact_sheet
from data_prep.beton_reader import BetonIndex, decode_in_chunks, read_beton_index
from data_prep.digests import compute_digests
from data_prep.sources.source import InputError
from vit.config.option_errors import CommandParser
from vit.config.paths import user_path
from vit.data.dataset_manifest import DatasetManifest, read_dataset_manifest
from vit.run.command import run_command
from vit.run.console import adapted, started_as
from vit.run.counts import counted

_ADVICE = "copy or write the file again"

_DESCRIPTION = """\
Check that a .beton file is intact: compare its size and its SHA-256 digests with
its manifest (FILE.json), validate every label, and decode every image.
"""
_EPILOG = """\
exit codes:
  0    the file is intact
  1    the file is damaged or cannot be read; one line on stderr says why, and
       names the first damaged sample and its offset
  2    wrong usage
  130  interrupted

example:
  python -m data_prep.check_beton data/val.beton --picture data/val.png
"""


def check(path: Path, threads: int) -> tuple[DatasetManifest, BetonIndex]:
    """Checks the file at `path` against its manifest, and decodes all of its images with `threads` threads.

    Raises InputError, which says what is wrong, with the first damaged sample, its offset and its page (a part of
    `page_size` bytes, counted from 0); OSError if the file cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a .beton file")
    try:
        manifest = read_dataset_manifest(path, training=False)
    except ValueError as error:
        raise InputError(str(error)) from None
    size = path.stat().st_size
    if size != manifest.bytes:
        _read_index(path, manifest)  # raises a more precise error if the file is truncated or not an FFCV file
        raise InputError(f"{path}: has {size:,} bytes instead of {manifest.bytes:,}; {_ADVICE}")
    page_size = manifest.page_size or max(1, size)  # manifests of older versions have no page digests
    file_digest, page_digests = compute_digests(path, page_size)
    expected_pages = manifest.pages or page_digests
    pairs = zip(page_digests, expected_pages, strict=False)
    wrong_pages = [page for page, (found, expected) in enumerate(pairs) if found != expected]
    page_report = _page_report(wrong_pages, page_size)
    beton = _read_index(path, manifest, page_report)
    undecodable = next(_undecodable_samples(beton, threads), None)
    if undecodable:
        sample, why = undecodable
        offset = int(beton.offset[sample])
        where = f"sample {sample} at offset {offset:,} in page {offset // page_size}"
        raise InputError(f"{path}: {where} {why}{page_report}; {_ADVICE}")
    if wrong_pages:
        raise InputError(f"{path}: {_first_affected(beton, wrong_pages[0], page_size)}{page_report}; {_ADVICE}")
    if len(page_digests) != len(expected_pages) or file_digest != manifest.sha256:
        what = f"its SHA-256 is {file_digest}, not {manifest.sha256}"
        raise InputError(f"{path}: is not the file that its manifest describes: {what}; {_ADVICE} and its manifest")
    _compare_with_manifest(beton, manifest)
    return manifest, beton


def _read_index(path: Path, manifest: DatasetManifest, page_report: str = "") -> BetonIndex:
    try:
        return read_beton_index(path, len(manifest.classes))
    except InputError as error:
        raise InputError(f"{error}{page_report}; {_ADVICE}") from None


def _undecodable_samples(beton: BetonIndex, threads: int) -> Iterator[tuple[int, str]]:
    """The samples that cannot be decoded, and why, in order."""

    def decode_chunk(descriptor: int, samples: range) -> list[tuple[int, str]]:
        failed = []
        for sample in samples:
            try:
                beton.read_pixels(descriptor, sample)
            except InputError as error:
                failed.append((sample, str(error)))
            except OSError as error:
                failed.append((sample, f"cannot be read ({error.strerror or error})"))
        return failed

    return itertools.chain.from_iterable(decode_in_chunks(beton, threads, decode_chunk))


def _page_report(wrong_pages: Sequence[int], page_size: int) -> str:
    """Names the pages whose digests do not match."""
    if not wrong_pages:
        return ""
    start = wrong_pages[0] * page_size
    page = f"page {wrong_pages[0]} (bytes {start:,} to {start + page_size - 1:,})"
    if len(wrong_pages) == 1:
        return f"; {page} does not match its digest"
    return f"; {page} and {len(wrong_pages) - 1} more do not match their digests"


def _first_affected(beton: BetonIndex, page: int, page_size: int) -> str:
    """The first sample in a damaged page: its pixels may be wrong although it can be decoded."""
    start, end = page * page_size, (page + 1) * page_size
    for sample in np.flatnonzero((beton.offset < end) & (beton.offset + beton.size > start))[:1].tolist():
        return f"pixels may be wrong from sample {sample} at offset {int(beton.offset[sample]):,}"
    return "labels or offsets may be wrong" if start < beton.data_start else "bytes outside of images are damaged"


def _compare_with_manifest(beton: BetonIndex, manifest: DatasetManifest) -> None:
    """Raises InputError if the content of the file differs from its manifest: one of them was replaced."""
    advice = f"{_ADVICE} and its manifest"
    if len(beton) != manifest.samples:
        raise InputError(
            f"{beton.path}: has {counted(len(beton), 'sample')}, but its manifest says {manifest.samples:,}; {advice}"
        )
    histogram = np.bincount(beton.labels, minlength=len(manifest.classes)).tolist()
    for name, found, expected in itertools.zip_longest(manifest.classes, histogram, manifest.histogram):
        if found != expected:
            what = f"class {name} has {counted(found, 'sample')}, but its manifest says {expected}"
            raise InputError(f"{beton.path}: {what}; {advice}")
    image = manifest.image
    found_sizes = [int(limit(sizes)) for sizes in (beton.height, beton.width) for limit in (np.min, np.max)]
    if found_sizes != [image.min_height, image.max_height, image.min_width, image.max_width]:
        what = "its smallest and largest image sizes differ from its manifest"
        raise InputError(f"{beton.path}: {what}; {advice}")


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog=started_as("python -m data_prep.check_beton"),
        description=adapted(_DESCRIPTION),
        epilog=adapted(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=user_path, metavar="FILE", help="the .beton file; its manifest must be next to it")
    parser.add_argument(
        "--picture",
        type=user_path,
        metavar="PNG",
        help="also draw random samples with their class names into this file",
    )
    parser.add_argument("--count", type=int, default=48, metavar="N", help="samples in the picture (default: 48)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed that chooses the samples in the picture (default: 0)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="threads that decode images (default: one per available core)",
    )
    args = parser.parse_args(arguments)
    for name, minimum in (("count", 1), ("seed", 0), ("workers", 1)):
        if getattr(args, name) < minimum:
            parser.error(f"{name} must be at least {minimum}, not {getattr(args, name)}")
    if args.picture:
        if args.picture.suffix.lower() != ".png":
            parser.error(f"--picture {args.picture}: the name must end in .png")
        folder = next(parent for parent in args.picture.absolute().parents if parent.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):  # not only after the check, which may take long
            parser.error(f"--picture {args.picture}: {folder} is not a folder that can be written; use another one")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 for a damaged file, 130 if interrupted.  Exits with 2 for usage."""
    args = _parse_arguments(arguments)
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
        print(f"error: {args.file}: interrupted before the check was complete", file=sys.stderr)
        return 130
    pages = counted(len(manifest.pages), "page") if manifest.pages else "the file"
    print(
        f"{args.file}: intact: {counted(len(beton), 'sample')} in {counted(len(manifest.classes), 'class')}, "
        f"{manifest.bytes / 1e6:,.1f} MB\n"
        f"  digests of {pages} and all images checked in {seconds:.1f} s"
    )
    if args.picture:
        print(f"  {counted(min(args.count, len(beton)), 'sample')} drawn in {args.picture}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handle SIGTERM as Ctrl-C
    run_command(main)
