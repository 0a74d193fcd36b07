"""Images to the bytes that FFCV stores, in worker processes, in order.

Each worker has a pipe of its own, of which no other process holds the worker's end: if it is killed, even while it
sends, the pipe ends.  (Killed while it sends, a worker of concurrent.futures leaves the others waiting for ever.)
"""

import multiprocessing
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import signals_held_back
from data_prep.sources import InputError, Pixels, Source, decode

# Samples as FFCV stores them: rows of its metadata (samples,), without pointers yet, and the bytes of each.
Encoded = tuple[NDArray[Any], list[bytes]]
Pipe: TypeAlias = "Connection[Any, Any]"


class WorkerKilledError(RuntimeError):
    """A worker process ended unasked: someone killed it, or the system did for want of memory."""


@contextmanager
def workers(count: int, source: Source, field: Any) -> Iterator[list[Pipe]]:
    """Pipes to `count` processes that encode samples of `source` by FFCV's `field`; they end with the block.

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
                processes.append(context.Process(target=_work, args=(theirs, pipes, source, field), daemon=True))
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
    """The samples named by `order`, encoded by the workers behind `pipes`, in that order, `chunk` at a time.

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


def _work(pipe: Pipe, foreign: Sequence[Pipe], source: Source, field: Any) -> None:
    warnings.filterwarnings("ignore", module="PIL")  # what Pillow can mend, it tells of by warnings
    for each in foreign:
        each.close()  # our parent's ends, which must end with it
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # our parent is gone
        while True:
            indices = pipe.recv()
            try:
                pipe.send(_encode(indices, source, field))
            except InputError as error:
                pipe.send(error)


def _encode(indices: list[int], source: Source, field: Any) -> Encoded:
    rows = np.zeros(len(indices), field.metadata_type)
    stored: list[Pixels] = []

    def malloc(size: int) -> tuple[int, Pixels]:
        stored.append(np.empty(size, np.uint8))
        return 0, stored[-1]

    for row, index in enumerate(indices):
        try:
            field.encode(rows[row : row + 1], decode(source.images[index]), malloc)
        except Exception as error:  # whatever Pillow or OpenCV raises, it is about this image
            why = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{source.describe(index)}: cannot be used: {why}; replace or remove it") from None
    return rows, [each.tobytes() for each in stored]
