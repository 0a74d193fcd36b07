"""Encodes images in worker processes to the bytes that FFCV stores, and returns them in order.

An image is scaled down to the recipe's resolution and stored as a JPEG or as raw pixels.  A JPEG that needs no scaling
is copied byte for byte.

Each worker has its own pipe, and no other process holds the worker's end of it.  So when a worker is killed, even while
it sends a result, its pipe reports end-of-file.  (If a worker of concurrent.futures is killed while it sends a result,
the other workers wait forever.)
"""

import math
import multiprocessing
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from errno import ELOOP, ENOENT
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_prep import jpeg
from data_prep.opencv import opencv, opencv_version
from data_prep.publish import block_signals
from data_prep.recipe import Recipe
from data_prep.sources.source import InputError, Pixels, Source, read_image_file, to_rgb
from vit.config.user_error import UserError
from vit.data.ffcv_format import IMAGE, JPEG, RAW
from vit.data.image_file import TooManyPixelsError, decode_image, jpeg_defects
from vit.data.native import JpegState, decode_jpeg

Pipe: TypeAlias = "Connection[Any, Any]"


class WorkerKilledError(RuntimeError):
    """A worker process was killed, by a person or by the system because memory ran out."""


@dataclass
class EncodedChunk:
    """S encoded samples of a chunk, and the samples of the chunk that were left out."""

    image_records: NDArray[Any]  # (S,) FFCV's records of images, whose offsets are not set yet
    samples: list[int] = field(default_factory=list)  # (S,) their numbers in the source
    contents: list[bytes] = field(default_factory=list)  # (S,) encoded images
    copied: int = 0  # how many of them are JPEGs copied unchanged
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))  # of all their pixels
    left_out: list[tuple[str, str]] = field(default_factory=list)  # name and reason
    defects: Counter[str] = field(default_factory=Counter)  # encoded samples with each kind of harmless defect


@contextmanager
def start_workers(count: int, source: Source, recipe: Recipe) -> Iterator[list[Pipe]]:
    """Starts `count` processes that encode samples of `source` by `recipe`; yields pipes to them; ends them at exit.

    They are forked, so they copy and import nothing, and they also exit if this process is killed.
    """
    context = multiprocessing.get_context("fork")
    processes = []
    pipes: list[Pipe] = []
    try:
        # An exception raised by a signal handler during a fork would be lost.  Signals stay blocked in the workers:
        # Ctrl-C reaches the whole process group, but this process alone ends the workers.
        with block_signals():
            for _ in range(count):
                parent_end, worker_end = context.Pipe()
                pipes.append(parent_end)
                arguments = worker_end, pipes, source, recipe
                processes.append(context.Process(target=_worker_main, args=arguments, daemon=True))
                processes[-1].start()
                worker_end.close()
        yield pipes
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()  # workers have no state to lose, and may hang in an unresponsive file system
                process.join()
        for pipe in pipes:
            pipe.close()


def encode_in_order(pipes: Sequence[Pipe], order: NDArray[np.int64], chunk_size: int) -> Iterator[EncodedChunk]:
    """Encodes the samples `order` (samples,) with the workers behind `pipes`; yields them in that order, in chunks.

    Raises InputError, which names the image, if one cannot be used, and WorkerKilledError.
    """
    chunks = [order[start : start + chunk_size] for start in range(0, len(order), chunk_size)]
    pending: dict[Pipe, deque[int]] = {pipe: deque() for pipe in pipes}  # chunks sent to each worker, oldest first
    results: dict[int, EncodedChunk | InputError] = {}
    next_to_send = 0
    for current in range(len(chunks)):
        while True:
            # Two chunks per worker, so that it never waits for us; a limit on the total bounds memory.
            for pipe in sorted(pipes, key=lambda each: len(pending[each])) * 2:
                if len(pending[pipe]) < 2 and next_to_send < min(len(chunks), current + 3 * len(pipes)):
                    pending[pipe].append(next_to_send)
                    with _detect_killed_worker():
                        pipe.send(chunks[next_to_send].tolist())
                    next_to_send += 1
            if current in results:
                break
            for ready in wait(pipes):
                assert isinstance(ready, Connection)
                with _detect_killed_worker():
                    result = ready.recv()
                results[pending[ready].popleft()] = result
        result = results.pop(current)
        if isinstance(result, InputError):
            raise result
        yield result


@contextmanager
def _detect_killed_worker() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:  # the other end of the pipe is closed
        raise WorkerKilledError("a worker process was killed") from error


def _worker_main(pipe: Pipe, parent_ends: Sequence[Pipe], source: Source, recipe: Recipe) -> None:
    for each in parent_ends:
        each.close()  # inherited copies, which would keep the pipes open when the parent dies
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while True:
            samples = pipe.recv()
            try:
                pipe.send(_encode_chunk(samples, source, recipe))
            except InputError as error:
                pipe.send(error)


def _encode_chunk(samples: list[int], source: Source, recipe: Recipe) -> EncodedChunk:
    chunk = EncodedChunk(np.zeros(len(samples), IMAGE))
    for sample in samples:
        row = len(chunk.samples)
        try:
            defects: list[str] = []
            record = chunk.image_records[row : row + 1]
            content, pixels, copied = _encode_sample(source, sample, recipe, record, defects)
        except UserError as error:  # OpenCV or every decoder of JPEGs is missing, which concerns no single image
            raise InputError(f"{source.describe(sample)}: {error}") from None
        except Exception as error:  # Pillow and OpenCV raise many types; all of them concern this image
            why = " ".join(str(error).split()) or type(error).__name__
            if recipe.on_bad == "fail" or not is_bad_image(error):
                admit = "admit it with --max-megapixels, " if isinstance(error, TooManyPixelsError) else ""
                advice = f"{admit}replace or remove it, or leave out such images with --on-bad skip"
                if not is_bad_image(error):  # it is not left out by --on-bad skip either
                    advice = "the image may be good: check its permissions, the disk and the memory, and run this again"
                raise InputError(f"{source.describe(sample)}: cannot be used: {why}; {advice}") from None
            chunk.left_out.append((source.describe(sample), why))
            continue
        chunk.samples.append(sample)
        chunk.contents.append(content)
        chunk.copied += copied
        chunk.histogram += channel_histogram(pixels)
        chunk.defects.update(defects)
    chunk.image_records = chunk.image_records[: len(chunk.samples)]
    return chunk


def is_bad_image(error: Exception) -> bool:
    """Whether the image caused the error.  If the disk, the network or memory did, the image may be good."""
    if isinstance(error, OSError):
        return error.errno in (None, ENOENT, ELOOP)  # Pillow's own OSErrors have no errno
    return not isinstance(error, MemoryError)


def _encode_sample(
    source: Source, sample: int, recipe: Recipe, record: NDArray[Any], defects: list[str]
) -> tuple[bytes, Pixels, bool]:
    """Returns the bytes to store, the pixels (before JPEG compression), and whether the bytes are an unchanged copy.

    Fills in `record` (1,), FFCV's record of the image, and `defects`, the kinds of harmless defects in its file.
    """
    image, mode = source.images[sample], recipe.storage_mode(sample)
    content = None if isinstance(image, np.ndarray) else read_image_file(image)
    if content is not None and mode == "jpg" and not recipe.reencode:
        size = jpeg.baseline_size(content, defects)
        # A page has room for twice the largest image; a larger JPEG contains mostly other data.
        if size and max(size) <= recipe.max_resolution and len(content) <= 2 * recipe.max_image_bytes:
            decoded = decode_jpeg(content, *size)
            if decoded.state is JpegState.CLEAN:  # FFCV's decoder reports harmless defects as errors
                record["mode"], record["height"], record["width"] = JPEG, *size
                defects += jpeg_defects(content, decoded)
                return content, decoded.pixels, True
    if isinstance(image, np.ndarray):
        pixels = to_rgb(image)
    else:
        pixels, defects[:] = decode_image(content or b"", recipe.max_megapixels)
    pixels = scale_down(pixels, recipe.max_resolution)
    record["mode"], record["height"], record["width"] = JPEG if mode == "jpg" else RAW, *pixels.shape[:2]
    return jpeg.encode(pixels, recipe.quality) if mode == "jpg" else pixels.tobytes(), pixels, False


def scale_down(pixels: Pixels, max_resolution: int) -> Pixels:
    """Scales an image down until its longer side has `max_resolution` pixels: (H, W, 3) -> (h, w, 3).

    The same computation as in FFCV, except that the shorter side keeps at least one pixel, where FFCV fails.
    """
    height, width = pixels.shape[:2]
    ratio = max_resolution / max(height, width)
    if ratio >= 1:
        return pixels
    size = max(1, int(ratio * width)), max(1, int(ratio * height))
    cv2 = opencv()
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def channel_histogram(pixels: Pixels) -> NDArray[np.int64]:
    """Count of each value in each channel: (H, W, 3) -> (3, 256).  Sums of them are exact in any order."""
    if not opencv_version():
        return np.stack([np.bincount(channel, minlength=256) for channel in pixels.reshape(-1, 3).T])
    cv2 = opencv()
    # OpenCV, several times as fast, counts in float32, exact up to 2**24, the number of pixels of the largest image.
    counts = [cv2.calcHist([pixels], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
    return np.stack(counts).astype(np.int64)


def mean_and_std(histogram: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, scaled to 0 to 1: counts (3, 256) -> (3,) and (3,)."""
    means, stds = [], []
    for counts in histogram.tolist():  # Python's integers do not overflow
        pixels = sum(counts)
        total = sum(value * count for value, count in enumerate(counts))
        squares = sum(value * value * count for value, count in enumerate(counts))
        means.append(total / (255 * pixels))
        stds.append(math.sqrt(pixels * squares - total * total) / (255 * pixels))
    return means, stds
