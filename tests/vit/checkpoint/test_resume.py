"""An interrupted run ends with the same bits as an uninterrupted one, on four ranks.

Two ranks would not be enough: the sum of two numbers does not depend on their order.
"""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.interrupted_runs import (
    ALL_RANKS,
    STEPS,
    Fault,
    assert_same_run,
    checkpoints,
    learning_curve,
    logged_samples,
    new_run_folder,
    newest_metadata,
    run_attempt,
    save_each_step,
    short_config,
    trained_samples,
)
from tests.helpers.ranks import run_ranks
from vit.config.schema import Config
from vit.distributed.world import join_process_group
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.train import Outcome, Trainer


def test_an_epoch_contains_each_sample_once(uninterrupted: Path) -> None:
    """512 samples in five batches of 96 and a third of the sixth."""
    order = [sample for _, ids in sorted(trained_samples(uninterrupted).items()) for sample in ids]
    assert len(order) == STEPS * 96
    assert sorted(order[:512]) == list(range(512))
    assert [sample for _, _, ids in logged_samples(uninterrupted) for sample in ids] == order


@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
def test_a_run_stopped_after_any_step_ends_with_the_same_bits(
    step: int, betons: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """One of four ranks receives SIGTERM: all of them save and stop, two steps later at the latest.

    In the first step, in the last one, and such that the run resumes at the batch with samples of two epochs.
    """
    run = new_run_folder(tmp_path / "run")
    stopped = run_ranks(4, run_attempt, short_config(betons), run, Fault(step, step % 4, signal.SIGTERM))
    assert stopped == [Outcome.STOPPED] * 4
    assert run_ranks(4, run_attempt, short_config(betons), run) == [Outcome.FINISHED] * 4
    assert_same_run(run, uninterrupted)
    assert trained_samples(run) == trained_samples(uninterrupted)


def test_a_killed_run_resumes_from_its_newest_checkpoint(betons: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """SIGKILL of all ranks, twice: steps after the checkpoint are repeated, and the curve has each step once."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    killed = [-signal.SIGKILL] * 4
    assert run_ranks(4, run_attempt, save_each_step(cfg), run, Fault(3, ALL_RANKS, signal.SIGKILL)) == killed
    assert checkpoints(run), "no checkpoint was written before the kill"
    assert run_ranks(4, run_attempt, save_each_step(cfg), run, Fault(4, ALL_RANKS, signal.SIGKILL)) == killed
    assert run_ranks(4, run_attempt, cfg, run) == [Outcome.FINISHED] * 4
    assert_same_run(run, uninterrupted)


@pytest.mark.parametrize("ranks", [(4, 2, 1), (1, 4), (2, 4)])
def test_a_run_may_resume_on_another_number_of_ranks(
    ranks: tuple[int, ...], betons: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Each step has the same samples, and the run ends with the same bits."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    for i, count in enumerate(ranks[:-1]):
        stopped = run_ranks(count, run_attempt, cfg, run, Fault(1 + 2 * i, 0, signal.SIGUSR2))
        assert stopped == [Outcome.STOPPED] * count
    assert run_ranks(ranks[-1], run_attempt, cfg, run) == [Outcome.FINISHED] * ranks[-1]
    assert_same_run(run, uninterrupted)


def test_an_fp16_run_resumes_with_its_gradient_scaler(betons: Path, tmp_path: Path) -> None:
    """On 4, 2 and 1 ranks, with the same bits; the scale and its growth counter are restored too."""
    cfg = short_config(betons, precision="fp16")
    uninterrupted, run = new_run_folder(tmp_path / "uninterrupted"), new_run_folder(tmp_path / "run")
    assert run_ranks(4, run_attempt, cfg, uninterrupted) == [Outcome.FINISHED] * 4
    assert run_ranks(4, run_attempt, cfg, run, Fault(1, 0, signal.SIGTERM)) == [Outcome.STOPPED] * 4
    assert run_ranks(2, run_attempt, cfg, run, Fault(3, 1, signal.SIGTERM)) == [Outcome.STOPPED] * 2
    assert run_ranks(1, run_attempt, cfg, run) == [Outcome.FINISHED]
    assert_same_run(run, uninterrupted)
    assert newest_metadata(run)["scaler"] == newest_metadata(uninterrupted)["scaler"]
    assert newest_metadata(run)["scaler"]["_growth_tracker"] == STEPS


def stop_in_evaluation(cfg: Config, run: Path) -> int:
    """Rank 3 receives SIGUSR1 in round 0 of its first evaluation; returns the last round that this rank started."""
    with join_process_group(cfg) as world:
        trainer = Trainer(cfg, RunFolder(run), world, Clock(time.time()), [])
        rounds = []
        batches = trainer.val_data.batches

        def batches_with_signal() -> Any:
            for i, batch in enumerate(batches()):
                if world.rank == 3 and i == 0:
                    os.kill(os.getpid(), signal.SIGUSR1)
                rounds.append(i)
                yield batch

        trainer.val_data.batches = batches_with_signal  # type: ignore[method-assign]
        assert trainer.train() is Outcome.STOPPED
        trainer.agreement.close()
        return rounds[-1]


def test_a_signal_interrupts_an_evaluation(betons: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """The run stops before the evaluation is complete, and repeats it when it resumes."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    assert set(run_ranks(4, stop_in_evaluation, cfg, run)) == {1}
    assert [r for r in learning_curve(run) if "val_top1" in r] == []
    assert run_ranks(4, run_attempt, cfg, run) == [Outcome.FINISHED] * 4
    assert_same_run(run, uninterrupted)


def test_a_damaged_checkpoint_is_quarantined_and_an_older_one_is_used(
    betons: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """After one flipped bit in the newest checkpoint the run still ends with the same bits."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    save_often = save_each_step(replace(cfg, checkpoint=replace(cfg.checkpoint, keep=3)))
    run_ranks(4, run_attempt, save_often, run, Fault(4, 1, signal.SIGTERM))
    newest, older, *_ = checkpoints(run)
    with (newest / "part-000.bin").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 16]))
    assert run_ranks(4, run_attempt, cfg, run) == [Outcome.FINISHED] * 4
    assert_same_run(run, uninterrupted)
    (damaged,) = [e for e in RunFolder(run).events() if e["event"] == "damaged checkpoint"]
    assert newest.name in damaged["problem"]
    assert older.exists() or len(checkpoints(run)) == cfg.checkpoint.keep
