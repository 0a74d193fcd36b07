"""A small data set in large batches has too few steps to learn from: said at submission, in training, in the notes."""

import re
from dataclasses import replace

import pytest

from vit.config.schema import Config
from vit.config.sections import AugmentConfig, DataConfig
from vit.history.few_steps import few_steps, few_steps_of
from vit.history.notes import notes
from vit.history.run_history import RunHistory


def test_a_few_images_in_large_batches_are_named_with_a_batch_that_gives_more_steps() -> None:
    """configs/finetune.yaml on 96 images: 8 steps in 10 epochs."""
    cfg = Config(epochs=10, global_batch=128, micro_batch=32)
    text = (
        "few steps: 96 images in batches of 128 (global_batch) are 0.75 steps per epoch, 8 steps in 10 epochs; "
        "--global_batch 8 --micro_batch 8 makes 12 steps per epoch, or use more epochs"
    )
    assert few_steps_of(cfg, 96, ranks=1) == text
    limited = Config(epochs=10, global_batch=128, micro_batch=32, data=DataConfig(limit=96))
    assert few_steps_of(limited, 60_000, ranks=1) == text


def test_a_batch_of_less_than_eight_images_is_not_proposed() -> None:
    """Of very few images only more epochs make many steps."""
    assert few_steps(18, 128, 32, epochs=10, ranks=1).endswith(
        "; --global_batch 8 --micro_batch 8 makes 2.2 steps per epoch, or use more epochs"
    )
    assert few_steps(5, 128, 32, epochs=10, ranks=1).endswith("1 step in 10 epochs; use more epochs")


def test_a_run_with_enough_steps_has_no_warning() -> None:
    """Ten in an epoch, or many epochs, as in `make ablation`."""
    assert few_steps(1280, 128, 32, epochs=1, ranks=1) == ""
    assert few_steps(1000, 128, 32, epochs=200, ranks=1) == ""
    assert few_steps(1000, 128, 32, epochs=10, ranks=1) != ""


def test_the_steps_of_small_images_count() -> None:
    """If epochs count pixels, images of a quarter of the pixels make four times as many steps."""
    cfg = Config(epochs=40, global_batch=128, micro_batch=128, epochs_count="pixels")
    assert "313 steps in 40 epochs" in few_steps_of(cfg, 1000, ranks=1)
    assert few_steps_of(replace(cfg, train_sizes=((0.5, 112), (0.5, 224))), 1000, ranks=1) == ""


@pytest.mark.parametrize("repeats", [0, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_batch_that_is_named_works_on_as_many_ranks(ranks: int, repeats: int) -> None:
    """It is smaller, is divided by the ranks, and mixup can mix it; where there is none, only more epochs help."""
    mixup = 0.8 if repeats else 0.0
    cfg = Config(
        epochs=2,
        global_batch=48 * ranks,
        micro_batch=12,
        augment=AugmentConfig(mixup=mixup),
        data=DataConfig(repeats=max(1, repeats)),
    )
    for images in (1, 20, 96, 400):
        text = few_steps_of(cfg, images, ranks)
        names = {name: int(value) for name, value in re.findall(r"--(\w+) (\d+)", text)}
        if not names:
            assert not text or text.endswith("; use more epochs")
            continue
        working = Config(**{"global_batch": 0, "micro_batch": 12} | names, augment=cfg.augment, data=cfg.data, epochs=2)
        working.check_ranks(ranks)
        working.check_mixing()
        assert working.global_batch < cfg.global_batch
        assert images >= 10 * working.global_batch or working.global_batch < 16 * ranks


def test_the_notes_of_a_run_name_its_few_steps() -> None:
    """The size of the data set follows from its learning curve, if the folder has the run's config."""
    settings = {"global_batch": 128, "micro_batch": 32, "epochs": 10}
    curve = [{"step": step, "epoch": min(10.0, step * 128 / 96), "loss": 0.7} for step in range(1, 9)]
    (note,) = notes(RunHistory(curve=curve, settings=settings))
    assert note.startswith("few steps: 96 images in batches of 128 (global_batch) are 0.75 steps per epoch")
    assert notes(RunHistory(curve=curve)) == []
