"""Repeated augmentation with mixup or CutMix: no image is mixed with itself or with another crop of itself."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.checkpoints import rewrite_as_format_2
from tests.helpers.data_sets import small_config
from tests.helpers.finished_runs import make_finished_run
from tests.helpers.interrupted_runs import Fault, checkpoints, new_run_folder, run_attempt
from tests.helpers.loading import simulated_world, train_stream, with_data
from tests.helpers.ranks import run_ranks
from vit import evaluate, export, verify
from vit.augment.mixup import Mix
from vit.checkpoint.format import read_manifest
from vit.config.parser import load_config
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config, to_yaml
from vit.config.sections import AugmentConfig
from vit.config.user_error import UserError
from vit.data.loader import Batch
from vit.training.step import augmented_batches

SAMPLES, BATCH = 48, 24
COUNTS = [1, 2, 3, 4, 6, 8, 12, 24]  # of micro-batches


def repeating_config(data: Path, micro_batches: int, repeats: int, **augment: float) -> Config:
    """Micro-batches of a global batch of BATCH images, of the first SAMPLES samples."""
    cfg = with_data(small_config(data), repeats=repeats, limit=SAMPLES)
    return replace(cfg, global_batch=BATCH, micro_batch=BATCH // micro_batches, augment=AugmentConfig(**augment))


def mixing_is_possible(micro_batches: int, repeats: int) -> bool:
    """Whether a micro-batch has another sample for each image, at a distance that is the same for all of them."""
    micro_batch, next_to_each_other = BATCH // micro_batches, -(-repeats // micro_batches)
    return micro_batch >= 2 * next_to_each_other


@pytest.mark.parametrize("repeats", [1, 2, 3, 4, 5, 7, 12, 13])
def test_no_image_is_mixed_with_itself_for_any_number_of_micro_batches(betons: Path, repeats: int) -> None:
    """In all steps of a pass over the data, on one and on several ranks; what cannot work is refused."""
    possible = [count for count in COUNTS if mixing_is_possible(count, repeats)]
    for count in COUNTS:
        if count not in possible:
            with pytest.raises(ValueError, match=f"micro_batch {BATCH // count} is too small for mixup and cutmix"):
                repeating_config(betons, count, repeats, mixup=1.0).check_mixing()
            continue
        cfg = repeating_config(betons, count, repeats, mixup=1.0)
        cfg.check_mixing()
        steps = SAMPLES * repeats // BATCH
        samples = train_stream(cfg, 1, 0, steps)[0].reshape(steps, BATCH)
        cfg = replace(cfg, model=replace(cfg.model, num_classes=SAMPLES))  # each sample is a class of its own
        ranks = next(n for n in (3, 2, 1) if count % n == 0)
        for rank in range(ranks):
            world = simulated_world(rank, ranks)
            mine = samples.reshape(steps, ranks, -1)[:, rank]
            for step, batch in enumerate(
                augmented_batches(RunSchedule(cfg, SAMPLES), world, labeled_by_sample(mine), 0)
            ):
                for (_, targets), own in zip(batch.micro_batches, mine[step].reshape(-1, cfg.micro_batch), strict=True):
                    assert (targets.count_nonzero(1) == 2).all(), (count, repeats, step)  # its own and another sample
                    assert (targets[torch.arange(len(own)), own] > 0).all()
    assert possible[:1] == ([1] if repeats <= 12 else [])


def labeled_by_sample(samples: np.ndarray) -> Iterator[Batch]:
    """One batch per row, of black images whose labels are the indices of their samples."""
    for row in samples:
        yield Batch(torch.zeros(len(row), 28, 28, 3, dtype=torch.uint8), torch.from_numpy(row), row)


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("box", [None, (0, 3, 0, 8)])
def test_pixels_and_targets_are_mixed_with_the_same_image(distance: int, box: tuple[int, int, int, int] | None) -> None:
    """At any distance, although images are mixed in place and in chunks: 11 is no multiple of their size."""
    B, lam = 11, 0.625
    levels = torch.arange(1.0, B + 1)
    mix = Mix(lam=lam, box=box, distance=distance)
    out = mix.images(levels[:, None, None, None].repeat(1, 3, 8, 8))
    targets = mix.targets(torch.eye(B))
    assert torch.equal(targets, lam * torch.eye(B) + (1 - lam) * torch.eye(B).roll(distance, 0))
    torch.testing.assert_close(out.mean((1, 2, 3)), targets @ levels)


def test_runs_whose_images_were_mixed_correctly_are_unchanged(betons: Path) -> None:
    """With at least as many micro-batches as repeats, neighbors are mixed, as in older versions."""
    for count in COUNTS:
        for repeats in range(1, count + 1):
            if count < BATCH:
                assert repeating_config(betons, count, repeats, cutmix=1.0).mix_distance == 1
    assert repeating_config(betons, 2, 3).mix_distance == 1  # without mixup and CutMix, nothing changes


def test_a_run_that_mixed_images_with_their_repeats_is_not_continued_by_another_rule(
    betons: Path, tmp_path: Path
) -> None:
    """A checkpoint of an older version has no entry for the rule: resuming it names the difference."""
    run, cfg = new_run_folder(tmp_path / "run"), repeating_config(betons, 2, 3, mixup=1.0)
    cfg = replace(cfg, epochs=1)
    run_ranks(1, run_attempt, cfg, run, Fault(0, 0, signal.SIGTERM))
    manifest = read_manifest(checkpoints(run)[0])
    assert manifest["about"]["recipe"].pop("augment.mix_distance") == 2
    rewrite_as_format_2(checkpoints(run)[0], manifest)
    with pytest.raises(ValueError, match=r"augment\.mix_distance: \(absent\) in the run, 2 now"):
        run_ranks(1, run_attempt, cfg, run)
    assert run_ranks(1, run_attempt, cfg, run, None, ("augment.mix_distance",)) == ["finished"]


def test_a_run_that_mixed_images_with_themselves_is_used_but_not_continued(
    betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Older versions allowed micro-batches of one image.  Its config is read, evaluated and exported as it is."""
    cfg = repeating_config(betons, BATCH, 1, mixup=0.8)
    make_finished_run(tmp_path / "run", cfg)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert load_config(tmp_path / "config.yaml") == cfg
    assert evaluate.main([str(tmp_path / "run"), "--json"]) == 0
    assert export.export(tmp_path / "run", "safetensors", tmp_path / "a.safetensors").exists()
    refused = "micro_batch 1 is too small for mixup and cutmix, .*; use at least 2"
    with pytest.raises(UserError, match=refused):
        run_ranks(1, run_attempt, cfg, tmp_path / "run")
    with pytest.raises(SystemExit, match="2"):
        verify.main(["--config", str(tmp_path / "config.yaml"), "--ranks", "1"])
    assert "micro_batch 1 is too small" in capsys.readouterr().err
