"""Images to the bytes that FFCV stores, in worker processes, in order.

An image is scaled to the recipe's resolution and stored as a JPEG or as pixels; a JPEG that needs neither is stored as
it is, byte for byte.

Each worker has a pipe of its own, of which no other process holds the worker's end: if it is killed, even while it
sends, the pipe ends.  (Killed while it sends, a worker of concurrent.futures leaves the others waiting for ever.)
"""

import math
import multiprocessing
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from errno import ELOOP, ENOENT
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_prep import jpeg
from data_prep.publish import signals_held_back
from data_prep.recipe import Recipe
from data_prep.sources.source import InputError, Pixels, Source, decode, read, rgb
from vit.data.ffcv_format import IMAGE, JPEG, RAW

Pipe: TypeAlias = "Connection[Any, Any]"


class WorkerKilledError(RuntimeError):
    """A worker process ended unasked: someone killed it, or the system did for want of memory."""


@dataclass
class Encoded:
    """Samples as FFCV stores them, S of them, and what became of the others that were asked for."""

    rows: NDArray[Any]  # (S,) of FFCV's records of images, without their places yet
    samples: list[int] = field(default_factory=list)  # their numbers in the source
    contents: list[bytes] = field(default_factory=list)  # of each
    copied: int = 0  # of them: JPEGs stored as they were
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))  # of all their pixels
    left_out: list[tuple[str, str]] = field(default_factory=list)  # which and why


@contextmanager
def workers(count: int, source: Source, recipe: Recipe) -> Iterator[list[Pipe]]:
    """Pipes to `count` processes that encode samples of `source` by `recipe`; they end with the block.

    They are forked, so that nothing is copied or imported again, and end too if this process is killed.
    """
    context = multiprocessing.get_context("fork")
    processes = []
    pipes: list[Pipe] = []
    try:
        # What a signal handler raises in the middle of a fork is lost.  And Ctrl-C reaches the whole group: the workers
        # are ours to end.
        with signals_held_back():
            for _ in range(count):
                ours, theirs = context.Pipe()
                pipes.append(ours)
                processes.append(context.Process(target=_work, args=(theirs, pipes, source, recipe), daemon=True))
                processes[-1].start()
                theirs.close()
        yield pipes
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()  # they have nothing to lose, and may hang in a file system that does not answer
                process.join()
        for pipe in pipes:
            pipe.close()


def encoded(pipes: Sequence[Pipe], order: NDArray[np.int64], chunk: int) -> Iterator[Encoded]:
    """The samples named by `order` (samples,), encoded by the workers behind `pipes`, in that order, `chunk` at a time.

    Raises InputError that names an image that cannot be used, and WorkerKilledError.
    """
    parts = [order[start : start + chunk] for start in range(0, len(order), chunk)]
    asked: dict[Pipe, deque[int]] = {pipe: deque() for pipe in pipes}  # parts that a worker has yet to answer
    answers: dict[int, Encoded | InputError] = {}
    following = 0
    for wanted in range(len(parts)):
        while True:
            # Two for each worker, so that it never waits for us; a bound on the whole, as memory is one.
            for pipe in sorted(pipes, key=lambda each: len(asked[each])) * 2:
                if len(asked[pipe]) < 2 and following < min(len(parts), wanted + 3 * len(pipes)):
                    asked[pipe].append(following)
                    with _alive():
                        pipe.send(parts[following].tolist())
                    following += 1
            if wanted in answers:
                break
            for ready in wait(pipes):
                assert isinstance(ready, Connection)
                with _alive():
                    answer = ready.recv()
                answers[asked[ready].popleft()] = answer
        answer = answers.pop(wanted)
        if isinstance(answer, InputError):
            raise answer
        yield answer


@contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:  # of a pipe whose other end is gone
        raise WorkerKilledError("a worker process was killed") from error


def _work(pipe: Pipe, foreign: Sequence[Pipe], source: Source, recipe: Recipe) -> None:
    warnings.filterwarnings("ignore", module="PIL")  # what Pillow can mend, it tells of by warnings
    for each in foreign:
        each.close()  # our parent's ends, which must end with it
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # our parent is gone
        while True:
            samples = pipe.recv()
            try:
                pipe.send(_encode(samples, source, recipe))
            except InputError as error:
                pipe.send(error)


def _encode(samples: list[int], source: Source, recipe: Recipe) -> Encoded:
    out = Encoded(np.zeros(len(samples), IMAGE))
    for sample in samples:
        row = len(out.samples)
        try:
            content, pixels, copied = _stored(source, sample, recipe, out.rows[row : row + 1])
        except Exception as error:  # whatever Pillow or OpenCV raises, it is about this image
            why = " ".join(str(error).split()) or type(error).__name__
            if recipe.on_bad == "fail" or not is_bad_image(error):
                advice = "replace or remove it, or leave it out by --on-bad skip"
                raise InputError(f"{source.describe(sample)}: cannot be used: {why}; {advice}") from None
            out.left_out.append((source.describe(sample), why))
            continue
        out.samples.append(sample)
        out.contents.append(content)
        out.copied += copied
        out.histogram += histogram(pixels)
    out.rows = out.rows[: len(out.samples)]
    return out


def is_bad_image(error: Exception) -> bool:
    """Whether an image is to blame; else disk, network or memory fail, and a good image would be left out."""
    if isinstance(error, OSError):
        return error.errno in (None, ENOENT, ELOOP)  # Pillow's have no number
    return not isinstance(error, MemoryError)


def _stored(source: Source, sample: int, recipe: Recipe, row: NDArray[Any]) -> tuple[bytes, Pixels, bool]:
    """What is stored of a sample, its pixels (before a JPEG loses some), whether it is a copy; fills FFCV's `row`."""
    image, mode = source.images[sample], recipe.stored_as(sample)
    content = None if isinstance(image, np.ndarray) else read(image)
    if content is not None and mode == "jpg" and not recipe.reencode:
        size = jpeg.baseline_size(content)
        # A page holds twice the largest image; a longer JPEG is full of other things.
        if size and max(size) <= recipe.max_resolution and len(content) <= 2 * recipe.largest_image:
            pixels = jpeg.pixels(content, *size)
            if pixels is not None:
                row["mode"], row["height"], row["width"] = JPEG, *size
                return content, pixels, True
    pixels = scaled(rgb(image) if isinstance(image, np.ndarray) else decode(content or b""), recipe.max_resolution)
    row["mode"], row["height"], row["width"] = JPEG if mode == "jpg" else RAW, *pixels.shape[:2]
    return jpeg.encoded(pixels, recipe.quality) if mode == "jpg" else pixels.tobytes(), pixels, False


def scaled(pixels: Pixels, max_resolution: int) -> Pixels:
    """The image with its longer side scaled down to `max_resolution` pixels: (H, W, 3) -> (h, w, 3).

    As FFCV does it, but the shorter side keeps at least one pixel, where FFCV fails.
    """
    import cv2

    height, width = pixels.shape[:2]
    ratio = max_resolution / max(height, width)
    if ratio >= 1:
        return pixels
    size = max(1, int(ratio * width)), max(1, int(ratio * height))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def histogram(pixels: Pixels) -> NDArray[np.int64]:
    """How often each value is in each channel: (H, W, 3) -> (3, 256).  Sums of it are exact in any order."""
    import cv2

    # OpenCV counts in float32, exact up to 2**24: the largest image has as many pixels.
    counts = [cv2.calcHist([pixels], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
    return np.stack(counts).astype(np.int64)


def mean_and_std(histogram: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Of each channel's values over 255, from how often each value is there: (3, 256) -> (3,) and (3,)."""
    means, stds = [], []
    for counts in histogram.tolist():  # Python's integers do not overflow
        pixels = sum(counts)
        total = sum(value * count for value, count in enumerate(counts))
        squares = sum(value * value * count for value, count in enumerate(counts))
        means.append(total / (255 * pixels))
        stds.append(math.sqrt(pixels * squares - total * total) / (255 * pixels))
    return means, stds
