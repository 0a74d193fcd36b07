"""Every `data.cache` reads the same bytes, memory is shared by the ranks of a node, and failures raise errors."""

import errno
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from tests.helpers.data_sets import small_config
from tests.helpers.ranks import run_ranks
from vit.config.schema import Config
from vit.data import storage
from vit.data.loader import TrainData, ValData, storage_summary
from vit.data.storage import Cache, ReadStorage, free_memory, open_storage
from vit.distributed.world import SINGLE_RANK, join_process_group

RANGES = (np.array([5, 0, 70_000, 1]), np.array([10, 1, 50_000, 0]))


def fetch_from_shared_memory(cfg: Config, path: Path, how: str) -> tuple[list[bytes], int]:
    """Fetches ranges of a file from shared memory; returns them and the rank's private memory in bytes."""
    with join_process_group(cfg) as world:
        opened = open_storage(path, "memory", world)
        if how == "kill the first" and world.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "kill the first":
            time.sleep(1)
            return fetched_ranges(opened), 0
        private = psutil.Process().memory_full_info().uss
        dist.barrier()
        return fetched_ranges(opened), private


def fetched_ranges(opened: storage.Storage) -> list[bytes]:
    memory, starts = opened.fetch(*RANGES)
    return [memory[a : a + n].tobytes() for a, n in zip(starts.tolist(), RANGES[1].tolist(), strict=True)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).integers(256, size=64_000_000, dtype=np.uint8).tobytes())
    return path


def expected(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[a : a + n] for a, n in zip(RANGES[0].tolist(), RANGES[1].tolist(), strict=True)]


@pytest.mark.parametrize("cache", ["os", "process", "memory"])
def test_every_cache_gives_the_bytes_of_the_file(cache: Cache, file: Path) -> None:
    """Ranges in any order and of any size, including empty ones."""
    opened = open_storage(file, cache, SINGLE_RANK)
    opened.will_need(0, 1000)
    assert fetched_ranges(opened) == expected(file)


@pytest.mark.parametrize("cache", ["process", "memory"])
def test_every_cache_gives_the_same_batches(cache: Cache, jpegs: Path) -> None:
    """With both decoders, compared with the page cache."""
    for decoder in ("native", "ffcv"):
        cfg = small_config(jpegs)
        cfg = replace(cfg, data=replace(cfg.data, decoder=decoder, workers=2))
        other = replace(cfg, data=replace(cfg.data, cache=cache))
        for kind in (lambda c: TrainData(c, SINGLE_RANK).batches(0, 3), lambda c: ValData(c, SINGLE_RANK).batches()):
            for a, b in zip(kind(cfg), kind(other), strict=True):
                assert np.array_equal(a.samples, b.samples)
                assert torch.equal(a.labels, b.labels)
                assert torch.equal(a.images, b.images)


def test_ranks_of_a_node_share_one_copy(file: Path, jpegs: Path) -> None:
    """Four ranks hold a file of 64 MB in memory once; it is nobody's private memory."""
    results = run_ranks(4, fetch_from_shared_memory, small_config(jpegs), file, "")
    assert [each[0] for each in results] == [expected(file)] * 4
    private = [each[1] for each in results]
    assert max(private) - min(private) < 32e6


def test_the_shared_memory_outlives_the_rank_that_filled_it(file: Path, jpegs: Path) -> None:
    """The other ranks still read it after a SIGKILL of that rank, and nothing is left in /dev/shm when they end."""
    before = set(os.listdir("/dev/shm"))
    results = run_ranks(2, fetch_from_shared_memory, small_config(jpegs), file, "kill the first")
    assert results[0] == -signal.SIGKILL
    assert results[1][0] == expected(file)
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "file" in name]


def signs_of_progress(cfg: Config, path: Path) -> int:
    """How often this rank gave a sign of progress while it waited for a slow disk."""
    storage._CHUNK, storage._POLL_SECONDS, storage._STREAMS = 8_000_000, 0.02, 1
    read_fast = storage.read_into

    def read_slowly(*arguments: Any) -> None:
        time.sleep(0.1)
        read_fast(*arguments)

    storage.read_into = read_slowly
    signs: list[float] = []
    with join_process_group(cfg) as world:
        opened = open_storage(path, "memory", world, lambda: signs.append(time.monotonic()))
        assert fetched_ranges(opened) == expected(path)
    return len(signs)


def test_all_ranks_show_that_they_are_alive_while_one_reads_the_file(file: Path, jpegs: Path) -> None:
    """Otherwise they count as stalled if that takes long, and are killed."""
    assert min(run_ranks(2, signs_of_progress, small_config(jpegs), file)) >= 5


def test_a_file_that_cannot_be_read_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which names it, as with the other caches."""

    def fail(path: Path, *_: object) -> None:
        raise OSError(errno.EIO, "Input/output error at byte 7", str(path))

    monkeypatch.setattr(storage, "read_into", fail)
    with pytest.raises(OSError, match="at byte 7") as caught:
        open_storage(file, "memory", SINGLE_RANK)
    assert str(file) in str(caught.value)


def test_too_little_memory_is_an_error_before_the_file_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what is needed and what is free; the machine does not swap and the job is not killed."""
    monkeypatch.setattr(storage, "free_memory", lambda: 10_000_000)
    with pytest.raises(
        ValueError, match=r"data.cache memory needs 0.1 GB for .*, but 0.0 GB are free; use data.cache os"
    ):
        open_storage(file, "memory", SINGLE_RANK)


def test_free_memory_respects_the_limit_of_a_control_group(tmp_path: Path) -> None:
    """Slurm sets such a limit for a job."""
    assert 0 < free_memory() <= psutil.virtual_memory().total
    old = Path("/sys/fs/cgroup/memory")
    root, limit = (old, "memory.limit_in_bytes") if old.is_dir() else (old.parent, "memory.max")
    group = root / f"vit-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"a control group cannot be created here: {error}")
    if not (group / limit).exists():
        group.rmdir()
        pytest.skip("control groups do not limit memory here")
    (group / limit).write_text(str(300 << 20))
    try:
        (free,) = run_ranks(1, free_inside, group)
        assert 0 < free <= 300 << 20
    finally:
        group.rmdir()


def free_inside(group: Path) -> int:
    (group / "cgroup.procs").write_text(str(os.getpid()))
    return free_memory()


def test_truncating_a_file_while_it_is_read_is_an_error(file: Path) -> None:
    """With `data.cache process`.  A memory-mapped file would raise SIGBUS."""
    opened = ReadStorage(file)
    os.truncate(file, 60_000)
    with pytest.raises(OSError, match="the file ends at byte 70,000: it has been truncated") as caught:
        fetched_ranges(opened)
    assert str(file) in str(caught.value)


def test_unused_files_are_closed(jpegs: Path) -> None:
    """Garbage collection closes file descriptors and memory maps."""
    process = psutil.Process()
    for cache in ("os", "process", "memory"):
        cfg = small_config(jpegs)
        cfg = replace(cfg, data=replace(cfg.data, cache=cache))
        TrainData(cfg, SINGLE_RANK)
        before = process.num_fds(), len(process.memory_maps(grouped=False))
        for _ in range(20):
            TrainData(cfg, SINGLE_RANK)
        after = process.num_fds(), len(process.memory_maps(grouped=False))
        assert after[0] <= before[0] + 3
        assert after[1] <= before[1] + 10


def test_a_run_prints_how_its_data_are_read_and_whether_they_fit_into_memory(
    jpegs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what to do if they do not fit."""
    from vit.data import loader

    cfg = small_config(jpegs)
    data = TrainData(cfg, SINGLE_RANK)
    assert "through the page cache, fits into" in storage_summary(cfg.data, data)
    monkeypatch.setattr(loader, "free_memory", lambda: 1000)
    assert "does not fit into 0 GB of free memory; use --data.shuffle_window 32768" in storage_summary(cfg.data, data)
    windows = replace(cfg.data, shuffle_window=64, cache="process")
    assert storage_summary(windows, data).endswith("read by each rank, does not fit into 0 GB of free memory")
    assert storage_summary(replace(cfg.data, cache="memory"), data).endswith("held in memory")
