"""Saving to a disk that is full, read-only or fails; and the order of syncs and the rename."""

import io
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.helpers.disks import tmpfs_mounted
from tests.helpers.ranks import run_ranks
from tests.helpers.savers import SAVE_OFTEN, events, save_step, saved_steps, saver_on_rank
from vit.checkpoint.saver import Saver

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture
def small_run(tmp_path: Path) -> Iterator[Path]:
    """A run folder whose checkpoints are on a file system of 1 MiB: room for five of 160 kB and their manifests."""
    (tmp_path / "checkpoints").mkdir()
    with tmpfs_mounted(tmp_path / "checkpoints", "1m"):
        yield tmp_path


def fill_disk(run: Path, saver: Saver) -> None:
    """Leaves 100 kB of free space, less than a checkpoint needs."""
    if saver.world.rank == 0:
        disk = os.statvfs(run / "checkpoints")
        (run / "checkpoints" / "ballast").write_bytes(bytes(disk.f_bavail * disk.f_bsize - 100_000))
    dist.barrier()


def save_to_a_full_disk(run: Path) -> tuple[list[int | None], str]:
    """Saves four steps, the second and third to a full disk; returns the saved step after each, and the output."""
    with redirect_stdout(io.StringIO()) as output, saver_on_rank(run, 10_000) as (state, saver):
        saved = [save_step(state, saver, 1)]
        fill_disk(run, saver)
        saved += [save_step(state, saver, step) for step in (2, 3)]
        if saver.world.rank == 0:
            (run / "checkpoints" / "ballast").unlink()
        dist.barrier()
        saved.append(save_step(state, saver, 4))
    return saved, output.getvalue()


def test_training_continues_while_the_disk_is_full(small_run: Path) -> None:
    """The old checkpoint stays, later saves retry, the user is told once and at the end, no partial save remains."""
    (saved, output), (saved_of_rank_1, output_of_rank_1) = run_ranks(2, save_to_a_full_disk, small_run)
    assert saved == saved_of_rank_1 == [1, 1, 1, 4]
    folder = f"{small_run}/checkpoints/step-00000002.tmp"  # of either rank's part
    assert re.sub(r"/part-00[01]\.bin", "", output).splitlines() == [
        f"step 2 cannot be saved: No space left on device ({folder}); training continues and retries at the next save; "
        "the newest saved step is 1",
        "saving works again: step 4 is saved",
        f"2 saves failed during this run; see {small_run}/ledger.jsonl",
    ]
    assert output_of_rank_1 == ""
    failed = [e["error"] for e in events(small_run, "checkpoint failed")]
    assert all(error.startswith("No space left on device (") for error in failed)
    assert len(failed) == 2
    assert sorted(path.name for path in (small_run / "checkpoints").iterdir()) == ["step-00000001", "step-00000004"]
    assert saved_steps(small_run) == [4, 1]


def save_before_exit_to_a_full_disk(run: Path, protected: set[int]) -> str | None:
    """Fills the disk after three checkpoints, all of which are to be kept, and saves a fourth before exit."""
    with saver_on_rank(run, 10_000, replace(SAVE_OFTEN, keep=3)) as (state, saver):
        for step in (1, 2, 3):
            assert save_step(state, saver, step) == step
        saver.protected = lambda: protected
        fill_disk(run, saver)
        state.train(4)
        return saver.save_before_exit()


def test_a_save_before_exit_removes_old_checkpoints_if_the_disk_is_full(small_run: Path) -> None:
    """All but the newest and the protected ones."""
    assert run_ranks(2, save_before_exit_to_a_full_disk, small_run, {1}) == [None, None]
    assert saved_steps(small_run) == [4, 3, 1]


def test_a_save_before_exit_that_fails_names_the_newest_saved_step(small_run: Path) -> None:
    """If even removing old checkpoints frees too little; the newest one stays."""
    first, second = run_ranks(2, save_before_exit_to_a_full_disk, small_run, {1, 2})
    assert first == second
    assert re.fullmatch(
        r"step 4 is not saved: No space left on device \(.*/step-00000004\.tmp.*\); the newest saved step is 3", first
    )
    assert saved_steps(small_run) == [3, 2, 1]


def remount(run: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(run / "checkpoints")], check=True)


def save_to_a_read_only_disk(run: Path) -> tuple[int | None, str | None]:
    with saver_on_rank(run, 1000) as (state, saver):
        for step in (1, 2):
            save_step(state, saver, step)
        if saver.world.rank == 0:
            remount(run, "ro")
        dist.barrier()
        saved_step = save_step(state, saver, 3)
        return saved_step, saver.save_before_exit()


def test_a_disk_that_becomes_read_only_does_not_end_training(small_run: Path) -> None:
    """As after a file system error; no old checkpoint is removed, as that would not help."""
    folder = small_run / "checkpoints" / "step-00000003.tmp"
    message = f"step 3 is not saved: Read-only file system ({folder}); the newest saved step is 2"
    assert run_ranks(2, save_to_a_read_only_disk, small_run) == [(2, message)] * 2
    remount(small_run, "rw")
    assert saved_steps(small_run) == [2, 1]


@contextmanager
def strace_writer(saver: Saver, trace: Path, *options: str) -> Iterator[bool]:
    """Attaches strace to the writer; yields whether that is permitted."""
    command = ["strace", "-f", "-y", "-p", str(saver.writer.pid), "-o", str(trace), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None
        yield b"attached" in strace.stderr.readline()
        strace.send_signal(signal.SIGINT)


def save_with_failing_calls(run: Path, call: str) -> list[int | None]:
    """Saves three steps; during the second, the writer's system calls of that name fail with EIO."""
    with saver_on_rank(run) as (state, saver):
        saved = [save_step(state, saver, 1)]
        options = ("-e", f"trace={call}", "-e", f"inject={call}:error=EIO")
        with strace_writer(saver, run / "trace", *options) as attached:
            if not attached:
                return []
            saved.append(save_step(state, saver, 2))
        return [*saved, save_step(state, saver, 3)]


@needs_strace
@pytest.mark.parametrize("call", ["openat", "mkdir", "fsync", "rename"])
def test_an_io_error_fails_only_the_save_in_progress(call: str, tmp_path: Path) -> None:
    """EIO of any system call, including the fsync of a folder: older checkpoints stay, and the next save succeeds."""
    (saved,) = run_ranks(1, save_with_failing_calls, tmp_path, call)
    if not saved:
        pytest.skip("strace may not attach here")
    assert saved == [1, 1, 3]
    (failed,) = events(tmp_path, "checkpoint failed")
    assert re.fullmatch(rf"Input/output error \({tmp_path}/checkpoints.*\)", failed["error"])
    assert saved_steps(tmp_path) == [3, 1]


def save_under_strace(run: Path) -> bool:
    """Saves one step while strace records the writer's system calls; False if strace may not attach."""
    with saver_on_rank(run) as (state, saver):
        with strace_writer(saver, run / "trace", "-e", "trace=fsync,rename") as attached:
            save_step(state, saver, 1)
        return attached


@needs_strace
def test_a_checkpoint_is_renamed_after_everything_is_synced(tmp_path: Path) -> None:
    """Part, manifest, their folder and the logs are synced before the rename, and the parent folders after it."""
    for log in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / log).write_text("{}\n")
    if run_ranks(1, save_under_strace, tmp_path) != [True]:
        pytest.skip("strace may not attach here")
    calls = re.findall(r"(fsync|rename)\((?:\d+<|\")([^>\"]*)", (tmp_path / "trace").read_text())
    temporary = "checkpoints/step-00000001.tmp"
    assert [(call, path.removeprefix(f"{tmp_path}/")) for call, path in calls] == [
        ("fsync", f"{temporary}/part-000.bin"),
        ("fsync", f"{temporary}/manifest.json"),
        ("fsync", temporary),
        ("fsync", "metrics.jsonl"),
        ("fsync", "samples.jsonl"),
        ("rename", temporary),
        ("fsync", "checkpoints"),
        ("fsync", str(tmp_path)),
    ]
