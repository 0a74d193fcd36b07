"""Writes images into one .beton file that FFCV's Loader reads, and a manifest next to it.

    python -m data_prep.write_beton imagefolder PATH --out data/train.beton
    python -m data_prep.write_beton ilsvrc ILSVRC2012_img_train.tar --out data/imagenet/train.beton
    python -m data_prep.write_beton ilsvrc ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz --out ...
    python -m data_prep.write_beton kaggle PATH --split train --out data/imagenet/train.beton
    python -m data_prep.write_beton fashion-mnist --split train --out data/fashion-mnist/train.beton

Worker processes decode and encode; a single process writes, in order.  So the bytes do not depend on the number of
workers, and a killed worker is detected; FFCV's writer would wait for it forever.  However the command was ended,
running it again resumes where it was; `--force` starts over.
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
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.beton_writer import BetonWriter
from data_prep.digests import compute_digests
from data_prep.encode import WorkerKilledError, encode_in_order, mean_and_std, start_workers
from data_prep.journal import Journal
from data_prep.opencv import opencv, opencv_version
from data_prep.options import parse_arguments
from data_prep.publish import (
    check_replaceable,
    find_written,
    link_target,
    lock_unfinished_file,
    publish,
    remove_unfinished_file,
)  # fmt: skip
from data_prep.recipe import Recipe
from data_prep.sources.fingerprint import Fingerprint, describe_changes, take_fingerprint
from data_prep.sources.progress import progress
from data_prep.sources.source import InputError, Source
from data_prep.summary import summarize
from vit.config.paths import printable
from vit.data.dataset_manifest import FORMAT, DatasetManifest, ImageInfo
from vit.run.command import run_command
from vit.run.counts import counted

MIB = 1 << 20


def write(source: Source, out: Path, recipe: Recipe, processes: int) -> DatasetManifest:
    """Writes `source` to `out` with `processes` workers, and its manifest next to it; replaces older ones.

    If `out` is a link, it is kept, and the file that it links to is written.

    Resumes an unfinished file of the same recipe.  On failure, the unfinished file is kept for the next call, and a
    note on the exception says how much is done.  Raises InputError for an image or label that cannot be used, OSError
    for a full disk, WorkerKilledError if a worker was killed.
    """
    classes = len(source.classes)
    for sample in np.flatnonzero((source.labels < 0) | (source.labels >= classes))[:1].tolist():
        what = f"sample {sample} has label {source.labels[sample]}, which is not in 0 to {classes - 1}"
        raise InputError(f"{source.describe(sample)}: {what}; fix the source")
    source = source.random_subset(recipe.subset, recipe.per_class, recipe.seed)
    order = recipe.sample_order(len(source.labels))
    fingerprint = take_fingerprint(source)
    out = link_target(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with lock_unfinished_file(out) as temporary:
        file = _write_file(temporary, source, fingerprint, order, recipe, processes)
        manifest = _make_manifest(out.name, temporary, source, fingerprint, recipe, file)
        publish(temporary, out, manifest)
    return manifest


def _write_file(
    temporary: Path,
    source: Source,
    fingerprint: Fingerprint,
    order: NDArray[np.int64],
    recipe: Recipe,
    processes: int,
) -> BetonWriter:
    """Writes the samples `order` to `temporary`, or resumes the unfinished file there."""
    # A sample must fit into one page, and a JPEG may be larger than its pixels.
    page_size = max(8 * MIB, 1 << (2 * recipe.max_image_bytes).bit_length())
    file = BetonWriter(temporary, len(order), page_size)
    settings = recipe.manifest_entries() | _library_versions()
    identity = settings | {"opencv": opencv_version(), "max_megapixels": recipe.max_megapixels}
    identity |= {"images": fingerprint.list_digest}
    if opencv_version():
        opencv().setNumThreads(1)  # one core per worker
    with file.file, Journal(temporary, file, identity, fingerprint.stamps[order]) as journal:
        reason = journal.resume(allow_left_out=recipe.on_bad == "skip")
        state = file.state
        if state.processed:
            why = f": {reason} after them" if reason else ""
            _print_message(f"resuming after {state.processed:,} of {counted(len(order), 'image')}{why}")
        elif reason:
            _print_message(f"starting over: {reason}")
        rest, chunk_size = order[state.processed :], min(64, max(1, 16 * MIB // recipe.max_image_bytes))
        workers = start_workers(processes, source, recipe)
        with workers as pipes, progress(len(order), initial=state.processed) as advance:
            for chunk in encode_in_order(pipes, rest, chunk_size):
                file.append(chunk.image_records, source.labels[chunk.samples], chunk.contents)
                state.histogram += chunk.histogram
                state.copied += chunk.copied
                state.left_out += chunk.left_out
                state.defects += chunk.defects
                state.processed += len(chunk.samples) + len(chunk.left_out)
                journal.append_if_due()
                advance(len(chunk.samples) + len(chunk.left_out))
        if not state.stored:
            name, why = state.left_out[0]
            raise InputError(f"none of the images can be used; the first is {name}: {why}; check the source")
        journal.flush()
        file.finish()
    return file


def _library_versions() -> dict[str, str]:
    """Those that are installed: of FFCV only its format is needed."""
    found = {}
    for library in ("ffcv", "numpy", "pillow", "torchvision"):
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def _make_manifest(
    name: str, path: Path, source: Source, fingerprint: Fingerprint, recipe: Recipe, file: BetonWriter
) -> DatasetManifest:
    """The manifest of the file at `path`, which will be renamed to `name`."""
    entries: dict[str, Any] = recipe.manifest_entries()
    state, records = file.state, file.sample_records[: file.state.stored]
    # Of the file as it is on disk: its header, which comes first, was written last.
    file_digest, page_digests = compute_digests(path, file.page_size)
    mean, std = mean_and_std(state.histogram)
    height, width = records["image"]["height"], records["image"]["width"]
    histogram = np.bincount(records["label"], minlength=len(source.classes)).tolist()
    image_settings = ("mode", "max_resolution", "quality", "reencode", "compress_probability", "compress_seed")
    return DatasetManifest(
        format=FORMAT,
        file=name,
        bytes=path.stat().st_size,
        sha256=file_digest,
        samples=len(records),
        classes=list(source.classes),
        histogram=histogram,
        image=ImageInfo(
            **{setting: entries[setting] for setting in image_settings},
            copied=state.copied,
            min_height=int(height.min()),
            max_height=int(height.max()),
            min_width=int(width.min()),
            max_width=int(width.max()),
        ),
        source=entries["source"],
        seed=entries["seed"],
        versions=_library_versions(),
        names=list(source.names) if source.names else None,
        mean=mean,
        std=std,
        page_size=file.page_size,
        pages=page_digests,
        left_out=[{"image": image, "why": why} for image, why in state.left_out],
        defects=dict(sorted(state.defects.items())),
        ignored=source.ignored.manifest_entries(),
        empty_classes=[name for name, count in zip(source.classes, histogram, strict=True) if not count],
        fingerprint=fingerprint.by_class,
    )


def _compare_with_source(manifest: DatasetManifest, args: argparse.Namespace) -> str:
    """Compares the images of an existing file with its source; why it could not, or "".

    Raises InputError if they have changed.  A source that is gone cannot be compared, and is not needed any more.
    """
    if manifest.fingerprint is None:
        return "an older version wrote it, which did not record them"
    recipe: Recipe = args.recipe
    try:
        source = args.open_source(**args.without_download).random_subset(recipe.subset, recipe.per_class, recipe.seed)
        found = take_fingerprint(source)
    except (InputError, OSError) as error:
        if _is_unreadable(error, args):
            return str(error).partition(";")[0]  # without the advice
        raise
    changes = describe_changes(source, found, manifest.classes, manifest.fingerprint, args.ignore_times)
    if changes:
        advice = "replace it with --force, or give another --out"
        raise InputError(f"{args.out}: already exists, but {changes}; {advice}")
    return ""


def _is_unreadable(error: BaseException | None, args: argparse.Namespace) -> bool:
    """Whether a source cannot be read at all, rather than having other content than before."""
    sources = [value for key, value in vars(args).items() if isinstance(value, Path) and key != "out"]
    if not all(os.path.exists(path) for path in sources):
        return True
    while error is not None:
        if isinstance(error, OSError | RuntimeError):  # RuntimeError: torchvision's, for files that are missing
            return True
        error = error.__cause__ or error.__context__
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 for an error, 130 if interrupted.  Exits with 2 for usage."""
    args = parse_arguments(arguments)
    out: Path = args.out
    recipe: Recipe = args.recipe
    started = time.monotonic()
    try:
        if out.is_dir():
            raise InputError(f"{out}: is a folder; give the name of the file to write")
        if args.force:
            check_replaceable(out)
            remove_unfinished_file(link_target(out))
        written = None if args.force else find_written(out, recipe)
        if written:
            why_not = _compare_with_source(written, args)
            remove_unfinished_file(link_target(out))
            print(
                f"already written: {printable(out)}"
                + (f" (its images were not compared: {why_not})" if why_not else "")
            )
            return 0
        manifest = write(args.open_source(), out, recipe, args.workers)
    except InputError as error:
        _report_error(str(error), error, args)
    except OSError as error:
        why = error.strerror or error
        _report_error(f"{out}: cannot be written: {why}; fix this or give another --out", error, args)
    except WorkerKilledError as error:
        why = "a worker process was killed; if memory ran out, use fewer --workers"
        _report_error(f"{out}: was not written: {why}", error, args)
    except KeyboardInterrupt as error:
        _report_error(f"{out}: was not written: interrupted", error, args)
        return 130
    else:
        print(summarize("wrote", out, manifest, time.monotonic() - started))
        return 0
    return 1


def _report_error(message: str, error: BaseException, args: argparse.Namespace) -> None:
    """Prints what is wrong, and how to resume if the unfinished file is kept."""
    notes = getattr(error, "__notes__", [])
    if notes and args.force and args.out.exists():  # it can never be resumed: `out` is in the way without --force
        remove_unfinished_file(link_target(args.out))
        notes = []
    _print_message(
        "; ".join([f"error: {printable(message)}", *notes]) + " without --force" * bool(notes and args.force)
    )


def _print_message(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handle SIGTERM as Ctrl-C: clean up and exit
    run_command(main, keep_going=True)
