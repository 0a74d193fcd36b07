"""Storage: the same bytes from the page cache, by reads, or from a node's memory; and failures that have a name."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from tests.helpers.data_sets import small_config
from tests.helpers.ranks import run_ranks
from vit.config.schema import Config
from vit.data import storage
from vit.data.loader import TrainData, ValData, storage_line
from vit.data.storage import Cache, Read, free_memory, store
from vit.distributed.world import ALONE, join

PIECES = (np.array([5, 0, 70_000, 1]), np.array([10, 1, 50_000, 0]))


def joined(cfg: Config, path: Path, how: str) -> tuple[list[bytes], int]:
    """A rank that fetches pieces of a file held in memory; returns them and its own private memory in bytes."""
    with join(cfg) as world:
        held = store(path, "memory", world)
        if how == "kill the first" and world.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "kill the first":
            time.sleep(1)
            return pieces(held), 0
        private = psutil.Process().memory_full_info().uss
        dist.barrier()
        return pieces(held), private


def pieces(held: storage.Storage) -> list[bytes]:
    memory, starts = held.fetch(*PIECES)
    return [memory[a : a + n].tobytes() for a, n in zip(starts.tolist(), PIECES[1].tolist(), strict=True)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).integers(256, size=64_000_000, dtype=np.uint8).tobytes())
    return path


def expected(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[a : a + n] for a, n in zip(PIECES[0].tolist(), PIECES[1].tolist(), strict=True)]


@pytest.mark.parametrize("cache", ["os", "process", "memory"])
def test_every_cache_gives_the_bytes_of_the_file(cache: Cache, file: Path) -> None:
    """Pieces in any order, of any size, nothing too."""
    held = store(file, cache, ALONE)
    held.will_need(0, 1000)
    assert pieces(held) == expected(file)


@pytest.mark.parametrize("cache", ["process", "memory"])
def test_every_cache_gives_the_same_batches(cache: Cache, jpegs: Path) -> None:
    """Of both decoders; the page cache is the one to compare with."""
    for decoder in ("native", "ffcv"):
        cfg = small_config(jpegs)
        cfg = replace(cfg, data=replace(cfg.data, decoder=decoder, workers=2))
        other = replace(cfg, data=replace(cfg.data, cache=cache))
        for kind in (lambda c: TrainData(c, ALONE).batches(0, 3), lambda c: ValData(c, ALONE).batches()):
            for a, b in zip(kind(cfg), kind(other), strict=True):
                assert np.array_equal(a.samples, b.samples)
                assert torch.equal(a.labels, b.labels)
                assert torch.equal(a.images, b.images)


def test_ranks_of_a_node_share_one_copy(file: Path, jpegs: Path) -> None:
    """Four ranks hold 64 MB once: none of them holds it alone."""
    results = run_ranks(4, joined, small_config(jpegs), file, "")
    assert [each[0] for each in results] == [expected(file)] * 4
    alone = min(each[1] for each in results)
    assert max(each[1] for each in results) - alone < 32e6


def test_the_memory_outlives_the_rank_that_filled_it(file: Path, jpegs: Path) -> None:
    """The others go on reading after its SIGKILL, and nothing stays in /dev/shm when they end."""
    before = set(os.listdir("/dev/shm"))
    results = run_ranks(2, joined, small_config(jpegs), file, "kill the first")
    assert results[0] == -signal.SIGKILL
    assert results[1][0] == expected(file)
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "file" in name]


def test_too_little_memory_is_an_error_before_it_is_filled(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it needs and what there is; the machine does not begin to swap, and the job is not killed."""
    monkeypatch.setattr(storage, "free_memory", lambda: 10_000_000)
    with pytest.raises(
        ValueError, match=r"data.cache: memory needs 0.1 GB for .*, and 0.0 GB are free; data.cache: os"
    ):
        store(file, "memory", ALONE)


def test_free_memory_heeds_the_limit_of_a_control_group(tmp_path: Path) -> None:
    """As Slurm sets one for a job; the machine's own memory is no excuse."""
    assert 0 < free_memory() <= psutil.virtual_memory().total
    old = Path("/sys/fs/cgroup/memory")
    root, limit = (old, "memory.limit_in_bytes") if old.is_dir() else (old.parent, "memory.max")
    group = root / f"vit-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
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


def test_a_file_cut_short_while_it_is_read_has_a_name(file: Path) -> None:
    """With `process`; the page cache's answer would be SIGBUS."""
    held = Read(file)
    os.truncate(file, 60_000)
    with pytest.raises(OSError, match="the file ends at byte 70,000, and has been cut short") as caught:
        pieces(held)
    assert str(file) in str(caught.value)


def test_left_files_are_closed(jpegs: Path) -> None:
    """Data that is forgotten takes its descriptors and maps along."""
    process = psutil.Process()
    for cache in ("os", "process", "memory"):
        cfg = small_config(jpegs)
        cfg = replace(cfg, data=replace(cfg.data, cache=cache))
        TrainData(cfg, ALONE)
        before = process.num_fds(), len(process.memory_maps(grouped=False))
        for _ in range(20):
            TrainData(cfg, ALONE)
        after = process.num_fds(), len(process.memory_maps(grouped=False))
        assert after[0] <= before[0] + 3
        assert after[1] <= before[1] + 10


def test_a_run_says_how_its_data_is_read_and_whether_it_fits(jpegs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what to do if it does not."""
    from vit.data import loader

    cfg = small_config(jpegs)
    data = TrainData(cfg, ALONE)
    assert "through the page cache, fits into" in storage_line(cfg.data, data)
    monkeypatch.setattr(loader, "free_memory", lambda: 1000)
    assert "does not fit into 0 GB of free memory; --data.shuffle_window 32768" in storage_line(cfg.data, data)
    windows = replace(cfg.data, shuffle_window=64, cache="process")
    assert storage_line(windows, data).endswith("read piece by piece, does not fit into 0 GB of free memory")
    assert storage_line(replace(cfg.data, cache="memory"), data).endswith("are in memory")
