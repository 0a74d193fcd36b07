"""A run with several image sizes that is interrupted at their borders ends with the same bits, on 4, 2 and 1 ranks."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.interrupted_runs import (
    ALL_RANKS,
    STEPS,
    Fault,
    assert_same_run,
    assert_same_tensors,
    checkpoints,
    logged_samples,
    new_run_folder,
    newest_metadata,
    run_attempt,
    save_each_step,
    short_config,
    trained_samples,
)
from tests.helpers.ranks import run_ranks
from vit.checkpoint.skipped_steps import recipe_checksum
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.run.folder import RunFolder
from vit.train import Outcome

# Steps 0 and 1 at 14 pixels in four micro-batches of 24, 2 and 3 at 21 in eight of 12, 4 and 5 at 28 in four again.
SIZES = ((1 / 3, 14), (1 / 3, 21, 12), (1 / 3, 28))


def sized_config(betons: Path) -> Config:
    """`short_config` with three image sizes, two steps each, and other micro-batches at one of them."""
    cfg = short_config(betons, train_sizes=SIZES)
    augment = replace(cfg.augment, randaugment="timm", randaugment_ramp=True, randaugment_deviation=0.5, erasing=0.5)
    return replace(cfg, augment=augment)


@pytest.fixture(scope="module")
def undisturbed(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on four ranks without interruption."""
    run, cfg = new_run_folder(tmp_path_factory.mktemp("sizes")), sized_config(betons)
    assert run_ranks(4, run_attempt, cfg, run) == [Outcome.FINISHED] * 4
    schedule = RunSchedule(cfg, samples=512)
    sizes = [(schedule.config(s).model.image_size, schedule.config(s).micro_batches) for s in range(STEPS)]
    assert sizes == [(14, 4)] * 2 + [(21, 8)] * 2 + [(28, 4)] * 2
    return run


def test_all_sizes_use_each_sample_of_an_epoch_once_as_a_run_of_one_size_does(
    undisturbed: Path, uninterrupted: Path
) -> None:
    """The order of the samples does not depend on the sizes."""
    order = [sample for _, ids in sorted(trained_samples(undisturbed).items()) for sample in ids]
    assert len(order) == STEPS * 96
    assert sorted(order[:512]) == list(range(512))
    assert trained_samples(undisturbed) == trained_samples(uninterrupted)
    assert [sample for _, _, ids in logged_samples(undisturbed) for sample in ids] == order


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4])
def test_a_run_stopped_before_at_and_after_the_border_of_two_sizes_ends_with_the_same_bits(
    step: int, betons: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Four ranks stop at a step, and 2 or 1 continue at the size of the next one."""
    run, cfg = new_run_folder(tmp_path / "run"), sized_config(betons)
    others = (2, 1, 4)[step % 3]
    assert run_ranks(4, run_attempt, cfg, run, Fault(step, step % 4, signal.SIGTERM)) == [Outcome.STOPPED] * 4
    assert run_ranks(others, run_attempt, cfg, run) == [Outcome.FINISHED] * others
    assert_same_run(run, undisturbed)


def test_a_run_killed_on_4_2_and_1_ranks_in_each_size_ends_with_the_same_bits(
    betons: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """SIGKILL of all ranks at the last step of a size, and at the first one of the next."""
    run, cfg = new_run_folder(tmp_path / "run"), sized_config(betons)
    for ranks, step in ((4, 1), (2, 2), (1, 4)):
        killed = run_ranks(ranks, run_attempt, save_each_step(cfg), run, Fault(step, ALL_RANKS, signal.SIGKILL))
        assert killed == [-signal.SIGKILL] * ranks
        assert checkpoints(run), "no checkpoint was written before the kill"
    assert run_ranks(4, run_attempt, cfg, run) == [Outcome.FINISHED] * 4
    assert_same_run(run, undisturbed)


def test_a_rollback_crosses_a_change_of_the_image_size(betons: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The first step of a size is not finite, which is found in the next size: the run goes back to step 0."""
    run, expected, cfg = new_run_folder(tmp_path / "run"), new_run_folder(tmp_path / "expected"), sized_config(betons)
    recipe = newest_metadata(undisturbed)["recipe"]
    RunFolder(expected).record("skipped", step=3, why="a test", recipe=recipe_checksum(recipe))
    assert run_ranks(4, run_attempt, cfg, expected) == [Outcome.FINISHED] * 4
    late = replace(cfg, log=replace(cfg.log, every_steps=5, eval_every_epochs=1.0))
    assert run_ranks(2, run_attempt, late, run, None, (), (2,)) == [Outcome.FINISHED] * 2
    assert newest_metadata(run)["skipped"] == [3]
    assert_same_tensors(run, expected)
