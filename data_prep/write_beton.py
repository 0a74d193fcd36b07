"""Write images into one .beton file that FFCV's Loader reads, with a manifest beside it.

    python -m data_prep.write_beton imagefolder PATH --out data/train.beton
    python -m data_prep.write_beton fashion-mnist --split train --out data/fashion-mnist/train.beton

Worker processes decode and encode; one process writes, in order, through the parts of FFCV's own writer.  So the bytes
do not depend on the number of workers, and the death of a worker is noticed; FFCV's writer would wait for it for ever.
"""

import argparse
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.encode import WorkerKilledError, encoded, workers
from data_prep.manifest import (
    FORMAT,
    ImageInfo,
    Manifest,
    Recipe,
    already_there,
    claimed,
    manifest_path,
    publish,
    remove_leftovers,
    sha256,
)
from data_prep.sources import InputError, Source, fashion_mnist, image_folder

MIB = 1 << 20


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """A function to call with the number of images just done: a bar on a terminal, else a line every half minute."""
    if sys.stderr.isatty():
        with tqdm(total=total, unit=" images") as bar:
            yield bar.update
        return
    done, start = 0, time.monotonic()
    told = start

    def update(images: int) -> None:
        nonlocal done, told
        done += images
        now = time.monotonic()
        if now - told >= 30:
            told, rate = now, done / (now - start)
            line = f"{done:,} of {total:,} images, {rate:,.0f} images/s, {(total - done) / rate:,.0f} s left"
            print(line, file=sys.stderr, flush=True)

    yield update


def _prepared(path: Path, samples: int, recipe: Recipe) -> Any:
    """FFCV's writer, with the head of the file at `path` written and `metadata_sm.buf` to be filled, (samples,)."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    image = RGBImageField(recipe.mode, recipe.max_resolution, jpeg_quality=recipe.quality)
    # A sample must fit into one page, and a JPEG may be larger than its pixels.
    page_size = max(8 * MIB, 1 << (2 * recipe.largest_image).bit_length())
    writer = DatasetWriter(str(path), {"image": image, "label": IntField()}, page_size)
    writer.num_samples = samples
    writer.prepare()
    # FFCV shares the metadata with its workers.  Ours need none of it, and /dev/shm may be small.
    writer.metadata_sm.close()
    writer.metadata_sm.unlink()
    writer.metadata_sm = SimpleNamespace(buf=np.zeros(samples, writer.metadata_type))
    return writer


def _write_file(path: Path, source: Source, order: NDArray[np.int64], recipe: Recipe, processes: int) -> NDArray[Any]:
    """Write the samples named by `order` at `path`; return FFCV's metadata of their images, (samples,)."""
    import cv2
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.types import ALLOC_TABLE_TYPE

    writer = _prepared(path, len(order), recipe)
    field = writer.fields["image"]
    images: NDArray[Any]
    images, labels = (writer.metadata_sm.buf[name] for name in writer.metadata_type.names)
    labels[:] = source.labels[order]

    cv2.setNumThreads(1)  # each worker has a core
    black = np.zeros((1, 1, 3), np.uint8)
    field.encode(images[:1].copy(), black, lambda size: (0, np.empty(size, np.uint8)))  # numba compiles, once for all
    allocator = MemoryAllocator(str(path), writer.data_region_start, writer.page_size)
    allocator.__enter__()  # no `with`: FFCV's __exit__ flushes, and after an interrupt that may wait for ever
    try:
        with workers(processes, source, field) as pipes, _progress(len(order)) as progress:
            chunk = min(64, max(1, 16 * MIB // recipe.largest_image))
            done = 0
            for rows, stored in encoded(pipes, order, chunk):
                for row, content in zip(rows, stored, strict=True):
                    allocator.set_current_sample(done)
                    row["data_ptr"], room = allocator.malloc(len(content))
                    room[:] = np.frombuffer(content, np.uint8)
                    images[done] = row
                    done += 1
                progress(len(rows))
        allocator.flush_page()
    finally:
        allocator.fp.close()
    writer.finalize([allocator.allocations])
    # A disk that is almost full takes a part of a page, and FFCV does not look.
    pages = allocator.next_page_written.value * writer.page_size
    if path.stat().st_size != allocator.offset + pages + ALLOC_TABLE_TYPE.itemsize * len(order):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return images


def write(source: Source, out: Path, recipe: Recipe, processes: int) -> Manifest:
    """Write `source` to `out` and its manifest beside it, in place of older ones; nothing of it stays on a failure.

    `processes` workers encode.  Raises InputError for an image or label that cannot be used, OSError for a full disk,
    WorkerKilledError if a worker was killed.
    """
    classes = len(source.classes)
    for wrong in np.flatnonzero((source.labels < 0) | (source.labels >= classes))[:1].tolist():
        found = f"the label of sample {wrong} is {source.labels[wrong]}"
        raise InputError(f"{source.describe(wrong)}: {found}, which is not in 0 to {classes - 1}; mend it")
    order = recipe.order(len(source.labels))
    out.parent.mkdir(parents=True, exist_ok=True)
    with claimed(out) as temporary:
        images = _write_file(temporary, source, order, recipe, processes)
        recorded = recipe.recorded()
        manifest = Manifest(
            format=FORMAT,
            file=out.name,
            bytes=temporary.stat().st_size,
            sha256=sha256(temporary),
            samples=len(order),
            classes=list(source.classes),
            histogram=np.bincount(source.labels[order], minlength=classes).tolist(),
            image=ImageInfo(
                mode=recipe.mode,
                max_resolution=recipe.max_resolution,
                quality=recipe.quality if recipe.mode == "jpg" else None,
                min_height=int(images["height"].min()),
                max_height=int(images["height"].max()),
                min_width=int(images["width"].min()),
                max_width=int(images["width"].max()),
            ),
            source=str(recorded["source"]),
            seed=recipe.seed,
            versions={name: version(name) for name in ("ffcv", "numpy", "pillow", "torchvision")},
        )
        publish(temporary, out, manifest)
    return manifest


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .beton file to write")
    common.add_argument("--max-resolution", type=int, default=500, metavar="PIXELS", help="longest side (500)")
    common.add_argument("--quality", type=int, default=90, help="of the JPEGs, 1 to 100 (90)")
    common.add_argument("--seed", type=int, default=0, help="of the order of the samples in the file (0)")
    common.add_argument("--no-shuffle", action="store_true", help="keep the source's order")
    common.add_argument("--limit", type=int, metavar="N", help="only the first N samples of that order")
    common.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (all cores)")
    common.add_argument("--force", action="store_true", help="replace a file that is there")
    parser = argparse.ArgumentParser(prog="python -m data_prep.write_beton", description="Write an FFCV .beton file.")
    sources = parser.add_subparsers(dest="kind", required=True, metavar="SOURCE")
    folder = sources.add_parser("imagefolder", parents=[common], help="a folder that holds one folder for each class")
    folder.add_argument("path", type=Path, metavar="PATH")
    folder.add_argument("--mode", choices=("jpg", "raw"), default="jpg", help="how pixels are stored (jpg)")
    fashion = sources.add_parser("fashion-mnist", parents=[common], help="70,000 grey 28x28 images of clothes")
    fashion.add_argument("--split", choices=("train", "val"), required=True, help="60,000 or 10,000 images")
    fashion.add_argument("--root", type=Path, default=Path("data"), help="where to download, if need be (data)")
    fashion.add_argument("--mode", choices=("jpg", "raw"), default="raw", help="how pixels are stored (raw)")
    return parser


def _summary(out: Path, manifest: Manifest, seconds: float) -> str:
    image = manifest.image
    sizes = f"{image.min_width} to {image.max_width} x {image.min_height} to {image.max_height} pixels"
    if image.min_width == image.max_width and image.min_height == image.max_height:
        sizes = f"{image.max_width} x {image.max_height} pixels"
    classes = len(manifest.classes)
    return (
        f"wrote {out}: {manifest.samples:,} samples, {sizes}, {image.mode}, {manifest.bytes / 1e6:,.1f} MB\n"
        f"  {classes} classes of {min(manifest.histogram):,} to {max(manifest.histogram):,} samples\n"
        f"  in {seconds:.1f} s, described in {manifest_path(out).name}\n"
        f"next: name it as data.train or data.val in a run's config, with model.num_classes {classes}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 for bad input, 130 if interrupted.  Leaves with 2 for usage."""
    parser = _parser()
    args = parser.parse_args(arguments)
    out: Path = args.out
    folder = args.kind == "imagefolder"
    try:
        if args.workers < 1:
            raise ValueError(f"workers must be at least 1 process, not {args.workers}")
        recipe = Recipe(
            source=f"imagefolder {os.path.abspath(args.path)}" if folder else f"fashion-mnist {args.split}",
            mode=args.mode,
            max_resolution=args.max_resolution,
            quality=args.quality,
            seed=None if args.no_shuffle else args.seed,
            limit=args.limit,
        )
    except ValueError as error:
        parser.error(str(error))
    started = time.monotonic()
    try:
        if out.is_dir():
            raise InputError(f"{out}: is a folder; give the name of the file to write")
        remove_leftovers(out)
        if not args.force and already_there(out, recipe):
            print(f"already there: {out}")
            return 0
        source = image_folder(args.path) if folder else fashion_mnist(args.split, args.root)
        manifest = write(source, out, recipe, args.workers)
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
