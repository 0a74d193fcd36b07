"""Saving while training continues, and resuming on another number of ranks."""

import io
import os
import shutil
import signal
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.ranks import run_ranks
from tests.helpers.savers import SAVE_OFTEN, events, save_step, saved_steps, saver_on_rank
from tests.helpers.waiting import wait_for
from vit.checkpoint.resume import newest_intact_checkpoint
from vit.config.schema import Config
from vit.distributed.stop_signals import Agreement
from vit.distributed.world import join_process_group
from vit.run.folder import RunFolder


def train_and_save(run: Path, saves: int) -> tuple[int, list[int | None]]:
    """Trains until all ranks have written that many parts; returns the last step, and the saved step after each one."""
    with saver_on_rank(run, 30_000) as (state, saver):
        agreement, saved, parts_written = Agreement(saver.world), [], 0
        while parts_written < saves:
            state.train(state.step + 1)
            _, save, parts_written = agreement.exchange(saver.due, saver.parts_written)
            saver.advance(parts_written)
            if save:
                saver.save()
            saved.append(saver.saved_step)
        state.train(state.step + 1)
        assert saver.save_before_exit() is None
        agreement.close()
        saver.wait_until_pruned()
        return state.step, saved


def test_training_continues_during_a_save(tmp_path: Path) -> None:
    """On four ranks, updates during the write do not change what is written; saves are committed in order."""
    last, saved = run_ranks(4, train_and_save, tmp_path, 3)[0]
    committed = [event["step"] for event in events(tmp_path, "checkpoint")]
    assert len(committed) >= 4
    assert sorted({*saved, *committed} - {None}) == committed
    assert len({*saved}) > 2
    assert saved_steps(tmp_path) == [last, committed[-2]]
    parts = {f"part-{rank:03d}.bin" for rank in range(4)}
    assert {p.name for p in (tmp_path / "checkpoints" / f"step-{last:08d}").iterdir()} == {"manifest.json", *parts}


def load_newest(run: Path) -> tuple[int, float] | None:
    """The step of the newest intact checkpoint, and the sum of the tensors that this rank read."""
    with join_process_group(Config(device="cpu")) as world:
        loaded = newest_intact_checkpoint(RunFolder(run), world)
        return loaded and (loaded[2]["step"], sum(float(t.sum()) for t in loaded[1].values()))


def save_two_steps(run: Path) -> None:
    with saver_on_rank(run) as (state, saver):
        assert [save_step(state, saver, step) for step in (1, 2)] == [1, 2]


@pytest.fixture(scope="module")
def run_of_four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 and 2, written by four ranks; step 2 is damaged, and step 3 is a partial save."""
    run = tmp_path_factory.mktemp("four-ranks")
    run_ranks(4, save_two_steps, run)
    os.truncate(run / "checkpoints" / "step-00000002" / "part-003.bin", 100)
    (run / "checkpoints" / "step-00000003.tmp").mkdir()
    return run


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_reads_a_checkpoint_of_four(ranks: int, run_of_four_ranks: Path, tmp_path: Path) -> None:
    """A newer, damaged checkpoint is quarantined and reported once, and a partial save is removed."""
    run = tmp_path / "run"
    shutil.copytree(run_of_four_ranks, run)
    assert run_ranks(ranks, load_newest, run) == [(1, 1000 * (4 * 1 + 1.5))] * ranks
    (damaged,) = events(run, "damaged checkpoint")
    assert "step-00000002/part-003.bin has 100 bytes instead of 4,032" in damaged["problem"]
    older, quarantined = sorted((run / "checkpoints").iterdir())
    assert (older.name, quarantined.name.partition("-1")[0]) == ("step-00000001", "step-00000002.damaged")
    os.truncate(older / "part-000.bin", 100)
    assert run_ranks(ranks, load_newest, run) == [None] * ranks


def train_with_a_stopped_writer(run: Path) -> None:
    """Trains for ten steps while the writer is stopped."""
    with saver_on_rank(run) as (state, saver):
        assert saver.writer.pid is not None
        os.kill(saver.writer.pid, signal.SIGSTOP)
        saver.save()
        for step in range(1, 11):
            state.train(step)
            assert not saver.due
            saver.advance(saver.parts_written)
        assert saver.saved_step is None
        os.kill(saver.writer.pid, signal.SIGCONT)
        assert saver.finish() == 0
        saver.wait_until_pruned()
        assert saver.due


def test_a_slow_disk_delays_the_next_save_but_not_training(tmp_path: Path) -> None:
    """The delay is recorded once, and the checkpoint contains the state at the time of the save."""
    run_ranks(1, train_with_a_stopped_writer, tmp_path)
    assert [event["behind"] for event in events(tmp_path, "checkpoint delayed")] == [0]
    assert saved_steps(tmp_path) == [0]


def save_before_the_last_commit(run: Path) -> int | None:
    """Starts a save, as an evaluation does, while the previous one is written but not committed."""
    with saver_on_rank(run) as (state, saver):
        state.train(1)
        saver.save()
        wait_for(lambda: (saver.advance(0), saver.parts_written)[1] == 1, "the part")
        assert saver.writer.pid is not None
        os.kill(saver.writer.pid, signal.SIGSTOP)
        saver.advance(1)
        state.train(2)
        saver.save()
        state.train(3)
        os.kill(saver.writer.pid, signal.SIGCONT)
        wait_for(lambda: (saver.advance(0), saver.saved_step)[1] is not None, "the commit")
        assert saver.saved_step == 1
        saved_step = saver.finish()
        saver.wait_until_pruned()
        return saved_step


def test_a_save_may_start_before_the_previous_one_is_committed(tmp_path: Path) -> None:
    """Both are committed, each with the state of its step."""
    assert run_ranks(1, save_before_the_last_commit, tmp_path) == [2]
    assert [event["step"] for event in events(tmp_path, "checkpoint")] == [1, 2]
    assert saved_steps(tmp_path) == [2, 1]


def save_with_blocked_pruning(run: Path) -> str:
    """Saves three steps; the first cannot be removed, as the name that it would get is taken.  Returns the output."""
    with (
        redirect_stdout(io.StringIO()) as output,
        saver_on_rank(run, cfg=replace(SAVE_OFTEN, keep=1)) as (state, saver),
    ):
        save_step(state, saver, 1)
        (run / "checkpoints" / "step-00000001.tmp" / "taken").mkdir(parents=True)
        for step in (2, 3):
            save_step(state, saver, step)
    return output.getvalue()


def test_a_failure_to_remove_old_checkpoints_is_printed_once(tmp_path: Path) -> None:
    """Training and saving continue; the ledger has every failure."""
    (output,) = run_ranks(1, save_with_blocked_pruning, tmp_path)
    assert output.count("\n") == 1
    assert output.startswith("old checkpoints cannot be removed: [Errno 39] Directory not empty: ")
    assert ["Directory not empty" in e["error"] for e in events(tmp_path, "pruning failed")] == [True, True]
    assert saved_steps(tmp_path) == [3, 1]
