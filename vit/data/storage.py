"""Read access to a `.beton` file: through the page cache, by explicit reads, or from memory shared by ranks."""

import mmap
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import psutil
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from vit.config.user_error import UserError
from vit.distributed.world import World
from vit.run.activity import activity
from vit.run.disk_errors import naming

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Cache = Literal["os", "process", "memory"]

_CHUNK = 64 << 20  # bytes per read into shared memory
_STREAMS = 4  # reads at the same time: one stream does not saturate Lustre
_POLL_SECONDS = 0.5
_HINT = 128 << 10  # bytes per read-ahead hint: Linux truncates hints to the disk's read-ahead size, 128 kB by default


class Storage(Protocol):
    """Reads ranges of a file.  Thread-safe."""

    def fetch(self, offsets: Ints, sizes: Ints) -> tuple[Bytes, Ints]:
        """A buffer that contains the ranges, and the start of each range in it: 2 x (B,) -> (bytes,) and (B,)."""

    def will_need(self, offset: int, size: int) -> None:
        """Hints that a range will be fetched soon, without blocking."""


class MappedStorage:
    """`data.cache: os`.  A memory-mapped file: page faults read it, and the page cache keeps it.

    Makes no copies, but an I/O error, or truncating the file while it is in use, kills the process with SIGBUS.
    """

    def __init__(self, path: Path) -> None:
        self._file = _open(self, path)
        with naming(path):
            self._memory = np.memmap(path, np.uint8, "r")

    def fetch(self, offsets: Ints, sizes: Ints) -> tuple[Bytes, Ints]:
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
            self.will_need(offset, size)  # reads the whole range at once; page faults would read 4 kB at a time
        return self._memory, offsets

    def will_need(self, offset: int, size: int) -> None:
        _will_need(self._file, offset, size)


class ReadStorage:
    """`data.cache: process`.  Explicit reads: for network file systems, whose failures then raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(self, path)

    def fetch(self, offsets: Ints, sizes: Ints) -> tuple[Bytes, Ints]:
        """Raises OSError that names the file and the position."""
        memory = np.empty(int(sizes.sum()), np.uint8)
        starts = np.cumsum(sizes) - sizes
        for start, offset, size in zip(starts.tolist(), offsets.tolist(), sizes.tolist(), strict=True):
            read_into(self._path, self._file, offset, memory[start : start + size])
        return memory, starts

    def will_need(self, offset: int, size: int) -> None:
        _will_need(self._file, offset, size)


class MemoryStorage:
    """`data.cache: memory`.  A file held in memory once for all ranks of a node.

    The memory is freed when the last rank ends, however it ends.
    """

    def __init__(self, memory: Bytes) -> None:
        self._memory = memory

    def fetch(self, offsets: Ints, sizes: Ints) -> tuple[Bytes, Ints]:
        return self._memory, offsets

    def will_need(self, offset: int, size: int) -> None:
        pass


def _open(owner: object, path: Path) -> int:
    """A file descriptor that is closed when its owner is garbage-collected."""
    descriptor = os.open(path, os.O_RDONLY)
    weakref.finalize(owner, os.close, descriptor)
    return descriptor


def _will_need(file: int, offset: int, size: int) -> None:
    for start in range(offset, offset + size, _HINT):
        os.posix_fadvise(file, start, min(_HINT, offset + size - start), os.POSIX_FADV_WILLNEED)


def open_storage(path: Path, cache: Cache, world: World, alive: Callable[[], None] = lambda: None) -> Storage:
    """Opens a file.  For `memory`, every rank must call this; the first rank of each node reads the file.

    `alive` is called whenever a part of the file was read.  Raises UserError if there is not enough memory, OSError
    that names the file and the position.
    """
    if cache == "memory":
        return MemoryStorage(_load_shared(path, world, alive))
    return MappedStorage(path) if cache == "os" else ReadStorage(path)


def free_memory() -> int:
    """Bytes available to this process, including reclaimable page cache; respects cgroup limits, e.g. Slurm's."""
    return min([psutil.virtual_memory().available, *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    """Bytes left under the memory limit of each control group that contains this process."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup", controllers)
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        for folder in (root / group[1:], *(root / group[1:]).parents):
            try:
                limit, used = ((folder / name).read_text().strip() for name in names)
                cache = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
            except OSError:  # the root group has no limit, and a container may not see its own group
                continue
            if limit != "max":
                kind = "total_" if controllers else ""
                yield int(limit) - int(used) + sum(int(cache[f"{kind}{age}_file"]) for age in ("active", "inactive"))


def _load_shared(path: Path, world: World, alive: Callable[[], None]) -> Bytes:
    """The whole file in memory.  The first rank of each node reads it; the others map the same memory."""
    size = path.stat().st_size
    problem, reader = "", None
    if world.local_rank == 0:
        if (free := free_memory()) < size:
            problem = f"data.cache memory needs {size / 1e9:.1f} GB for {path}, but {free / 1e9:.1f} GB are free"
        else:
            reader = _Reader(path, size)
            reader.start()
    with activity(f"reading {path.name} into memory", size, shown=world.rank == 0) as show_progress:
        _wait(reader, world, alive, show_progress)
    descriptor = reader.descriptor() if reader is not None else -1
    mine = (socket.gethostname(), world.local_rank, os.getpid(), descriptor, problem)
    everyone = [mine] * world.size
    if world.size > 1:
        dist.all_gather_object(everyone, mine)
    if problem := next((problem for *_, problem in everyone if problem), ""):
        raise UserError(f"{problem}; use data.cache os")
    host = socket.gethostname()
    _, _, owner, owner_descriptor, _ = next(each for each in everyone if each[:2] == (host, 0))
    # Each rank opens the memory itself, so that it outlives the rank that filled it.  It has no name in a file system
    # that could be left behind.
    with open(f"/proc/{owner}/fd/{owner_descriptor}", "rb", buffering=0) as file:
        memory = np.frombuffer(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ), np.uint8)
    if world.size > 1:
        dist.barrier()  # the first rank may close its descriptor only after all have opened it
    if descriptor >= 0:
        os.close(descriptor)
    return memory


def _wait(
    reader: "_Reader | None", world: World, alive: Callable[[], None], show_progress: Callable[[int], None]
) -> None:
    """Waits until all nodes have read the file, which may take longer than a rank may seem to do nothing."""
    previous = -1
    while True:
        if reader is not None:
            reader.join(_POLL_SECONDS)
        done = reader.done if reader is not None else 0
        flags = torch.tensor([reader is not None and reader.is_alive(), done], dtype=torch.int64)
        if world.size > 1:
            dist.all_reduce(flags)
        unfinished, total = flags.tolist()
        if total != previous:
            previous = total
            alive()
        show_progress(done)
        if not unfinished:
            return


class _Reader(threading.Thread):
    """A thread that reads a file into anonymous memory."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(daemon=True, name="read")
        self.path, self.size = path, size
        self.done = 0  # bytes read so far
        self._descriptor = -1
        self._problem: OSError | None = None

    def run(self) -> None:
        """Reads the file."""
        try:
            self._descriptor = os.memfd_create(self.path.name)
            os.ftruncate(self._descriptor, self.size)
            memory = np.frombuffer(mmap.mmap(self._descriptor, self.size), np.uint8)
            with self.path.open("rb", buffering=0) as file, ThreadPoolExecutor(_STREAMS) as pool:
                starts = range(0, self.size, _CHUNK)
                parts = [
                    pool.submit(read_into, self.path, file.fileno(), start, memory[start : start + _CHUNK])
                    for start in starts
                ]
                for start, part in zip(starts, parts, strict=True):
                    part.result()
                    self.done = min(start + _CHUNK, self.size)
        except OSError as error:
            self._problem = error

    def descriptor(self) -> int:
        """The memory's descriptor, once the thread has ended.  Raises OSError that names the file and the position."""
        if self._problem is not None:
            raise self._problem
        return self._descriptor


def read_into(path: Path, file: int, offset: int, out: Bytes) -> None:
    """Fills `out` from byte `offset` of the file on.  Raises OSError that names the file and the position."""
    done = 0
    while done < len(out):
        try:
            count = os.preadv(file, [out[done:].data], offset + done)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} at byte {offset + done:,}", str(path)) from None
        if count == 0:
            raise OSError(0, f"the file ends at byte {offset + done:,}: it has been truncated", str(path))
        done += count
