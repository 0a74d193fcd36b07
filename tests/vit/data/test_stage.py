"""Staging data sets on a node's local disk: one complete copy or none; if copying fails, the run reads the original."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.data_sets import small_config
from tests.helpers.disks import tmpfs_mounted
from tests.helpers.ranks import run_ranks
from tests.helpers.waiting import wait_for
from vit import train
from vit.config.schema import Config
from vit.config.sections import DataConfig
from vit.data import stage
from vit.data.beton import open_beton
from vit.data.damage import check_pages
from vit.data.dataset_manifest import manifest_path
from vit.data.decode import DamagedDataError
from vit.data.stage import Copier, stage_data_sets
from vit.distributed.world import join_process_group
from vit.run.clock import Clock
from vit.run.folder import RunFolder

PAGE = 65_536

# Copies a data set as if from a slow disk, and prints what it has copied.
COPY_SLOWLY = """
import sys, time
from pathlib import Path
from vit.data import stage
read_into = stage.read_into
def slow_read_into(*arguments):
    time.sleep(0.02)
    read_into(*arguments)
stage.read_into, stage.STREAMS, stage.POLL_SECONDS = slow_read_into, 2, 0.05
copier = stage.Copier((Path(sys.argv[1]),), Path(sys.argv[2]), True)
copier.run()
print(copier.bytes_copied, copier.problem)
"""


@pytest.fixture
def source(jpegs: Path, tmp_path: Path) -> Path:
    """A data set with more than a hundred small pages, on a file system that all nodes share."""
    path = tmp_path / "shared" / "train.beton"
    path.parent.mkdir()
    shutil.copy(jpegs, path)
    content, manifest = path.read_bytes(), json.loads(manifest_path(jpegs).read_text())
    digests = [hashlib.sha256(content[at : at + PAGE]).hexdigest() for at in range(0, len(content), PAGE)]
    assert len(digests) > 100
    manifest_path(path).write_text(json.dumps(manifest | {"page_size": PAGE, "pages": digests}))
    return path


@pytest.fixture
def local_disk(tmp_path: Path) -> Path:
    """A folder on the node's local disk."""
    return tmp_path / "local"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    with tmpfs_mounted(folder, "64k"):
        yield folder


def stage_config(data: Path, folder: Path) -> Config:
    cfg = small_config(data)
    return replace(cfg, data=replace(cfg.data, stage=str(folder)))


def staged_paths(cfg: Config, run: Path) -> tuple[Path, Path]:
    """The paths from which a rank then reads its training and validation set."""
    with join_process_group(cfg) as world:
        here = stage_data_sets(cfg, RunFolder(run), world, Clock(time.time()), lambda: False)
        return here.data.train, here.data.val


def copied_bytes(run: Path) -> list[int]:
    """Bytes copied by each attempt.  Pages of zeros are not copied: they match the holes of the new file."""
    return [e["copied"] for e in RunFolder(run).events() if e["event"] == "staged"]


def copy_slowly(source: Path, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", COPY_SLOWLY, str(source), str(folder / f"vit-data-{os.getuid()}")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def partial_copy(folder: Path) -> Path | None:
    return next(folder.rglob("*.tmp"), None)


def complete_copy(source: Path, folder: Path) -> Path:
    """The path of the only copy, after checking that it is complete."""
    (path,) = folder.rglob("train.beton")
    assert path.read_bytes() == source.read_bytes()
    assert manifest_path(path).read_bytes() == manifest_path(source).read_bytes()
    assert partial_copy(folder) is None
    return path


def test_all_ranks_of_a_node_read_one_copy_and_so_does_the_next_attempt(
    source: Path, local_disk: Path, tmp_path: Path
) -> None:
    """The set is copied once and then found.  A copy that is truncated or has a damaged last page is replaced."""
    cfg, size = stage_config(source, local_disk), source.stat().st_size
    content = source.read_bytes()
    assert len({*run_ranks(4, staged_paths, cfg, tmp_path)}) == 1
    path = complete_copy(source, local_disk)
    assert run_ranks(2, staged_paths, cfg, tmp_path) == [(path, path)] * 2
    once = copied_bytes(tmp_path)[0]
    assert once > PAGE * sum(any(content[at : at + PAGE]) for at in range(0, size - PAGE, PAGE))
    assert copied_bytes(tmp_path) == [once, 0]
    os.truncate(path, size - 1)
    assert run_ranks(1, staged_paths, cfg, tmp_path) == [(path, path)]
    with path.open("r+b") as file:
        file.seek(size - 1)
        file.write(bytes([content[-1] ^ 1]))
    assert run_ranks(1, staged_paths, cfg, tmp_path) == [(path, path)]
    complete_copy(source, local_disk)
    assert min(copied_bytes(tmp_path)[2:]) > once / 2
    assert len(copied_bytes(tmp_path)) == 4
    check_pages(open_beton(path), range(size // PAGE))


def test_an_interrupted_copy_is_not_used_but_completed(source: Path, local_disk: Path, tmp_path: Path) -> None:
    """After a SIGKILL in the middle, and a page lost by the disk: only the missing pages are copied."""
    process = copy_slowly(source, local_disk)
    wait_for(lambda: (part := partial_copy(local_disk)) and part.stat().st_size > 40 * PAGE, "part of the copy")
    process.kill()
    process.communicate()
    part = partial_copy(local_disk)
    assert part is not None
    assert not list(local_disk.rglob("train.beton"))
    with part.open("r+b") as file:
        file.write(bytes(PAGE))
    run_ranks(2, staged_paths, stage_config(source, local_disk), tmp_path)
    complete_copy(source, local_disk)
    assert 0 < copied_bytes(tmp_path)[0] <= source.stat().st_size - 30 * PAGE


def test_two_jobs_on_a_node_copy_once(source: Path, local_disk: Path) -> None:
    """The second job waits for the first one's copy, and completes it if the first job is killed."""
    first = copy_slowly(source, local_disk)
    wait_for(lambda: (part := partial_copy(local_disk)) and part.stat().st_size > 20 * PAGE, "part of the copy")
    second = copy_slowly(source, local_disk)
    wait_for(lambda: psutil.Process(second.pid).open_files() or second.poll() is not None, "the second job")
    first.kill()
    killed = first.communicate()[0] == ""
    copied = int(second.communicate(timeout=120)[0])
    complete_copy(source, local_disk)
    assert copied < source.stat().st_size - 10 * PAGE
    assert (copied > 0) == killed, "on a slow machine the first job may finish before the second starts"


def stopped_while_copying(cfg: Config, run: Path) -> str:
    """An attempt with a very slow copy, in which the last rank receives a SIGTERM; returns its outcome."""
    read_into = stage.read_into

    def slow_read_into(source: Path, *arguments: Any) -> None:
        read_into(source, *arguments)
        time.sleep(0.5)

    def interrupt() -> None:
        installed = lambda: signal.getsignal(signal.SIGTERM) != signal.SIG_DFL  # noqa: E731
        wait_for(lambda: installed() and partial_copy(Path(cfg.data.stage)), "part of the copy")
        os.kill(os.getpid(), signal.SIGTERM)

    stage.read_into, stage.STREAMS = slow_read_into, 1
    with join_process_group(cfg) as world:
        if world.rank == 3:
            threading.Thread(target=interrupt, daemon=True).start()
        return train.attempt(cfg, RunFolder(run), world, Clock(time.time()), []).value


def test_a_signal_stops_the_copy_on_all_ranks(source: Path, local_disk: Path, tmp_path: Path) -> None:
    """One rank of four receives it and all stop; the next attempt completes the partial copy."""
    cfg = stage_config(source, local_disk)
    assert run_ranks(4, stopped_while_copying, cfg, tmp_path) == ["stopped"] * 4
    (event,) = RunFolder(tmp_path).events()
    assert (event["event"], event["step"]) == ("stopped", 0)
    assert partial_copy(local_disk)
    run_ranks(4, staged_paths, cfg, tmp_path)
    complete_copy(source, local_disk)


@pytest.mark.parametrize("spare_bytes", [1 << 30, -1 << 30])
def test_without_enough_disk_space_the_run_reads_the_original(
    spare_bytes: int, source: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detected before the copy, or during it when others fill the disk; the partial copy is deleted."""
    monkeypatch.setattr(stage, "SPARE_BYTES", spare_bytes)
    copier = Copier((source,), small_disk, verify=True)
    copier.run()
    copier.report(RunFolder(tmp_path))
    (event,) = RunFolder(tmp_path).events()
    assert event["event"] == "not staged"
    assert f"{source} could not be copied to {small_disk} and is read in place" in event["why"]
    assert ("of disk space are needed" if spare_bytes > 0 else "No space left") in event["why"]
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
    assert run_ranks(2, staged_paths, stage_config(source, small_disk), tmp_path) == [(source, source)] * 2


def test_a_damaged_page_is_detected_while_it_is_copied(source: Path, local_disk: Path, tmp_path: Path) -> None:
    """The error names the page and there is no copy; with `data.verify never` the bytes are copied as they are."""
    content = source.read_bytes()
    page = next(page for page in range(50, 256) if any(content[page * PAGE : (page + 1) * PAGE]))
    with source.open("r+b") as file:
        file.seek(page * PAGE + 7)
        file.write(b"oops")
    cfg = stage_config(source, local_disk)
    position = rf"page {page} \(65,536 bytes at offset {page * PAGE:,}\)"
    with pytest.raises(DamagedDataError, match=rf"train\.beton: {position} does not match its digest"):
        run_ranks(1, staged_paths, cfg, tmp_path)
    assert not list(local_disk.rglob("train.beton"))
    run_ranks(1, staged_paths, replace(cfg, data=replace(cfg.data, verify="never")), tmp_path)
    complete_copy(source, local_disk)


def test_variables_in_the_folder_are_expanded_on_the_node(
    source: Path, local_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config keeps `$TMPDIR` as it is; a variable that is not set on a node is an error."""
    options: dict[str, Any] = {"train": source, "val": source}
    with pytest.raises(ValueError, match=r"data\.stage must be an absolute path .* not scratch"):
        DataConfig(**options, stage="scratch")
    cfg = stage_config(source, Path("$VIT_TEST_SCRATCH/sets"))
    monkeypatch.delenv("VIT_TEST_SCRATCH", raising=False)
    with pytest.raises(
        ValueError, match=r"data\.stage \$VIT_TEST_SCRATCH/sets: the variable VIT_TEST_SCRATCH is not set"
    ):
        stage.expand_folder(cfg.data.stage)
    monkeypatch.setenv("VIT_TEST_SCRATCH", str(local_disk))
    assert stage.expand_folder(cfg.data.stage) == local_disk / "sets"


def test_a_data_set_that_is_a_link_is_copied_with_the_manifest_of_its_target(
    source: Path, local_disk: Path, tmp_path: Path
) -> None:
    """The manifest is beside the file that the link points to."""
    link = tmp_path / "links" / "train.beton"
    link.parent.mkdir()
    link.symlink_to("../shared/train.beton")
    ((train, val),) = run_ranks(1, staged_paths, stage_config(link, local_disk), tmp_path)
    assert train == val == complete_copy(source, local_disk)
