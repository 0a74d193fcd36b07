"""Write images into one .beton file that FFCV's Loader reads, with a manifest beside it.

    python -m data_prep.write_beton imagefolder PATH --out data/train.beton
    python -m data_prep.write_beton ilsvrc ILSVRC2012_img_train.tar --out data/imagenet/train.beton
    python -m data_prep.write_beton ilsvrc ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz --out ...
    python -m data_prep.write_beton kaggle PATH --split train --out data/imagenet/train.beton
    python -m data_prep.write_beton fashion-mnist --split train --out data/fashion-mnist/train.beton

Worker processes decode and encode; one process writes, in order.  So the bytes do not depend on the number of workers,
and the death of a worker is noticed; FFCV's writer would wait for it for ever.  A command that was ended, however that
was, goes on where it was when it is given again; `--force` starts over.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.beton_writer import BetonWriter
from data_prep.digests import digests
from data_prep.encode import WorkerKilledError, encoded, mean_and_std, workers
from data_prep.journal import Journal
from data_prep.options import parsed
from data_prep.progress import progress
from data_prep.publish import already_there, claimed, publish, remove_leftovers
from data_prep.recipe import Recipe
from data_prep.sources.source import InputError, Source
from vit.data.dataset_manifest import FORMAT, DatasetManifest, ImageInfo, manifest_path

MIB = 1 << 20


def _write_file(
    temporary: Path, source: Source, order: NDArray[np.int64], recipe: Recipe, processes: int
) -> BetonWriter:
    """Write the samples named by `order` at `temporary`, or go on with them where an earlier command was ended."""
    import cv2

    # A sample must fit into one page, and a JPEG may be larger than its pixels.
    page_size = max(8 * MIB, 1 << (2 * recipe.largest_image).bit_length())
    file = BetonWriter(temporary, len(order), page_size)
    identity = recipe.recorded() | _versions() | {"opencv": cv2.__version__, "images": source.fingerprint()}
    cv2.setNumThreads(1)  # each worker has a core
    with file.file, Journal(temporary, file, identity) as journal:
        why = journal.resume(allow_left_out=recipe.on_bad == "skip")
        tally = file.tally
        if why:
            _say(f"starting over: {why}")
        if tally.asked:
            _say(f"going on after {tally.asked:,} of {len(order):,} images")
        rest, chunk = order[tally.asked :], min(64, max(1, 16 * MIB // recipe.largest_image))
        with workers(processes, source, recipe) as pipes, progress(len(order), before=tally.asked) as advance:
            for part in encoded(pipes, rest, chunk):
                file.append(part.rows, source.labels[part.samples], part.contents)
                tally.histogram += part.histogram
                tally.copied += part.copied
                tally.left_out += part.left_out
                tally.asked += len(part.samples) + len(part.left_out)
                journal.keep()
                advance(len(part.samples) + len(part.left_out))
        if not tally.stored:
            raise InputError(f"none of the images can be used: {': '.join(tally.left_out[0])}")
        journal.settle()
        file.finish()
    return file


def _versions() -> dict[str, str]:
    return {library: version(library) for library in ("ffcv", "numpy", "pillow", "torchvision")}


def write(source: Source, out: Path, recipe: Recipe, processes: int) -> DatasetManifest:
    """Write `source` to `out` and its manifest beside it, in place of older ones, or go on with what was begun so.

    `processes` workers encode.  On a failure, what is written stays beside `out` for the next call, and a note on the
    error says how much.  Raises InputError for an image or label that cannot be used, OSError for a full disk,
    WorkerKilledError if a worker was killed.
    """
    classes = len(source.classes)
    for wrong in np.flatnonzero((source.labels < 0) | (source.labels >= classes))[:1].tolist():
        found = f"the label of sample {wrong} is {source.labels[wrong]}"
        raise InputError(f"{source.describe(wrong)}: {found}, which is not in 0 to {classes - 1}; mend it")
    source = source.drawn(recipe.subset, recipe.per_class, recipe.seed)
    order = recipe.order(len(source.labels))
    out.parent.mkdir(parents=True, exist_ok=True)
    with claimed(out) as temporary:
        file = _write_file(temporary, source, order, recipe, processes)
        manifest = _described(out.name, temporary, source, recipe, file)
        publish(temporary, out, manifest)
    return manifest


def _described(name: str, path: Path, source: Source, recipe: Recipe, file: BetonWriter) -> DatasetManifest:
    """The manifest of the file at `path`, which is to be called `name`."""
    recorded: dict[str, Any] = recipe.recorded()
    tally, samples = file.tally, file.samples[: file.tally.stored]
    sha256, pages = digests(path, file.page_size)  # of what is on disk: its head, which comes first, was written last
    mean, std = mean_and_std(tally.histogram)
    height, width = samples["image"]["height"], samples["image"]["width"]
    settings = ("mode", "max_resolution", "quality", "reencode", "compress_probability", "compress_seed")
    return DatasetManifest(
        format=FORMAT,
        file=name,
        bytes=path.stat().st_size,
        sha256=sha256,
        samples=len(samples),
        classes=list(source.classes),
        histogram=np.bincount(samples["label"], minlength=len(source.classes)).tolist(),
        image=ImageInfo(
            **{setting: recorded[setting] for setting in settings},
            copied=tally.copied,
            min_height=int(height.min()),
            max_height=int(height.max()),
            min_width=int(width.min()),
            max_width=int(width.max()),
        ),
        source=recorded["source"],
        seed=recorded["seed"],
        versions=_versions(),
        names=list(source.names) if source.names else None,
        mean=mean,
        std=std,
        page_size=file.page_size,
        pages=pages,
        left_out=[{"image": image, "why": why} for image, why in tally.left_out],
    )


def _summary(out: Path, manifest: DatasetManifest, seconds: float) -> str:
    image, left_out = manifest.image, manifest.left_out
    sizes = f"{image.min_width} to {image.max_width} x {image.min_height} to {image.max_height} pixels"
    if image.min_width == image.max_width and image.min_height == image.max_height:
        sizes = f"{image.max_width} x {image.max_height} pixels"
    classes = len(manifest.classes)
    more = f"  {image.copied:,} JPEGs copied as they were\n" if image.copied else ""
    more += f"  {len(left_out):,} left out, the first: {': '.join(left_out[0].values())}\n" if left_out else ""
    return (
        f"wrote {out}: {manifest.samples:,} samples, {sizes}, {image.mode}, {manifest.bytes / 1e6:,.1f} MB\n"
        f"  {classes} classes of {min(manifest.histogram):,} to {max(manifest.histogram):,} samples\n{more}"
        f"  in {seconds:.1f} s, described in {manifest_path(out).name}\n"
        f"next: name it as data.train or data.val in a run's config, with model.num_classes {classes}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 for bad input, 130 if interrupted.  Leaves with 2 for usage."""
    args = parsed(arguments)
    out: Path = args.out
    recipe: Recipe = args.recipe
    started = time.monotonic()
    try:
        if out.is_dir():
            raise InputError(f"{out}: is a folder; give the name of the file to write")
        if args.force:
            remove_leftovers(out)
        elif already_there(out, recipe):
            remove_leftovers(out)
            print(f"already there: {out}")
            return 0
        manifest = write(args.images(), out, recipe, args.workers)
    except InputError as error:
        _failed(str(error), error, args)
    except OSError as error:
        why = error.strerror or error
        _failed(f"{out}: cannot be written: {why}; mend that or give another --out", error, args)
    except WorkerKilledError as error:
        why = "a worker process was killed; if memory ran out, try fewer --workers"
        _failed(f"{out}: not written, {why}", error, args)
    except KeyboardInterrupt as error:
        _failed(f"{out}: not written, interrupted", error, args)
        return 130
    else:
        print(_summary(out, manifest, time.monotonic() - started))
        return 0
    return 1


def _failed(message: str, error: BaseException, args: argparse.Namespace) -> None:
    """Says what is wrong, and how much of the work is kept."""
    notes = getattr(error, "__notes__", [])
    if notes and args.force and args.out.exists():  # without --force it would be refused, with it it starts over
        remove_leftovers(args.out)
        notes = []
    _say("; ".join([f"error: {message}", *notes]) + " without --force" * bool(notes and args.force))


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: clean up, then end
    sys.exit(main())
