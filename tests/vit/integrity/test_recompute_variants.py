"""Recomputed micro-batches have the bits of those that were used, whatever the recipe, and training does not change."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.interrupted_runs import STEPS, assert_same_run, new_run_folder, run_attempt, short_config
from tests.helpers.loading import overwrite
from tests.helpers.ranks import run_ranks
from vit.config.schema import Config
from vit.config.sections import AugmentConfig, ChecksConfig, OptimConfig
from vit.data.beton import open_beton
from vit.integrity.recompute_plan import is_due
from vit.run.folder import RunFolder
from vit.train import Outcome

EVENTS = ("recomputed", "not recomputed", "wrong arithmetic")


def plain(data: Path) -> Config:
    """Dropout, drop path, RandAugment, mixup and CutMix, label smoothing, clipping, EMA; two micro-batches a rank."""
    return replace(short_config(data), micro_batch=12)


def augmented(data: Path) -> Config:
    """timm's RandAugment whose magnitude rises, 3-Augment, color jitter, erasing, repeats; Lanczos's filter; Muon."""
    cfg = short_config(data, train_sizes=((1 / 3, 14), (1 / 3, 21, 12), (1 / 3, 28)))
    augment = AugmentConfig(
        randaugment_ops=2, randaugment="timm", randaugment_ramp=True, randaugment_deviation=0.5, three_augment=True,
        color_jitter=0.3, erasing=0.5, mixup=0.8, cutmix=1.0,
    )  # fmt: skip
    data_section = replace(cfg.data, repeats=3, small_images="lanczos", workers=2)
    return replace(cfg, augment=augment, data=data_section, optim=OptimConfig(optimizer="muon", loss="bce"))


def recipe(data: Path) -> Config:
    """bfloat16, LayerScale, attention dropout, activation checkpointing, mean pooling, LAMB."""
    cfg = short_config(data, precision="bf16", activation_checkpointing=True)
    model = replace(cfg.model, layer_scale=1e-4, attention_dropout=0.2, pool="mean", positions="sincos2d")
    return replace(cfg, model=model, optim=OptimConfig(optimizer="lamb", ema_decay=0.9))


def half(data: Path) -> Config:
    """fp16, whose first steps overflow; from JPEGs, of which damaged ones are replaced."""
    cfg = short_config(data, precision="fp16")
    section = replace(cfg.data, train=data, val=data, on_bad="skip", verify="never")
    return replace(cfg, epochs=9, data=section)  # of 64 images: a step has samples of several passes


def compiled(data: Path) -> Config:
    """Compiled, with two image sizes and drop path."""
    return short_config(data, compile=True, train_sizes=((0.5, 14), (0.5, 28, 12)))


def checked_run(cfg: Config, ranks: int, run: Path, every: int) -> Path:
    """A run that recomputes every few steps; asserts that it finds nothing wrong."""
    cfg = replace(cfg, checks=ChecksConfig(checksum_every_steps=0, recompute_every_steps=every))
    assert run_ranks(ranks, run_attempt, cfg, new_run_folder(run), timeout=200) == [Outcome.FINISHED] * ranks
    events = [(event["event"], event["step"]) for event in RunFolder(run).events() if event["event"] in EVENTS]
    assert events == [("recomputed", step) for step in range(1, STEPS + 1) if every and step % every == 0]
    return run


VARIANTS = (plain, augmented, recipe, half, compiled)
IN_EACH_TEST_RUN = {(plain, 4), (plain, 2), (plain, 1), (augmented, 4), (recipe, 4), (half, 2)}
CASES = [
    pytest.param(variant, ranks, marks=() if (variant, ranks) in IN_EACH_TEST_RUN else pytest.mark.campaign)
    for variant in VARIANTS
    for ranks in (4, 2, 1)
]


@pytest.mark.parametrize(("variant", "ranks"), CASES)
def test_nothing_is_found_where_nothing_is_wrong(
    variant: Callable[[Path], Config], ranks: int, betons: Path, jpegs_copy: Path, tmp_path: Path
) -> None:
    """In any step; and the run has the bits of one on a single rank that recomputes nothing."""
    beton = open_beton(jpegs_copy)
    for sample in (7, 20):
        overwrite(jpegs_copy, int(beton.offset[sample]), bytes(64))
    cfg = variant(jpegs_copy if variant is half else betons)
    cfg = replace(cfg, log=replace(cfg.log, eval_every_epochs=100))
    expected = checked_run(cfg, 1, tmp_path / "expected", 0)
    assert_same_run(checked_run(cfg, ranks, tmp_path / "run", 1), expected)


def test_without_exact_bits_nothing_is_recomputed(betons: Path, tmp_path: Path) -> None:
    """Fast kernels may give other bits each time."""
    cfg = replace(plain(betons), exact="samples", checks=ChecksConfig(recompute_every_steps=1))
    assert not any(is_due(cfg, step) for step in range(10))
    assert run_ranks(2, run_attempt, cfg, new_run_folder(tmp_path / "run")) == [Outcome.FINISHED] * 2
