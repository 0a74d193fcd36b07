"""Writes the manifest for an existing .beton file that another program wrote with FFCV, after checking the file.

    python -m data_prep.describe_beton train.beton --classes classes.txt

The file itself is not changed.  Training reads it afterwards, without FFCV, like a file of `write_beton`.
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.beton_reader import BetonIndex, decode_in_chunks, read_beton_index
from data_prep.digests import compute_digests
from data_prep.encode import channel_histogram, mean_and_std
from data_prep.publish import link_target, prepared_manifest
from data_prep.sources.labels import MAX_CLASSES, read_classes
from data_prep.sources.source import InputError
from data_prep.summary import summarize
from vit.config.option_errors import CommandParser
from vit.config.paths import user_path
from vit.data.dataset_manifest import (
    DESCRIBED,
    FORMAT,
    DatasetManifest,
    ImageInfo,
    manifest_path,
    read_dataset_manifest,
)  # fmt: skip
from vit.data.ffcv_format import JPEG
from vit.run.command import run_command
from vit.run.console import adapted, started_as

_MIN_PAGE = 1 << 10  # bytes; FFCV's smallest is 2 MiB
_MAX_COUNTED = 3 << 23  # values whose histogram is exact: see `channel_histogram`
_ADVICE = "the file cannot be used as it is"

_DESCRIPTION = """\
Write the manifest (FILE.json) that training needs for a .beton file that FFCV's own
DatasetWriter wrote: of samples with an RGBImageField and an IntField, in this order,
with any write_mode. Every image is decoded first. FILE itself is not changed.
"""
_EPILOG = """\
exit codes:
  0    the manifest was written
  1    the file cannot be used; one line on stderr says why
  2    wrong usage
  130  interrupted

example:
  python -m data_prep.describe_beton train.beton --classes classes.txt
"""


def describe(path: Path, classes: Sequence[str], names: Sequence[str] | None, threads: int) -> DatasetManifest:
    """The manifest of the file at `path`, all of whose images are decoded with `threads` threads.

    `classes` are the identifiers of the labels 0, 1, and so on; without any, these are the numbers themselves.
    Raises InputError, which names the first sample that training cannot use; OSError if the file cannot be read.
    """
    try:
        beton = read_beton_index(path, len(classes) or MAX_CLASSES)
    except InputError as error:
        raise InputError(f"{error}; {_ADVICE}") from None
    if not len(beton):
        raise InputError(f"{path}: has no samples; {_ADVICE}")
    if beton.page_size < _MIN_PAGE:
        raise InputError(f"{path}: is damaged: it has pages of {beton.page_size} bytes; {_ADVICE}")
    pixels = _decode_all(beton, threads)
    file_digest, page_digests = compute_digests(path, beton.page_size)
    histogram = np.bincount(beton.labels, minlength=len(classes)).tolist()
    classes = classes or [str(label) for label in range(len(histogram))]
    mean, std = mean_and_std(pixels)
    has_jpegs, has_raw = (bool(found.any()) for found in (beton.mode == JPEG, beton.mode != JPEG))
    return DatasetManifest(
        format=FORMAT,
        file=path.name,
        bytes=path.stat().st_size,
        sha256=file_digest,
        samples=len(beton),
        classes=list(classes),
        histogram=histogram,
        image=ImageInfo(
            mode="proportion" if has_jpegs and has_raw else "jpg" if has_jpegs else "raw",
            max_resolution=int(max(beton.height.max(), beton.width.max())),
            quality=None,
            min_height=int(beton.height.min()),
            max_height=int(beton.height.max()),
            min_width=int(beton.width.min()),
            max_width=int(beton.width.max()),
        ),
        source=DESCRIBED,
        seed=None,
        versions={},
        names=list(names) if names else None,
        mean=mean,
        std=std,
        page_size=beton.page_size,
        pages=page_digests,
        empty_classes=[name for name, count in zip(classes, histogram, strict=True) if not count],
    )


def _decode_all(beton: BetonIndex, threads: int) -> NDArray[np.int64]:
    """Decodes all images: counts of each value in each channel (3, 256).  Raises InputError for the first bad one."""

    def decode_chunk(descriptor: int, samples: range) -> NDArray[np.int64]:
        counts = np.zeros((3, 256), np.int64)
        for sample in samples:
            try:
                pixels = beton.read_pixels(descriptor, sample)
                for rows in np.array_split(pixels, 1 + pixels.size // _MAX_COUNTED):
                    counts += channel_histogram(rows)
            except InputError as error:
                where = f"sample {sample} at offset {int(beton.offset[sample]):,}"
                raise InputError(f"{beton.path}: {where} {error}; {_ADVICE}") from None
        return counts

    return sum(decode_in_chunks(beton, threads, decode_chunk), np.zeros((3, 256), np.int64))


def _check_manifest(path: Path) -> None:
    """Raises InputError if the file has a manifest already that this command did not write."""
    existing = manifest_path(path)
    if not os.path.lexists(existing):
        return
    try:
        source = read_dataset_manifest(path, training=False).source
    except ValueError:
        source = ""
    if source != DESCRIBED:
        raise InputError(f"{path}: has the manifest {existing} already; use it, or move it away")


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog=started_as("python -m data_prep.describe_beton"),
        description=adapted(_DESCRIPTION),
        epilog=adapted(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=user_path, metavar="FILE", help="the .beton file")
    parser.add_argument(
        "--classes",
        type=user_path,
        metavar="FILE",
        help="names of the classes in the order of the labels: a text file with one on each line, a JSON list, or the "
        "manifest of another data set (default: 0, 1, and so on)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="threads that decode images (default: one per available core)",
    )
    args = parser.parse_args(arguments)
    if args.workers < 1:
        parser.error(f"workers must be at least 1, not {args.workers}")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 for a file that cannot be used, 130 if interrupted."""
    args = _parse_arguments(arguments)
    started = time.monotonic()
    try:
        if not args.file.is_file():
            raise InputError(f"{args.file}: no such file; give the path of a .beton file")
        _check_manifest(args.file)
        target = link_target(args.file)
        classes, names = read_classes(args.classes) if args.classes else ([], None)
        manifest = describe(target, classes, names, args.workers)
        with prepared_manifest(target, manifest) as rename:
            rename()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or args.file}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"error: {args.file}: interrupted before the manifest was written", file=sys.stderr)
        return 130
    print(summarize("described", args.file, manifest, time.monotonic() - started))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handle SIGTERM as Ctrl-C
    run_command(main)
