"""Saving and pruning lose no checkpoint: after a kill at any time, on a full disk, and if the newest is damaged."""

import errno
import os
import random
import re
import signal
import time
from pathlib import Path

import torch

from tests.helpers.checkpoints import assert_holds_step, save_checkpoint, tensors_of_step
from vit.checkpoint.format import ReadBack, discard, find_checkpoints, prune, remove_partial_saves, step_of
from vit.checkpoint.load import load_checkpoint


def test_prune_keeps_the_newest_and_the_protected_checkpoints(tmp_path: Path) -> None:
    """Quarantined checkpoints and other files are kept too."""
    for step in (1, 2, 3, 20, 100):
        save_checkpoint(tmp_path, step, tensors_of_step(step), {})
    (tmp_path / "step-00000004.damaged-17").mkdir()
    (tmp_path / "notes.txt").touch()
    expected = ["notes.txt", "step-00000002", "step-00000004.damaged-17", "step-00000020", "step-00000100"]
    for _ in range(2):
        assert prune(tmp_path, 2, {2, 7, 100}) == ReadBack(100, "intact", older=20)
        assert sorted(path.name for path in tmp_path.iterdir()) == expected
    for step in (2, 20, 100):
        assert_holds_step(tmp_path / f"step-{step:08d}", step)
    assert prune(tmp_path / "none", 2) == ReadBack(None, "unreadable", problem=f"{tmp_path}/none has no checkpoint")


def test_prune_removes_nothing_if_the_newest_checkpoint_is_damaged(tmp_path: Path) -> None:
    """It is quarantined instead."""
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, tensors_of_step(step), {})
    content = bytearray((tmp_path / "step-00000004" / "part-001.bin").read_bytes())
    content[9] ^= 1
    (tmp_path / "step-00000004" / "part-001.bin").write_bytes(content)
    found = prune(tmp_path, 1)
    assert (found.step, found.state, found.older) == (4, "damaged", 3)
    assert re.search(r"step-00000004/part-001\.bin: model\.b, .* quarantined as step-00000004\.damaged", found.problem)
    assert [step_of(path) for path in find_checkpoints(tmp_path)] == [3, 2, 1]


def test_partial_saves_are_removed(tmp_path: Path) -> None:
    """Partly written checkpoints and partly removed ones have the same kind of name."""
    path = save_checkpoint(tmp_path, 5, tensors_of_step(5), {})
    (tmp_path / "step-00000101.tmp").mkdir()
    (tmp_path / "step-00000101.tmp" / "part-000.bin").write_bytes(b"partial")
    remove_partial_saves(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_at_any_time_loses_no_checkpoint(tmp_path: Path) -> None:
    """60 SIGKILLs of a process that saves and prunes in a loop.

    Every checkpoint with a final name can be loaded, and no completed save is lost.
    """
    delays, count = random.Random(0), 100_000
    step, partial_saves = 0, 0
    for _ in range(60):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    step += 1
                    save_checkpoint(tmp_path, step, tensors_of_step(step, count), {})
                    os.write(writer, step.to_bytes(4, "little"))
                    prune(tmp_path, keep=2)
            finally:
                os._exit(1)
        os.close(writer)
        os.read(reader, 4)  # wait for the first save
        time.sleep(delays.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "the saving process failed before it was killed"
        saved = [step + 1] + [int.from_bytes(word, "little") for word in iter(lambda: os.read(reader, 4), b"")]  # noqa: B023
        os.close(reader)
        partial_saves += any(tmp_path.glob("*.tmp"))
        found = find_checkpoints(tmp_path)
        for path in found:
            assert_holds_step(path, int(path.name[5:]))
        remove_partial_saves(tmp_path)
        step = step_of(found[0])
        assert step in (saved[-1], saved[-1] + 1)
        assert saved[-1] == step or found[1].name == f"step-{saved[-1]:08d}"
    assert partial_saves >= 10, "too few kills came during a save: the test proves nothing"


def test_a_save_to_a_full_disk_fails_and_loses_nothing(tiny_disk: Path) -> None:
    """If a part or the manifest does not fit, the save raises OSError, and older checkpoints are untouched."""
    older = save_checkpoint(tiny_disk, 1, tensors_of_step(1), {})
    many = {f"model.{i}": torch.zeros(1) for i in range(500)}  # 16 kB in each part, and a manifest of 100 kB
    failures = 0
    for free in range(0, 200_000, 10_000):
        ballast = tiny_disk / "ballast"
        ballast.write_bytes(bytes(max(0, os.statvfs(tiny_disk).f_bavail * os.statvfs(tiny_disk).f_bsize - free)))
        try:
            save_checkpoint(tiny_disk, 2 + free, many, {})
        except OSError as error:
            failures += 1
            assert error.errno == errno.ENOSPC  # noqa: PT017
            discard(tiny_disk, 2 + free)
            assert sorted(path.name for path in tiny_disk.iterdir()) == ["ballast", older.name]
            assert_holds_step(older, 1)
            ballast.unlink()
        else:
            break
    assert failures >= 5
    assert [path.name for path in find_checkpoints(tiny_disk)] == [f"step-{2 + free:08d}", older.name]
    load_checkpoint(find_checkpoints(tiny_disk)[0])  # the save that fitted
