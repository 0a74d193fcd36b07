"""Steps that are not finite: the run rolls back, skips them, and never saves weights that are not finite."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.interrupted_runs import (
    ALL_RANKS,
    DURING_ROLLBACK,
    Fault,
    assert_same_run,
    assert_same_tensors,
    checkpoints,
    final_tensors,
    learning_curve,
    logged_samples,
    new_run_folder,
    newest_metadata,
    run_attempt,
    save_each_step,
    short_config,
)
from tests.helpers.ranks import run_ranks
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.skipped_steps import recipe_checksum
from vit.run.folder import RunFolder
from vit.train import Outcome


@pytest.fixture(scope="module")
def without_step_4(betons: Path, uninterrupted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run whose ledger says from the start that step 4 is to be skipped."""
    run = new_run_folder(tmp_path_factory.mktemp("without-step-4"))
    recipe = newest_metadata(uninterrupted)["recipe"]
    RunFolder(run).record("skipped", step=4, why="a test", recipe=recipe_checksum(recipe))
    assert run_ranks(4, run_attempt, short_config(betons), run) == [Outcome.FINISHED] * 4
    return run


def assert_skipped(run: Path, steps: list[int]) -> None:
    """They are in the newest checkpoint, once each in the ledger, and in neither learning curve nor samples.jsonl."""
    assert newest_metadata(run)["skipped"] == steps
    assert [e["step"] for e in RunFolder(run).events() if e["event"] == "skipped"] == steps
    assert not {r["step"] for r in learning_curve(run) if "loss" in r} & set(steps)
    assert not {step for step, _, _ in logged_samples(run)} & set(steps)


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_a_step_that_is_not_finite_is_skipped(
    with_checkpoint: bool, betons: Path, uninterrupted: Path, without_step_4: Path, tmp_path: Path
) -> None:
    """After a rollback to the newest checkpoint or to step 0; same bits as if it was skipped from the start."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    cfg = save_each_step(cfg) if with_checkpoint else cfg
    assert run_ranks(4, run_attempt, cfg, run, None, (), (3,)) == [Outcome.FINISHED] * 4
    assert_same_run(run, without_step_4)
    assert_skipped(run, [4])
    expected = final_tensors(uninterrupted)
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in final_tensors(run).items())


@pytest.mark.parametrize(("step", "ranks"), [(DURING_ROLLBACK, (4, 1)), (5, (2, 4))])
def test_a_skipped_step_stays_skipped_after_a_kill(
    step: int, ranks: tuple[int, int], betons: Path, without_step_4: Path, tmp_path: Path
) -> None:
    """During the rollback, when only the ledger knows of it, and later; then on another number of ranks."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    killed = run_ranks(ranks[0], run_attempt, cfg, run, Fault(step, ALL_RANKS, signal.SIGKILL), (), (3,))
    assert killed == [-signal.SIGKILL] * ranks[0]
    finished = run_ranks(ranks[1], run_attempt, save_each_step(cfg), run, None, (), (3,))
    assert finished == [Outcome.FINISHED] * ranks[1]
    assert_same_run(run, without_step_4)
    assert_skipped(run, [4])


def test_the_first_bad_step_is_found_if_the_loss_is_checked_later(
    betons: Path, without_step_4: Path, tmp_path: Path
) -> None:
    """By then all weights are NaN; a stop before the check detects it too, and does not save them."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    late = replace(cfg, log=replace(cfg.log, every_steps=6, eval_every_epochs=9))
    stopped = run_ranks(4, run_attempt, late, run, Fault(4, 0, signal.SIGTERM), (), (3,))
    assert stopped == [Outcome.STOPPED] * 4
    assert run_ranks(4, run_attempt, late, run, None, (), (3,)) == [Outcome.FINISHED] * 4
    assert_same_tensors(run, without_step_4)
    assert_skipped(run, [4])


def test_a_run_ends_if_too_many_steps_are_skipped(betons: Path, tmp_path: Path) -> None:
    """The message names the steps; under another recipe, steps after the checkpoint are tried again."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    cfg = replace(cfg, optim=replace(cfg.optim, max_skipped=2))
    message = r"^the loss of step 6 is not finite, after steps 3, 5 were .*max_skipped allows 2; a lower optim\.lr"
    for _ in range(2):  # also when the same command is run again
        with pytest.raises(FloatingPointError, match=message):
            run_ranks(4, run_attempt, cfg, run, None, (), (2, 4, 5))
    lower = replace(cfg, optim=replace(cfg.optim, lr=1e-4))
    assert run_ranks(4, run_attempt, lower, run, None, ("optim.lr",), ()) == [Outcome.FINISHED] * 4
    assert newest_metadata(run)["skipped"] == [3], "the newest checkpoint was of step 4, before step 5 was skipped"


def test_weights_that_are_not_finite_are_never_saved(betons: Path, tmp_path: Path) -> None:
    """Even if the loss is checked rarely and a checkpoint is due at each step."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    diverging = replace(cfg.optim, lr=1e30, clip_norm=0.0, warmup_epochs=0.0, max_skipped=1)
    run_ranks(2, run_attempt, cfg, run, Fault(1, 0, signal.SIGTERM))
    with pytest.raises(FloatingPointError, match=r"is not finite, after .* a lower optim\.lr may help"):
        run_ranks(
            2,
            run_attempt,
            save_each_step(replace(cfg, optim=diverging), log_every_steps=6),
            run,
            None,
            ("optim.lr", "optim.clip_norm"),
        )
    assert checkpoints(run)
    for checkpoint in checkpoints(run):
        assert all(tensor.isfinite().all() for tensor in load_checkpoint(checkpoint)[0].values()), checkpoint
