"""Checks the file system of the runs folder: its type, speed and free space, and the clock of its server."""

import atexit
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.login.resources import display_path
from jobs.login.run_folder import file_system, shared_folder_warning
from jobs.node.slurm_job import STOP_SECONDS
from jobs.readiness.finding import Finding, format_bytes
from jobs.readiness.request import Request
from vit.config.schema import Config
from vit.data.dataset_manifest import read_dataset_manifest
from vit.model.weight_fit import state_bytes
from vit.run.disk_errors import DISK_FULL, naming

PROBE_SECONDS, PROBE_BYTES = 0.4, 64 << 20  # writing ends after so many seconds or bytes
SKEW_SECONDS = 2.0  # a difference of the clocks that does not matter; some file systems have whole seconds
# What a run writes besides checkpoints, generously.
COMPILED_BYTES_PER_GPU, LOG_BYTES, BYTES_PER_SAMPLE = 100e6, 100e6, 9
SOURCE_FILES, LOG_FILES, LOG_FILES_PER_RANK = 300, 100, 10


@dataclass(frozen=True)
class Speed:
    """What was measured with a small file."""

    write: float | None  # bytes per second, with fsync; None: too little could be written to tell
    read: float  # bytes per second
    latency: float  # seconds of one small write with fsync, as of an event in the ledger
    skew: float  # seconds by which the server's clock is ahead of this machine's; 0 within the accuracy


@dataclass(frozen=True)
class Needed:
    """What a run will write."""

    checkpoint: int  # bytes of one
    checkpoints: int  # kept, and the one that is being written
    other: float  # bytes
    files: int

    @property
    def bytes(self) -> float:
        """All of it."""
        return self.checkpoint * self.checkpoints + self.other


def check_runs_folder(request: Request) -> Iterator[Finding]:
    """Everything about the file system, where the folder is or will be created; sets `request.save_seconds`."""
    folder = next(path for path in (request.runs, *request.runs.parents) if os.path.lexists(path))
    shown = display_path(request.runs)
    if not folder.is_dir():
        yield Finding("runs folder", "FAIL", f"{folder} is not a folder", "use another --runs-dir")
        return
    yield _kind(request, folder, shown)
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    try:
        speed = measure(folder, free)
    except OSError as error:
        full = error.errno in DISK_FULL
        advice = "free some of it, or use another --runs-dir" if full else "use a --runs-dir that you may write to"
        yield Finding("writing", "FAIL", f"cannot write to {display_path(folder)}: {error.strerror}", advice)
    else:
        yield _speed(speed)
        yield _clock(speed.skew)
        yield from _save(request, speed)
    yield from _space(request, space, shown)


def _kind(request: Request, folder: Path, shown: str) -> Finding:
    kind = file_system(folder) or "unknown type"
    created = "" if folder == request.runs else "; will be created"
    warning = shared_folder_warning(request.runs)
    if warning and request.slurm is not None:
        what, _, follows = warning.partition("; ")
        advice = follows if follows.startswith("use") else "use a --runs-dir that all nodes share"
        return Finding("runs folder", "WARN", f"{what}: a job fails unless its nodes mount it too{created}", advice)
    where = "a local disk" if warning else "not a local disk, so probably shared"
    return Finding("runs folder", "OK", f"{shown}, on {where} ({kind}){created}")


_named = threading.Lock()  # held while the file has a name: at Ctrl-C, this process does not end meanwhile
atexit.register(_named.acquire, timeout=2)


def measure(folder: Path, free: int) -> Speed:
    """Writes a file, syncs and reads it.  It has no name while it is used, so that nothing is left behind if killed.

    Raises OSError.
    """
    with naming(folder):
        with _named:
            fd, name = tempfile.mkstemp(prefix=".doctor-", dir=folder)
            os.unlink(name)
        try:
            before = time.time()
            begun = time.perf_counter()
            _write(fd, b"x" * 4096)
            latency = time.perf_counter() - begun
            modified, after = os.fstat(fd).st_mtime, time.time()
            skew = modified - after if modified > after else min(0.0, modified - before)
            write, size = _measure_writing(fd, min(PROBE_BYTES, free // 4))
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.lseek(fd, 0, os.SEEK_SET)
            begun = time.perf_counter()
            while os.read(fd, 1 << 20):
                pass
            read = size / (time.perf_counter() - begun)
        finally:
            os.close(fd)
    return Speed(write, read, latency, skew)


def _measure_writing(fd: int, most: int) -> tuple[float | None, int]:
    """Bytes per second of the last of ever larger writes, if it had 1 MB; the number of bytes in the file."""
    content = os.urandom(1 << 20)  # a file system may compress other bytes
    begun, chunk, size, speed = time.perf_counter(), 1 << 20, 4096, None
    while size + chunk <= most and time.perf_counter() - begun < PROBE_SECONDS:
        at = time.perf_counter()
        for _ in range(chunk >> 20):
            _write_all(fd, content)
        os.fsync(fd)
        speed = chunk / (time.perf_counter() - at)
        size, chunk = size + chunk, 2 * chunk
    return speed, size


def _write(fd: int, content: bytes) -> None:
    _write_all(fd, content)
    os.fsync(fd)


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _speed(speed: Speed) -> Finding:
    write = "too little space to tell" if speed.write is None else f"{format_bytes(speed.write)}/s with fsync"
    latency = f"{1000 * speed.latency:.0f} ms for a line of the ledger"
    return Finding("writing", "OK", f"{write}, {latency}; reading {format_bytes(speed.read)}/s (perhaps from a cache)")


def _clock(skew: float) -> Finding:
    if abs(skew) <= SKEW_SECONDS:
        return Finding("clock", "OK", f"within {SKEW_SECONDS:.0f} s of the file system's")
    where = "behind" if skew > 0 else "ahead of"
    text = f"this machine is {abs(skew):.0f} s {where} the clock of the file system"
    advice = "ask the administrators to synchronize them (NTP); `timedatectl` shows the state of this machine"
    return Finding("clock", "WARN", f"{text}: times in status.py and in the ledger will be wrong by that", advice)


def _save(request: Request, speed: Speed) -> Iterator[Finding]:
    """How long a save takes, estimated from the size of a checkpoint and the speed here."""
    if request.cfg is None or speed.write is None:
        return
    size = state_bytes(request.cfg)
    request.save_seconds = seconds = size / speed.write + 2 * speed.latency
    text = f"a checkpoint has {format_bytes(size)}; saving it takes about {format_seconds(seconds)} (an estimate from "
    text += "the speed of writing)"
    if seconds < STOP_SECONDS / 2:
        yield Finding("save", "OK", text)
        return
    text += f"; before a stop, ranks are killed after {STOP_SECONDS} s"
    advice = "use a faster --runs-dir; --submit measures a save on a node"
    if seconds < STOP_SECONDS:
        yield Finding("save", "WARN", text, advice)
    else:
        yield Finding("save", "FAIL", f"{text}: each preemption would lose the steps since the last checkpoint", advice)


def needed(cfg: Config, gpus: int, ranks: int) -> Needed:
    """What a run will write, on so many GPUs of each node, and ranks in all."""
    often = cfg.checkpoint.keep_every_epochs
    forever = int(cfg.epochs / often) if often else 0
    checkpoints = cfg.checkpoint.keep + 2 + forever  # the best one, and the one that is being written
    other = LOG_BYTES + (COMPILED_BYTES_PER_GPU * gpus if cfg.compile else 0)
    if cfg.log.samples:
        try:
            samples = read_dataset_manifest(cfg.data.train).samples
        except (OSError, ValueError):
            samples = 0  # the check of the data sets reports it
        other += cfg.epochs * min(samples, cfg.data.limit or samples) * BYTES_PER_SAMPLE
    files = checkpoints * (ranks + 2) + SOURCE_FILES + LOG_FILES + LOG_FILES_PER_RANK * ranks
    return Needed(state_bytes(cfg), checkpoints, other, files)


def _space(request: Request, space: os.statvfs_result, shown: str) -> Iterator[Finding]:
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    text = f"{format_bytes(free)} of {format_bytes(total)} are free"
    need = needed(request.cfg, request.size.gpus, request.ranks) if request.cfg is not None else None
    advice = "free some, use another --runs-dir, or keep fewer checkpoints (checkpoint.keep)"
    files = f"{space.f_favail:,} more files can be created" if space.f_files else "no fixed number of files"
    if need is None:
        yield Finding("free space", "OK" if free else "FAIL", text, "" if free else advice)
        yield Finding("files", "OK", files)
        return
    run = f"this run writes up to {format_bytes(need.bytes)} ({need.checkpoints} checkpoints, logs)"
    if free < need.bytes:
        yield Finding("free space", "FAIL", f"{text}, but {run}", advice)
    elif free < 2 * need.bytes:
        yield Finding("free space", "WARN", f"{text}, {run}: another run here may fill the disk", advice)
    else:
        yield Finding("free space", "OK", f"{text}; {run}; a quota may be lower than what the file system reports")
    if space.f_files and space.f_favail < need.files:
        advice = "remove files, or use another --runs-dir"
        yield Finding("files", "FAIL", f"{files}, but a run needs about {need.files:,} (inodes)", advice)
    else:
        yield Finding("files", "OK", f"{files}; a run needs about {need.files:,} (inodes)")


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min`."""
    if seconds < 10:
        return f"{max(0.1, seconds):.1f} s"
    return f"{seconds:.0f} s" if seconds < 180 else f"{seconds / 60:.0f} min"
