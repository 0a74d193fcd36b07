"""Which checkpoints a run keeps."""

import signal
from dataclasses import replace
from pathlib import Path

from tests.helpers.interrupted_runs import (
    Fault,
    checkpoints,
    learning_curve,
    new_run_folder,
    run_attempt,
    short_config,
)
from tests.helpers.ranks import run_ranks
from vit.checkpoint.format import step_of
from vit.train import Outcome


def test_the_best_the_newest_and_every_nth_epoch_are_kept(betons: Path, tmp_path: Path) -> None:
    """The best one by the EMA's accuracy, however old; also across a restart."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    # An EMA that follows at once, and a learning rate that soon makes the accuracy worse.
    cfg = replace(cfg, epochs=2, optim=replace(cfg.optim, lr=0.3, ema_decay=0.01), seed=3)
    cfg = replace(cfg, log=replace(cfg.log, eval_every_epochs=96 / 512))  # each step
    cfg = replace(cfg, checkpoint=replace(cfg.checkpoint, keep=1, keep_every_epochs=0.75))
    run_ranks(2, run_attempt, cfg, run, Fault(6, 0, signal.SIGTERM))
    assert run_ranks(2, run_attempt, cfg, run) == [Outcome.FINISHED] * 2
    scores = {r["step"]: r["val_top1_average"] for r in learning_curve(run) if "val_top1" in r}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert best not in {4, 8, 10, 11}, "choose another seed: this checkpoint would be kept in any case"
    # With 512 samples in batches of 96, 0.75 and 1.5 epochs are 4 and 8 steps.
    assert {step_of(path) for path in checkpoints(run)} == {best, 4, 8, 11}


def test_an_extended_run_keeps_its_last_evaluation_and_its_best_checkpoint(betons: Path, tmp_path: Path) -> None:
    """The last step was evaluated because the run ended there; when it goes on, that evaluation is not repeated."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    cfg = replace(cfg, optim=replace(cfg.optim, ema_decay=0), checkpoint=replace(cfg.checkpoint, keep=1))
    cfg = replace(cfg, log=replace(cfg.log, eval_every_epochs=0.75))  # 4 steps
    assert run_ranks(2, run_attempt, cfg, run) == [Outcome.FINISHED] * 2
    before = {r["step"]: r for r in learning_curve(run) if "val_top1" in r}
    assert list(before) == [4, 6]
    # A learning rate with which no later step is better than the best one so far.
    worse = replace(cfg, epochs=2, optim=replace(cfg.optim, lr=10.0))
    run_ranks(2, run_attempt, worse, run, None, ("epochs", "optim.lr"))
    after = {r["step"]: r for r in learning_curve(run) if "val_top1" in r}
    assert list(after) == [4, 6, 8, 11]
    assert [after[4], after[6]] == [before[4], before[6]]
    best = max(after, key=lambda step: (after[step]["val_top1"], -step))
    assert best <= 6, "choose another learning rate: a later checkpoint is the best one"
    assert {step_of(path) for path in checkpoints(run)} == {best, 11}
