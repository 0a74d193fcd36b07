"""Kills and interrupts: what a stopped command leaves on disk, and that killed workers are detected."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep import journal
from data_prep.encode import WorkerKilledError, encode_in_order, start_workers
from data_prep.publish import temporary_path
from data_prep.recipe import Recipe
from data_prep.sources.source import Source
from data_prep.write_beton import main
from tests.helpers.image_files import noise
from tests.helpers.waiting import wait_for
from tests.helpers.write_command import WriteCommand, are_same_files, file_names, needs_fashion_mnist
from vit.data.dataset_manifest import read_dataset_manifest


@contextlib.contextmanager
def command_in_progress(out: Path) -> Iterator[WriteCommand]:
    """The command while it writes all of Fashion-MNIST, when the first images are in the file."""
    temporary = temporary_path(out)
    out.parent.mkdir()
    arguments = ["fashion-mnist", "--split", "train", "--out", str(out), "--workers", "2"]
    command = WriteCommand(arguments, out.parent.parent / "stderr")
    try:
        while not (temporary.exists() and temporary.stat().st_size > 8 << 20):
            assert command.process.is_alive(), "the command ended too early"
            time.sleep(0.002)
        yield command
    finally:
        command.process.kill()
        command.process.join()


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@needs_fashion_mnist
def test_a_killed_command_leaves_no_file_and_can_be_repeated(tmp_path: Path) -> None:
    """After SIGKILL there is no file under the final name, its workers exit, and the next run cleans up."""
    out = tmp_path / "data" / "train.beton"
    with command_in_progress(out) as command:
        workers = command.workers()
        assert len(workers) == 2
        os.kill(command.pid, signal.SIGKILL)
        assert command.wait()[0] == -signal.SIGKILL
    assert file_names(out.parent) == {".train.beton.tmp"}
    wait_for(lambda: not any(map(is_running, workers)), "the workers exit", 10)
    assert main(["fashion-mnist", "--split", "train", "--out", str(out)]) == 0
    assert file_names(out.parent) == {"train.beton", "train.beton.json"}
    assert read_dataset_manifest(out).sha256 == hashlib.sha256(out.read_bytes()).hexdigest()


@needs_fashion_mnist
def test_a_killed_worker_ends_the_command(tmp_path: Path) -> None:
    """FFCV's own writer would wait for the worker forever."""
    out = tmp_path / "data" / "train.beton"
    with command_in_progress(out) as command:
        os.kill(command.workers()[1], signal.SIGKILL)
        code, stderr = command.wait()
    assert code == 1
    assert stderr.count("\n") == 1
    assert "worker process was killed" in stderr
    assert file_names(out.parent) == set()
    assert main(["fashion-mnist", "--split", "train", "--out", str(out), "--limit", "50"]) == 0


def test_a_worker_killed_while_it_sends_a_result_is_detected() -> None:
    """Its pipe contains part of the result; concurrent.futures would wait for the rest forever."""
    source = Source(("only",), [noise(1000, 1000)] * 8, np.zeros(8, np.int64))  # 3 MB each, more than a pipe holds
    with start_workers(2, source, Recipe(source="here", mode="raw", max_resolution=1000)) as pipes:
        results = encode_in_order(pipes, np.arange(8), 1)
        first = next(results)
        assert (first.image_records["height"].tolist(), len(first.contents[0])) == ([1000], 3_000_000)
        pipe = pipes[1]
        while not pipe.poll(0.01):  # until it has started to send
            pass
        max(multiprocessing.active_children(), key=lambda child: child.pid or 0).kill()
        with pytest.raises(WorkerKilledError):
            list(results)


@needs_fashion_mnist
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_command_leaves_nothing(name: str, tmp_path: Path) -> None:
    """Ctrl-C, or a scheduler's SIGTERM: one line on stderr, exit code 130."""
    out = tmp_path / "data" / "train.beton"
    with command_in_progress(out) as command:
        os.kill(command.pid, signal.Signals[name])
        code, stderr = command.wait()
    assert code == 130
    assert stderr.count("\n") == 1
    assert "interrupted" in stderr
    assert file_names(out.parent) == set()


@needs_fashion_mnist
def test_a_command_killed_many_times_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL of the process group or of the command alone, SIGINT, SIGTERM, at random moments, up to ten times."""
    undisturbed, out = tmp_path / "undisturbed" / "train.beton", tmp_path / "data" / "train.beton"
    arguments = ["fashion-mnist", "--split", "train", "--limit", "20000", "--workers", "2", "--out"]
    assert main([*arguments, str(undisturbed)]) == 0
    monkeypatch.setattr(journal, "INTERVAL", 0.02)
    rng = np.random.default_rng()
    fractions = [0.0]
    for attempt in range(10):
        command = WriteCommand([*arguments, str(out)], tmp_path / f"stderr-{attempt}")
        temporary = temporary_path(out)
        while (journal.resumable_fraction(temporary) or 0) <= fractions[-1] and command.process.is_alive():
            time.sleep(0.002)  # each attempt must get further than the one before
        time.sleep(rng.uniform(0, 0.05))
        if attempt % 2:
            os.killpg(command.pid, signal.SIGKILL)
        else:
            os.kill(command.pid, (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)[attempt // 2 % 3])
        code, stderr = command.wait()
        assert code in (-signal.SIGKILL, 130, 0), stderr
        if code == 0:
            break
        fractions.append(journal.resumable_fraction(temporary) or 0)
        assert not out.exists()
        assert code != 130 or f"interrupted; {fractions[-1]:.0%} of the images are done; to resume, run" in stderr
        assert not attempt or "resuming after" in stderr
    assert len(fractions) > 6
    assert main([*arguments, str(out)]) == 0
    assert are_same_files(out, undisturbed)
    assert file_names(out.parent) == {"train.beton", "train.beton.json"}
