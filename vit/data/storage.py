"""Where the bytes of a `.beton` come from: the page cache, reads of one's own, or memory that a node's ranks share."""

import mmap
import os
import socket
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import psutil
import torch.distributed as dist
from numpy.typing import NDArray

from vit.distributed.world import World

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Cache = Literal["os", "process", "memory"]

_CHUNK = 64 << 20  # bytes of one read into shared memory
_HINT = 128 << 10  # bytes of one hint: Linux obeys no longer one than the disk's read-ahead, which is this by default


class Storage(Protocol):
    """Gives pieces of a file; may be asked by many threads at once."""

    def fetch(self, offsets: Ints, sizes: Ints) -> tuple[Bytes, Ints]:
        """Memory that holds the pieces, and where in it they begin: 2 x (B,) -> (bytes,) and (B,)."""

    def will_need(self, offset: int, size: int) -> None:
        """A piece that will be asked for soon: a hint, which costs the caller no waiting."""


class Mapped:
    """A file mapped into memory: what is asked for is read by page faults and stays in the page cache.

    No copies; but a disk that fails, or a file that is cut short meanwhile, kills the process with SIGBUS.
    """

    def __init__(self, path: Path) -> None:
        self._file = _opened(self, path)
        self._memory = np.memmap(path, np.uint8, "r")

    def fetch(self, offsets: Ints, sizes: Ints) -> tuple[Bytes, Ints]:
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
            self.will_need(offset, size)  # all at once, where page faults would read 4 kB after 4 kB
        return self._memory, offsets

    def will_need(self, offset: int, size: int) -> None:
        _will_need(self._file, offset, size)


class Read:
    """A file read piece by piece: for network file systems, whose failures then are errors with a name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _opened(self, path)

    def fetch(self, offsets: Ints, sizes: Ints) -> tuple[Bytes, Ints]:
        """Raises OSError that names the file and the place."""
        memory = np.empty(int(sizes.sum()), np.uint8)
        starts = np.cumsum(sizes) - sizes
        for start, offset, size in zip(starts.tolist(), offsets.tolist(), sizes.tolist(), strict=True):
            read_into(self._path, self._file, offset, memory[start : start + size])
        return memory, starts

    def will_need(self, offset: int, size: int) -> None:
        _will_need(self._file, offset, size)


class Shared:
    """A file held in memory, once for all ranks of a node; it goes when the last of them goes, however they end."""

    def __init__(self, memory: Bytes) -> None:
        self._memory = memory

    def fetch(self, offsets: Ints, sizes: Ints) -> tuple[Bytes, Ints]:
        return self._memory, offsets

    def will_need(self, offset: int, size: int) -> None:
        pass


def _opened(owner: object, path: Path) -> int:
    """A descriptor that is closed when its owner goes."""
    descriptor = os.open(path, os.O_RDONLY)
    weakref.finalize(owner, os.close, descriptor)
    return descriptor


def _will_need(file: int, offset: int, size: int) -> None:
    for start in range(offset, offset + size, _HINT):
        os.posix_fadvise(file, start, min(_HINT, offset + size - start), os.POSIX_FADV_WILLNEED)


def store(path: Path, cache: Cache, world: World) -> Storage:
    """The storage of a file.  For `memory`, every rank must call this: the first one of each node reads the file.

    Raises ValueError if memory does not suffice, OSError that names the file and the place.
    """
    if cache == "memory":
        return Shared(_shared(path, world))
    return Mapped(path) if cache == "os" else Read(path)


def free_memory() -> int:
    """Bytes that this process may still use, its page cache included: the machine's, or what Slurm's limit leaves."""
    return min([psutil.virtual_memory().available, *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    """What each control group above this process leaves of its limit."""
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
            except OSError:  # the root has no limit, and a container may not see its own group
                continue
            if limit != "max":
                kind = "total_" if controllers else ""
                yield int(limit) - int(used) + sum(int(cache[f"{kind}{age}_file"]) for age in ("active", "inactive"))


def _shared(path: Path, world: World) -> Bytes:
    """The whole file in memory, read by the node's first rank; the others map what it has read."""
    size = path.stat().st_size
    problem, descriptor = "", -1
    if world.local_rank == 0:
        if (free := free_memory()) < size:
            problem = f"data.cache: memory needs {size / 1e9:.1f} GB for {path}, and {free / 1e9:.1f} GB are free"
        else:
            descriptor = _filled(path, size)
    mine = (socket.gethostname(), world.local_rank, os.getpid(), descriptor, problem)
    everyone = [mine] * world.size
    if world.size > 1:
        dist.all_gather_object(everyone, mine)
    if problem := next((problem for *_, problem in everyone if problem), ""):
        raise ValueError(f"{problem}; data.cache: os needs none of its own")
    host = socket.gethostname()
    _, _, owner, there, _ = next(each for each in everyone if each[:2] == (host, 0))
    # Opened anew, the memory outlives the rank that filled it; no name in a file system is left behind.
    with open(f"/proc/{owner}/fd/{there}", "rb", buffering=0) as file:
        memory = np.frombuffer(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ), np.uint8)
    if world.size > 1:
        dist.barrier()  # before the first one closes it
    if descriptor >= 0:
        os.close(descriptor)
    return memory


def _filled(path: Path, size: int) -> int:
    """A descriptor of anonymous memory that holds the file."""
    descriptor = os.memfd_create(path.name)
    os.ftruncate(descriptor, size)
    memory = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(4) as pool:  # one stream does not fill a Lustre
        starts = range(0, size, _CHUNK)
        list(pool.map(lambda start: read_into(path, file.fileno(), start, memory[start : start + _CHUNK]), starts))
    return descriptor


def read_into(path: Path, file: int, offset: int, out: Bytes) -> None:
    """Fills `out` from the file's byte `offset` on.  Raises OSError that names the file and the place."""
    done = 0
    while done < len(out):
        try:
            count = os.preadv(file, [out[done:].data], offset + done)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} at byte {offset + done:,}", str(path)) from None
        if count == 0:
            raise OSError(0, f"the file ends at byte {offset + done:,}, and has been cut short", str(path))
        done += count
