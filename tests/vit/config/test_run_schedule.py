"""The steps of a run with several image sizes."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from vit.config.parser import config_from_text, load_config
from vit.config.recipe import recipe_of
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config, to_yaml
from vit.config.sections import AugmentConfig, ModelConfig, OptimConfig
from vit.config.user_error import UserError
from vit.optim.schedule import learning_rate
from vit.training.milestones import Milestones

SIZES = ((0.25, 64, 16), (0.25, 96, 8), (0.5, 224))


def config(**changes: Any) -> Config:
    defaults: dict[str, Any] = {"epochs": 10, "global_batch": 32, "micro_batch": 4, "train_sizes": SIZES}
    return Config(**defaults | changes)


def test_each_stage_has_its_share_of_the_steps_its_size_and_its_micro_batch() -> None:
    schedule = RunSchedule(config(), samples=999)
    total = math.ceil(10 * 999 / 32)
    assert schedule.total_steps == total == 313
    assert [(s.start, s.stop) for s in schedule.stages] == [(0, 79), (79, 157), (157, 313)]
    for step, side, micro_batch in ((0, 64, 16), (78, 64, 16), (79, 96, 8), (156, 96, 8), (157, 224, 4), (312, 224, 4)):
        cfg = schedule.config(step)
        assert (cfg.model.image_size, cfg.micro_batch, cfg.global_batch) == (side, micro_batch, 32), step
    assert schedule.config(313).model.image_size == 224  # evaluation and saving happen after the last step


def test_without_sizes_a_run_has_the_steps_and_epochs_that_it_always_had() -> None:
    for samples, epochs in ((999, 10), (60_000, 6), (1_281_167, 300)):
        cfg = config(train_sizes=(), epochs=epochs)
        schedule = RunSchedule(cfg, samples)
        assert schedule.total_steps == cfg.steps(epochs, samples)
        for step in range(0, schedule.total_steps, max(1, schedule.total_steps // 50)):
            assert schedule.config(step) is cfg
            assert schedule.work(step) == step
            assert schedule.epoch(step) == step * 32 / samples
        for part in (0.5, 1, 1.7, epochs):
            assert schedule.steps(part) == cfg.steps(part, samples)


def test_epochs_that_count_pixels_take_the_computation_of_full_images() -> None:
    """Each stage has its share of all pixels, so more steps the smaller its images are."""
    cfg, samples = config(epochs_count="pixels"), 50_000
    schedule = RunSchedule(cfg, samples)
    work = 10 * samples / 32  # steps at 224 pixels
    for stage, (share, side, *_) in zip(schedule.stages, SIZES, strict=True):
        assert (stage.stop - stage.start) * (side / 224) ** 2 == pytest.approx(share * work, abs=1)
    assert schedule.work(schedule.total_steps) == pytest.approx(work, abs=1)
    assert schedule.epoch(schedule.total_steps) == pytest.approx(10, abs=0.01)
    assert schedule.steps(2.5) == schedule.stages[0].stop
    assert schedule.steps(5) == schedule.stages[1].stop
    for epochs in np.arange(0, 10, 0.37).tolist():
        step = schedule.steps(epochs)
        assert schedule.epoch(step) >= epochs > schedule.epoch(step - 1) or step == 0


@pytest.mark.parametrize("count", ["images", "pixels"])
def test_epochs_the_learning_rate_and_evaluations_advance_steadily_over_the_borders(count: str) -> None:
    cfg = config(epochs_count=count, optim=OptimConfig(lr=1e-2, warmup_epochs=2, final_lr=1e-5))
    schedule = RunSchedule(cfg, samples=2000)
    milestones, rates = Milestones(schedule), [learning_rate(s, schedule) for s in range(schedule.total_steps)]
    peak = rates.index(max(rates))
    assert schedule.epoch(peak) == pytest.approx(2, abs=0.05)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5, rel=0.01)
    largest = max(abs(b - a) for a, b in itertools.pairwise(rates))
    assert largest < 2.1e-2 / (2 * 2000 / 32), "the learning rate jumps"
    due = [step for step in range(schedule.total_steps + 1) if milestones.evaluation_due(step)]
    assert len(due) == 10
    assert all(schedule.epoch(step) == pytest.approx(i, abs=0.02) for i, step in enumerate(due, 1))
    positions = [milestones.position(step)["epoch"] for step in range(schedule.total_steps + 1)]
    assert positions == sorted(positions)
    assert positions[-1] == 10


def test_the_magnitude_of_randaugment_rises_in_equal_parts_of_the_run() -> None:
    augment = AugmentConfig(randaugment="timm", randaugment_ops=2, randaugment_magnitude=9, randaugment_ramp=True)
    schedule = RunSchedule(config(augment=augment, epochs_count="pixels"), samples=50_000)
    magnitudes = [schedule.config(step).augment.randaugment_magnitude for step in range(schedule.total_steps)]
    assert magnitudes == sorted(magnitudes)
    for magnitude in range(10):
        first = magnitudes.index(magnitude)
        assert schedule.work(first) / schedule.work(schedule.total_steps) == pytest.approx(magnitude / 10, abs=1e-3)
    assert not schedule.config(0).augment.randaugment_ramp


def test_sizes_are_read_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train_sizes:\n- [0.5, 64]\n- [0.5, 96, 128]\n")
    cfg = load_config(tmp_path / "a.yaml")
    assert cfg.train_sizes == ((0.5, 64), (0.5, 96, 128))
    other = load_config(tmp_path / "a.yaml", "--train_sizes", "[[1, 96]]")
    assert other.train_sizes == ((1, 96),)
    assert config_from_text(to_yaml(cfg), "text") == cfg
    assert load_config(tmp_path / "a.yaml", "--train_sizes", "[]").train_sizes == ()
    assert recipe_of(cfg)["train_sizes"] == [[0.5, 64], [0.5, 96, 128]]


def test_runs_of_versions_without_sizes_have_the_recipe_that_they_had() -> None:
    assert "train_sizes" not in recipe_of(Config())
    assert "epochs_count" not in recipe_of(Config())


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ("[[0.5, 64], [0.4, 96]]", "must sum to 1, not 0.9"),
        ("[[0.5, 64], [0.5, 100]]", "row 2 [0.5, 100]: the side must be a multiple of model.patch_size 16"),
        ("[[0.5, 64], [0.5, 240]]", "at most model.image_size 224, not 240"),
        ("[[0.5, 64.5], [0.5, 224]]", "row 1 [0.5, 64.5]: the side must be a multiple"),
        ("[[0.5, 64, 7], [0.5, 224]]", "row 1 [0.5, 64, 7]: micro_batch 7 does not divide global_batch 1536"),
        ("[[0.5, 64, 384, 1], [0.5, 224]]", "must be [share of the run, side in pixels]"),
        ("[[0, 64], [1, 224]]", "must be more than 0 and at most 1, not 0"),
        ("[[.nan, 64], [1, 224]]", "must be more than 0 and at most 1, not nan"),
        ("[[0.5, .inf], [0.5, 224]]", "the side must be a multiple"),
        ("[0.5, 64]", "must be a list of rows of numbers such as [[0.5, 128], [0.5, 224]]"),
        ("0.5", "must be a list of rows of numbers such as [[0.5, 128], [0.5, 224]]"),
        ("[[a, 64]]", "must be a list of rows of numbers such as [[0.5, 128], [0.5, 224]]"),
        ("[[[0.5], 64]]", "must be a list of rows of numbers such as [[0.5, 128], [0.5, 224]]"),
        ("{a: 1}", "must be a list of rows of numbers"),
    ],
)
def test_wrong_sizes_are_refused_with_their_row_and_their_place(tmp_path: Path, sizes: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        config_from_text(f"train_sizes: {sizes}\n", "a.yaml")
    assert words in str(caught.value)
    assert "line 1" in str(caught.value)


def test_all_sizes_must_allow_the_number_of_ranks() -> None:
    cfg = config(model=ModelConfig(), train_sizes=((0.5, 64, 32), (0.5, 224, 4)))
    cfg.check_ranks(1)
    with pytest.raises(UserError, match="2 ranks do not divide the 1 micro-batch of a batch"):
        cfg.check_ranks(2)
    assert not cfg.allows_ranks(2)
    assert config().allows_ranks(2)


@pytest.mark.parametrize("count", ["images", "pixels"])
def test_ten_equal_shares_are_ten_equal_parts_of_the_run(count: Literal["images", "pixels"]) -> None:
    """Although 0.1 + 0.1 + 0.1 is more than 0.3 in floating point; each begins with its RandAugment magnitude."""
    rows = tuple((0.1, 112) for _ in range(10))
    cfg = Config(epochs=100, global_batch=1000, micro_batch=100, train_sizes=rows, epochs_count=count)
    schedule = RunSchedule(replace(cfg, augment=replace(cfg.augment, randaugment_ramp=True)), samples=10_000)
    part = {"images": 100, "pixels": 400}[count]
    assert [stage.start for stage in schedule.stages] == [i * part for i in range(10)]
    magnitudes = [schedule.config(stage.start).augment.randaugment_magnitude for stage in schedule.stages]
    assert magnitudes == list(range(10))
