"""Write images into one .beton file that FFCV's Loader reads, with a manifest beside it.

    python -m data_prep.write_beton imagefolder PATH --out data/train.beton
    python -m data_prep.write_beton ilsvrc ILSVRC2012_img_train.tar --out data/imagenet/train.beton
    python -m data_prep.write_beton ilsvrc ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz --out ...
    python -m data_prep.write_beton kaggle PATH --split train --out data/imagenet/train.beton
    python -m data_prep.write_beton fashion-mnist --split train --out data/fashion-mnist/train.beton

Worker processes decode and encode; one process writes, in order, through the parts of FFCV's own writer.  So the bytes
do not depend on the number of workers, and the death of a worker is noticed; FFCV's writer would wait for it for ever.
"""

import dataclasses
import errno
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.encode import WorkerKilledError, encoded, ffcv_field, mean_and_std, workers
from data_prep.manifest import (
    FORMAT,
    ImageInfo,
    Manifest,
    already_there,
    claimed,
    digests,
    manifest_path,
    publish,
    remove_leftovers,
)
from data_prep.options import parsed
from data_prep.progress import progress
from data_prep.recipe import Recipe
from data_prep.sources import InputError, Source

MIB = 1 << 20


def _prepared(path: Path, samples: int, recipe: Recipe) -> Any:
    """FFCV's writer, with the head of the file at `path` written and `metadata_sm.buf` to be filled, (samples,)."""
    from ffcv.fields import IntField
    from ffcv.writer import DatasetWriter

    # A sample must fit into one page, and a JPEG may be larger than its pixels.
    page_size = max(8 * MIB, 1 << (2 * recipe.largest_image).bit_length())
    fields = {"image": ffcv_field("jpg", recipe.quality), "label": IntField()}
    writer = DatasetWriter(str(path), fields, page_size)
    writer.num_samples = samples
    writer.prepare()
    # FFCV shares the metadata with its workers.  Ours need none of it, and /dev/shm may be small.
    writer.metadata_sm.close()
    writer.metadata_sm.unlink()
    writer.metadata_sm = SimpleNamespace(buf=np.zeros(samples, writer.metadata_type))
    return writer


@dataclass
class _Written:
    """What came to lie in a file."""

    images: NDArray[Any]  # FFCV's metadata of the images, (samples,)
    labels: NDArray[np.int64]  # (samples,)
    page_size: int  # bytes
    histogram: NDArray[np.int64]  # of the pixels' values, (3, 256)
    copied: int = 0  # images
    left_out: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # which and why


def _write_file(path: Path, source: Source, order: NDArray[np.int64], recipe: Recipe, processes: int) -> _Written:
    """Write the samples named by `order` at `path`."""
    import cv2
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.types import ALLOC_TABLE_TYPE

    writer = _prepared(path, len(order), recipe)
    images, labels = (writer.metadata_sm.buf[name] for name in writer.metadata_type.names)
    written = _Written(images, labels, writer.page_size, np.zeros((3, 256), np.int64))
    cv2.setNumThreads(1)  # each worker has a core
    black = np.zeros((1, 1, 3), np.uint8)
    for mode in ("jpg", "raw"):  # numba compiles, once for all
        ffcv_field(mode, recipe.quality).encode(images[:1].copy(), black, lambda size: (0, np.empty(size, np.uint8)))
    allocator = MemoryAllocator(str(path), writer.data_region_start, writer.page_size)
    allocator.__enter__()  # no `with`: FFCV's __exit__ flushes, and after an interrupt that may wait for ever
    done = 0
    try:
        with workers(processes, source, recipe) as pipes, progress(len(order)) as advance:
            chunk = min(64, max(1, 16 * MIB // recipe.largest_image))
            for part in encoded(pipes, order, chunk):
                for row, sample, content in zip(part.rows, part.samples, part.contents, strict=True):
                    allocator.set_current_sample(done)
                    row["data_ptr"], room = allocator.malloc(len(content))
                    room[:] = np.frombuffer(content, np.uint8)
                    images[done], labels[done] = row, source.labels[sample]
                    done += 1
                written.histogram += part.histogram
                written.copied += part.copied
                written.left_out += part.left_out
                advance(len(part.samples) + len(part.left_out))
        if not done:
            raise InputError(f"none of the images can be used: {': '.join(written.left_out[0])}")
        allocator.flush_page()
    finally:
        allocator.fp.close()
    # What was left out leaves a gap behind the metadata, which no reader looks at.
    writer.metadata_sm.buf = writer.metadata_sm.buf[:done]
    writer.header["num_samples"] = done
    writer.finalize([allocator.allocations])
    # A disk that is almost full takes a part of a page, and FFCV does not look.
    pages = allocator.next_page_written.value * writer.page_size
    if path.stat().st_size != allocator.offset + pages + ALLOC_TABLE_TYPE.itemsize * done:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    written.images, written.labels = images[:done], labels[:done]
    return written


def write(source: Source, out: Path, recipe: Recipe, processes: int) -> Manifest:
    """Write `source` to `out` and its manifest beside it, in place of older ones; nothing of it stays on a failure.

    `processes` workers encode.  Raises InputError for an image or label that cannot be used, OSError for a full disk,
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
        written = _write_file(temporary, source, order, recipe, processes)
        manifest = _described(out.name, temporary, source, recipe, written)
        publish(temporary, out, manifest)
    return manifest


def _described(name: str, path: Path, source: Source, recipe: Recipe, written: _Written) -> Manifest:
    """The manifest of the file at `path`, which is to be called `name`."""
    recorded: dict[str, Any] = recipe.recorded()
    sha256, pages = digests(path, written.page_size)
    mean, std = mean_and_std(written.histogram)
    height, width = written.images["height"], written.images["width"]
    settings = ("mode", "max_resolution", "quality", "reencode", "compress_probability", "compress_seed")
    return Manifest(
        format=FORMAT,
        file=name,
        bytes=path.stat().st_size,
        sha256=sha256,
        samples=len(written.labels),
        classes=list(source.classes),
        histogram=np.bincount(written.labels, minlength=len(source.classes)).tolist(),
        image=ImageInfo(
            **{setting: recorded[setting] for setting in settings},
            copied=written.copied,
            min_height=int(height.min()),
            max_height=int(height.max()),
            min_width=int(width.min()),
            max_width=int(width.max()),
        ),
        source=recorded["source"],
        seed=recorded["seed"],
        versions={library: version(library) for library in ("ffcv", "numpy", "pillow", "torchvision")},
        names=list(source.names) if source.names else None,
        mean=mean,
        std=std,
        page_size=written.page_size,
        pages=pages,
        left_out=[{"image": image, "why": why} for image, why in written.left_out],
    )


def _summary(out: Path, manifest: Manifest, seconds: float) -> str:
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
        remove_leftovers(out)
        if not args.force and already_there(out, recipe):
            print(f"already there: {out}")
            return 0
        manifest = write(args.images(), out, recipe, args.workers)
    except InputError as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{out}: cannot be written: {error.strerror or error}; mend that or give another --out")
    except WorkerKilledError:
        return _failed(f"{out}: not written, a worker process was killed; if memory ran out, try fewer --workers")
    except KeyboardInterrupt:
        _failed(f"{out}: not written, interrupted")
        return 130
    print(_summary(out, manifest, time.monotonic() - started))
    return 0


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: clean up, then end
    sys.exit(main())
