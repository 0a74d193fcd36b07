"""Stages the data sets: copies them to a node's local disk, once for all ranks and all later attempts on that node.

FOLDER/vit-data-UID/DIGEST/train.beton        a complete copy; DIGEST is the start of the file's SHA-256
FOLDER/vit-data-UID/DIGEST/train.beton.tmp    an incomplete copy; pages that are already in it are not copied again
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

from vit.config.paths import expand
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.damage import damaged_page
from vit.data.dataset_manifest import DatasetManifest, manifest_path, read_dataset_manifest
from vit.data.decode import DamagedDataError
from vit.data.storage import Bytes, read_into
from vit.distributed.world import World
from vit.run.activity import activity
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.run.progress import show

POLL_SECONDS = 0.5  # interval of checks for a signal or for another process's copy
STREAMS = 8  # pages copied in parallel: a single stream does not saturate a Lustre file system
SPARE_BYTES = 1 << 30  # left free on the disk for others


class StoppedError(Exception):
    """A signal arrived while data sets were being copied."""


def stage_data_sets(
    cfg: Config, run: RunFolder, world: World, clock: Clock, stop_requested: Callable[[], bool]
) -> Config:
    """Copies the data sets to `data.stage`; returns the config with the paths of the copies.

    A data set that cannot be copied, e.g. because the disk is full, keeps its path.  Every rank must call this.
    Raises StoppedError on all ranks once `stop_requested` is true on any, UserError if `data.stage` contains a
    variable that is not set on this node or a data set does not exist, DamagedDataError if a page is damaged.
    """
    if not cfg.data.stage:
        return cfg
    folder = expand_folder(cfg.data.stage) / f"vit-data-{os.getuid()}"
    sources = (cfg.data.train, cfg.data.val)
    # Raises here, not in the copying thread, if a data set does not exist.
    total = sum(read_dataset_manifest(source).bytes for source in sources)
    copier = None
    if world.local_rank == 0:
        copier = Copier(sources, folder, verify=cfg.data.verify != "never")
        copier.start()
    with (
        clock.phase("stage"),
        activity(f"copying data sets to {folder}", total, shown=world.rank == 0) as show_progress,
    ):
        _wait(copier, world, clock, stop_requested, show_progress)
    if copier is not None:
        copier.report(run)
    train, val = (_find_copy(path, folder, cfg.data.verify != "never") or path for path in sources)
    return replace(cfg, data=replace(cfg.data, train=train, val=val))


def expand_folder(folder: str) -> Path:
    """Expands `~` and variables, e.g. `$TMPDIR`, on this node.  Raises UserError if a variable is not set."""
    try:
        return Path(expand(folder))
    except UserError as error:
        raise UserError(f"data.stage {error} (on {socket.gethostname()})") from None


def _wait(
    copier: "Copier | None",
    world: World,
    clock: Clock,
    stop_requested: Callable[[], bool],
    show_progress: Callable[[int], None],
) -> None:
    """Waits until all nodes are done.  Writes a heartbeat whenever any node has made progress."""
    previous = -1
    while True:
        if copier is not None:
            copier.join(POLL_SECONDS)
        busy = copier is not None and copier.is_alive()
        present = copier.bytes_present if copier is not None else 0
        flags = torch.tensor([stop_requested(), busy, present], dtype=torch.int64)
        if world.size > 1:
            dist.all_reduce(flags)
        stop, unfinished, total = flags.tolist()
        if stop and copier is not None:
            copier.cancel()
        if stop:
            raise StoppedError
        if not unfinished:
            return
        if total != previous:
            previous = total
            clock.beat("stage")
        show_progress(present)


class Copier(threading.Thread):
    """A thread that copies the data sets to one node, one after the other."""

    def __init__(self, sources: tuple[Path, ...], folder: Path, verify: bool) -> None:
        super().__init__(daemon=True, name="stage")
        self.sources, self.folder, self.verify = sources, folder, verify
        self.bytes_present = 0  # bytes on this node's disk so far, whoever copied them
        self.bytes_copied = 0  # bytes that this process copied
        self.problem = ""  # why a data set could not be copied
        self._damage: DamagedDataError | None = None
        self._canceled = threading.Event()
        self._start_time = time.monotonic()
        self._counter_lock = threading.Lock()

    def run(self) -> None:
        """Copies the data sets that are not on this node yet."""
        for source in self.sources:
            if self._canceled.is_set() or _find_copy(source, self.folder, self.verify):
                continue
            try:
                self._copy(source, read_dataset_manifest(source))
            except DamagedDataError as error:
                self._damage = error
                return
            except OSError as error:
                self.problem = f"{source} could not be copied to {self.folder} and is read in place: {error}"
                return

    def cancel(self) -> None:
        """Stops after the pages in progress; the next attempt reuses what has been copied."""
        self._canceled.set()
        self.join()

    def report(self, run: RunFolder) -> None:
        """Prints the result and records it in the ledger.  Raises DamagedDataError if a page was damaged."""
        if self._damage is not None:
            raise self._damage
        seconds, node = round(time.monotonic() - self._start_time, 3), socket.gethostname()
        if self.problem:
            show(self.problem, lasting=True)
            run.record("not staged", node=node, why=self.problem)
            return
        run.note("staged", node=node, folder=str(self.folder), copied=self.bytes_copied, seconds=seconds)
        copied = (
            f"copied {self.bytes_copied / 1e9:.1f} GB in {seconds:.0f} s" if self.bytes_copied else "already present"
        )
        show(f"data sets in {self.folder} on {node}: {copied}", lasting=True)

    def _copy(self, source: Path, manifest: DatasetManifest) -> None:
        """Copies one data set.  Raises OSError if there is not enough space or a disk fails, DamagedDataError."""
        final = _copy_path(source, self.folder, manifest)
        final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = final.with_name(final.name + ".tmp")
        file = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o600)
        previous_sets = self.bytes_present
        try:
            self._lock(file, previous_sets)
            if self._canceled.is_set() or _find_copy(source, self.folder, self.verify):
                return
            allocated, size = os.fstat(file).st_blocks * 512, manifest.bytes
            free = shutil.disk_usage(final.parent).free
            if free < (needed := size - allocated + SPARE_BYTES):
                raise OSError(
                    f"{needed / 1e9:.1f} GB of disk space are needed, including a reserve of 1 GB, "
                    f"but {free / 1e9:.1f} GB are free"
                )
            with source.open("rb", buffering=0) as shared, ThreadPoolExecutor(STREAMS) as pool:
                pages = range(len(manifest.pages))
                list(pool.map(lambda page: self._copy_page(source, shared.fileno(), file, manifest, page), pages))
            if self._canceled.is_set():
                return
            os.ftruncate(file, size)
            os.fsync(file)
            shutil.copyfile(manifest_path(source), manifest_path(final))
            temporary.rename(final)
        except OSError:
            temporary.unlink(missing_ok=True)  # frees the space of a copy that cannot be completed
            raise
        finally:
            os.close(file)
            self.bytes_present = previous_sets + manifest.bytes

    def _lock(self, file: int, previous_sets: int) -> None:
        """Waits while another process on this node copies the same file."""
        while not self._canceled.is_set():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.bytes_present = previous_sets + os.fstat(file).st_blocks * 512
                time.sleep(POLL_SECONDS)
            else:
                return

    def _copy_page(self, source: Path, shared: int, file: int, manifest: DatasetManifest, page: int) -> None:
        if self._canceled.is_set():
            return
        memory, start = _page_buffer(manifest, page)
        if os.preadv(file, [memory.data], start) == len(memory) and _matches_digest(memory, manifest, page):
            self._count(len(memory), copied=0)  # an earlier attempt copied it
            return
        read_into(source, shared, start, memory)
        if self.verify and not _matches_digest(memory, manifest, page):
            raise damaged_page(source, page, start, len(memory))
        done = 0
        while done < len(memory):
            done += os.pwrite(file, memory[done:].data, start + done)
        self._count(len(memory), copied=len(memory))

    def _count(self, present: int, copied: int) -> None:
        with self._counter_lock:
            self.bytes_present += present
            self.bytes_copied += copied


def _copy_path(source: Path, folder: Path, manifest: DatasetManifest) -> Path:
    return folder / str(manifest.sha256)[:16] / source.name


def _find_copy(source: Path, folder: Path, verify: bool) -> Path | None:
    """The complete copy of a file on this node, or None.  Checks its size and its first and last page only."""
    manifest = read_dataset_manifest(source)
    final = _copy_path(source, folder, manifest)
    try:
        if final.stat().st_uid != os.getuid() or final.stat().st_size != manifest.bytes:
            return None
        if manifest_path(final).read_bytes() != manifest_path(source).read_bytes():
            return None
        with final.open("rb", buffering=0) as file:
            for page in {0, len(manifest.pages) - 1} if verify else ():
                memory, start = _page_buffer(manifest, page)
                read_into(final, file.fileno(), start, memory)
                if not _matches_digest(memory, manifest, page):
                    return None
    except OSError:
        return None
    return final


def _page_buffer(manifest: DatasetManifest, page: int) -> tuple[Bytes, int]:
    """An uninitialized buffer for a page, and the page's offset in the file."""
    start = page * manifest.page_size
    return np.empty(min(manifest.page_size, manifest.bytes - start), np.uint8), start


def _matches_digest(memory: Bytes, manifest: DatasetManifest, page: int) -> bool:
    """Whether the bytes have the digest of the page."""
    return bool(hashlib.sha256(memory.data).hexdigest() == manifest.pages[page])
