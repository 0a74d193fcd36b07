"""Runs with the settings of each recipe, but small models, on one and two GPUs."""

import signal
from pathlib import Path

import pytest

from tests.helpers.gpu_runs import (
    ANSWERS,
    DISTINCT_RECIPES,
    RECIPES,
    STEPS_PER_EPOCH,
    TOP1,
    run_options,
    train_until_killed,
)
from tests.helpers.null_gpu_ranks import NullGpu
from vit import train
from vit.run.folder import RunFolder

EPOCHS = 4
KILLED_STEP = 5  # after two evaluations and several checkpoints

# Recipe, whether it is compiled, and the numbers of GPUs before and after the kill.
QUICK = [(recipe, recipe == "vit_b16", *((1, 2) if i % 2 else (2, 1))) for i, recipe in enumerate(DISTINCT_RECIPES)]
ALL = [(recipe, compiled, a, b) for recipe in RECIPES for compiled in (False, True) for a, b in ((1, 2), (2, 1))]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.campaign) for case in ALL if case not in QUICK)]


@pytest.mark.parametrize(("recipe", "compiled", "gpus_before", "gpus_after"), CASES)
def test_a_recipe_trains_is_killed_and_finishes_on_another_number_of_gpus(
    recipe: str, compiled: bool, gpus_before: int, gpus_after: int, null_gpu: NullGpu, jpegs: Path, tmp_path: Path
) -> None:
    """It steps, saves and evaluates, with deterministic algorithms; nothing raises."""
    often = ["--checkpoint.every_minutes", "0.0001", "--log.every_steps", "1"]
    options = run_options(recipe, compiled, jpegs, tmp_path, "--epochs", str(EPOCHS), *often)
    killed = null_gpu.run(train_until_killed, options, KILLED_STEP, ranks=gpus_before, answers=ANSWERS, timeout=200)
    assert killed == gpus_before * [-signal.SIGKILL]
    null_gpu.run(train.main, options, ranks=gpus_after, answers=ANSWERS, timeout=200)
    run = RunFolder(tmp_path / "run")
    started, finished = run.last("started"), run.finished()
    assert started is not None and finished is not None
    assert (started["device"], started["ranks"]) == ("cuda", gpus_after)
    assert KILLED_STEP - 1 <= started["step"] <= KILLED_STEP
    assert (finished["step"], finished["val_top1"], finished.get("skipped")) == (EPOCHS * STEPS_PER_EPOCH, TOP1, None)
