"""Copies the data sets to a node's own disk, once for all its ranks and for all attempts that come there.

FOLDER/vit-data-USER/DIGEST/train.beton        whole, under its final name; DIGEST is that of its bytes
FOLDER/vit-data-USER/DIGEST/train.beton.tmp    on its way: the pages that are there already are not copied again
"""

import fcntl
import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from vit.config.schema import Config
from vit.data.dataset_manifest import DatasetManifest, manifest_path, read_dataset_manifest
from vit.data.decode import DamagedDataError
from vit.data.storage import Bytes, read_into
from vit.distributed.world import World
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.run.progress import show

LOOK_SECONDS = 0.5
TELL_SECONDS = 10  # between two lines about a copy that is under way
STREAMS = 8  # pages that are copied at a time: one stream does not fill a Lustre
SPARE = 1 << 30  # bytes that are left free for others


class StoppedError(Exception):
    """A signal came while data were copied."""


def staged(cfg: Config, run: RunFolder, world: World, clock: Clock, told: Callable[[], bool]) -> Config:
    """The config with the data sets where this node has them: copied if there is room, else where they were.

    Every rank must call this.  Raises StoppedError on all of them once any was `told` to stop, ValueError if the folder
    has no name on this node or a data set is not there, DamagedError if one is not what was written.
    """
    if not cfg.data.stage:
        return cfg
    folder = expand(cfg.data.stage) / f"vit-data-{os.getuid()}"
    sources = (cfg.data.train, cfg.data.val)
    for source in sources:
        read_dataset_manifest(source)  # a set that is not there is not the thread's to find out
    copier = None
    if world.local_rank == 0:
        copier = Copier(sources, folder, verify=cfg.data.verify != "never")
        copier.start()
    with clock.spend("stage"):
        _wait(copier, world, clock, told)
    if copier is not None:
        copier.tell(run)
    train, val = (_whole(path, folder, cfg.data.verify != "never") or path for path in sources)
    return replace(cfg, data=replace(cfg.data, train=train, val=val))


def expand(folder: str) -> Path:
    """`$TMPDIR` -> what it is on this node.  Raises ValueError if it is nothing here."""
    path = os.path.expanduser(os.path.expandvars(folder))
    if "$" in path:
        raise ValueError(f"data.stage {folder}: {socket.gethostname()} has no such variable; name a folder, as /tmp")
    return Path(path)


def _wait(copier: "Copier | None", world: World, clock: Clock, told: Callable[[], bool]) -> None:
    """Until all nodes are done.  Signs of life are given as long as bytes arrive anywhere."""
    before, last_told = -1, time.monotonic()
    while True:
        if copier is not None:
            copier.join(LOOK_SECONDS)
        busy = copier is not None and copier.is_alive()
        flags = torch.tensor([told(), busy, copier.there if copier is not None else 0], dtype=torch.int64)
        if world.size > 1:
            dist.all_reduce(flags)
        stop, unfinished, there = flags.tolist()
        if stop and copier is not None:
            copier.cancel()
        if stop:
            raise StoppedError
        if not unfinished:
            return
        if there != before:
            before = there
            clock.sign("stage")
        if copier is not None and world.rank == 0 and time.monotonic() - last_told > TELL_SECONDS:
            last_told = time.monotonic()
            show(copier.progress())


class Copier(threading.Thread):
    """Copies the data sets of one node, one after the other."""

    def __init__(self, sources: tuple[Path, ...], folder: Path, verify: bool) -> None:
        super().__init__(daemon=True, name="stage")
        self.sources, self.folder, self.verify = sources, folder, verify
        self.there = 0  # bytes that are copied, as far as one can see
        self.copied = 0  # bytes that this process copied
        self.problem = ""  # why a data set is read where it is
        self._damage: DamagedDataError | None = None
        self._canceled = threading.Event()
        self._begun = time.monotonic()
        self._counting = threading.Lock()

    def run(self) -> None:
        """Copies what is not there already."""
        for source in self.sources:
            if self._canceled.is_set() or _whole(source, self.folder, self.verify):
                continue
            try:
                self._copy(source, read_dataset_manifest(source))
            except DamagedDataError as error:
                self._damage = error
                return
            except OSError as error:
                self.problem = f"{source} is read where it is, not from {self.folder}: {error}"
                return

    def cancel(self) -> None:
        """Ends it at the next page; what is copied is of use to the next attempt."""
        self._canceled.set()
        self.join()

    def progress(self) -> str:
        """For a person."""
        total = sum(read_dataset_manifest(source).bytes for source in self.sources)
        rate = self.copied / max(1e-3, time.monotonic() - self._begun)
        return f"copying to {self.folder}: {self.there / 1e9:.1f} of {total / 1e9:.1f} GB, {rate / 1e6:,.0f} MB/s"

    def tell(self, run: RunFolder) -> None:
        """Says and writes down what came of it.  Raises DamagedError."""
        if self._damage is not None:
            raise self._damage
        seconds, node = round(time.monotonic() - self._begun, 3), socket.gethostname()
        if self.problem:
            show(self.problem, lasting=True)
            run.record("not staged", node=node, why=self.problem)
            return
        run.note("staged", node=node, folder=str(self.folder), copied=self.copied, seconds=seconds)
        what = f"copied {self.copied / 1e9:.1f} GB in {seconds:.0f} s" if self.copied else "were there already"
        show(f"data sets in {self.folder} on {node}: {what}", lasting=True)

    def _copy(self, source: Path, manifest: DatasetManifest) -> None:
        """Raises OSError if there is no room or a disk fails, DamagedError if a page is not what was written."""
        final = _place(source, self.folder, manifest)
        final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = final.with_name(final.name + ".tmp")
        file = os.open(aside, os.O_RDWR | os.O_CREAT, 0o600)
        before = self.there
        try:
            self._lock(file, before)
            if self._canceled.is_set() or _whole(source, self.folder, self.verify):
                return
            have, size = os.fstat(file).st_blocks * 512, manifest.bytes
            free = shutil.disk_usage(final.parent).free
            if free < (needed := size - have + SPARE):
                raise OSError(
                    f"{needed / 1e9:.1f} GB are needed there, 1 GB of it to spare, {free / 1e9:.1f} GB are free"
                )
            with source.open("rb", buffering=0) as shared, ThreadPoolExecutor(STREAMS) as pool:
                pages = range(len(manifest.pages))
                list(pool.map(lambda page: self._page(source, shared.fileno(), file, manifest, page), pages))
            if self._canceled.is_set():
                return
            os.ftruncate(file, size)
            os.fsync(file)
            shutil.copyfile(manifest_path(source), manifest_path(final))
            aside.rename(final)
        except OSError:
            aside.unlink(missing_ok=True)  # what cannot be finished takes room from others
            raise
        finally:
            os.close(file)
            self.there = before + manifest.bytes

    def _lock(self, file: int, before: int) -> None:
        """Waits for another process of this node that copies the same file."""
        while not self._canceled.is_set():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.there = before + os.fstat(file).st_blocks * 512
                time.sleep(LOOK_SECONDS)
            else:
                return

    def _page(self, source: Path, shared: int, file: int, manifest: DatasetManifest, page: int) -> None:
        if self._canceled.is_set():
            return
        memory, start = _room(manifest, page)
        if os.preadv(file, [memory.data], start) == len(memory) and _is(memory, manifest, page):
            self._count(len(memory), copied=0)  # an attempt that was killed had copied it
            return
        read_into(source, shared, start, memory)
        if self.verify and not _is(memory, manifest, page):
            raise DamagedDataError(
                f"{source}: page {page}, {len(memory):,} bytes at {start:,}, is not what was written. "
                "Write or copy the file again; --data.verify never goes on with it"
            )
        done = 0
        while done < len(memory):
            done += os.pwrite(file, memory[done:].data, start + done)
        self._count(len(memory), copied=len(memory))

    def _count(self, there: int, copied: int) -> None:
        with self._counting:
            self.there += there
            self.copied += copied


def _place(source: Path, folder: Path, manifest: DatasetManifest) -> Path:
    return folder / str(manifest.sha256)[:16] / source.name


def _whole(source: Path, folder: Path, verify: bool) -> Path | None:
    """The copy of a file on this node, if it is there; a look at its size and its ends, not at every byte."""
    manifest = read_dataset_manifest(source)
    final = _place(source, folder, manifest)
    try:
        if final.stat().st_uid != os.getuid() or final.stat().st_size != manifest.bytes:
            return None
        if manifest_path(final).read_bytes() != manifest_path(source).read_bytes():
            return None
        with final.open("rb", buffering=0) as file:
            for page in {0, len(manifest.pages) - 1} if verify else ():
                memory, start = _room(manifest, page)
                read_into(final, file.fileno(), start, memory)
                if not _is(memory, manifest, page):
                    return None
    except OSError:
        return None
    return final


def _room(manifest: DatasetManifest, page: int) -> tuple[Bytes, int]:
    """Memory for a page, and where in the file that is."""
    start = page * manifest.page_size
    return np.empty(min(manifest.page_size, manifest.bytes - start), np.uint8), start


def _is(memory: Bytes, manifest: DatasetManifest, page: int) -> bool:
    """Whether the bytes are those of a page, by its digest."""
    return bool(hashlib.sha256(memory.data).hexdigest() == manifest.pages[page])
