"""Batches whose image size changes from step to step are decoded, copied and augmented without waiting for the GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers import null_gpu_counts
from tests.helpers.data_sets import JPEGS, small_config
from tests.helpers.loading import with_data
from tests.helpers.null_gpu_counts import Counts
from tests.helpers.null_gpu_ranks import NullGpu
from vit import train
from vit.config.schema import Config, to_yaml
from vit.data.loader import TrainData
from vit.distributed.world import join_process_group
from vit.run.folder import RunFolder
from vit.training.step import augmented_batches

SIDES = [14, 14, 21, 21, 28, 28, 28, 28]  # of each step: three epochs of 64 images in batches of 24


def sized_config(path: Path, small_images: str) -> Config:
    rows = ((0.25, 14, 12), (0.25, 21, 6), (0.5, 28, 6))
    cfg = replace(small_config(path), epochs=3, global_batch=24, micro_batch=6, train_sizes=rows, device="cuda")
    augment = replace(cfg.augment, randaugment="timm", randaugment_ops=2, erasing=0.25, mixup=0.8, cutmix=1.0)
    return with_data(replace(cfg, augment=augment), limit=JPEGS, workers=1, small_images=small_images)


def augment_all(cfg: Config) -> tuple[list[int], Counts]:
    """The sides of the images of all steps, and what the GPU did after the first batch."""
    with join_process_group(cfg) as world:
        data = TrainData(cfg, world)
        batches = augmented_batches(data.schedule, world, data.batches(0, len(SIDES)), 0)
        sides = [next(batches).micro_batches[0][0].shape[-1]]  # copies the mean and the standard deviation
        null_gpu_counts.watch()
        null_gpu_counts.reset()
        for batch in batches:
            images = batch.micro_batches[0][0]
            images.record_stream(torch.cuda.current_stream())
            sides.append(images.shape[-1])
        return sides, null_gpu_counts.read()


@pytest.mark.parametrize("small_images", ["decoded", "lanczos"])
def test_the_host_does_not_wait_where_the_image_size_changes(small_images: str, null_gpu: NullGpu, jpegs: Path) -> None:
    """Nor where the weights of a new size are first copied; only decoding threads wait until a buffer was copied."""
    ((sides, counts),) = null_gpu.run(augment_all, sized_config(jpegs, small_images))
    assert sides == SIDES
    assert not [wait for wait in counts.synchronizations if not wait.thread.startswith("decode")]
    products = sum(times for (_, kernel), times in counts.kernels.items() if "Dgemm" in kernel)
    # Two passes for each step that is small; the first two batches were augmented before, one of them ahead.
    assert products == (2 * (SIDES.count(14) + SIDES.count(21) - 2) if small_images == "lanczos" else 0)


def exit_code_of_training(options: list[str]) -> object:
    """In a rank."""
    with pytest.raises(SystemExit) as ended:
        train.main(options)
    return ended.value.code


@pytest.mark.parametrize("compiled", [False, True])
def test_a_size_of_a_later_stage_that_needs_too_much_memory_is_found_before_the_first_step(
    compiled: bool, null_gpu: NullGpu, jpegs: Path, tmp_path: Path
) -> None:
    """Not after the hours of the small images; the message names the row of `train_sizes` to change."""
    cfg = small_config(jpegs)
    model = replace(cfg.model, image_size=224, patch_size=1, mlp_dim=1024)  # 50,176 patches
    cfg = replace(cfg, model=model, train_sizes=((0.5, 32), (0.5, 224, 64)), device="cuda", compile=compiled)
    run = RunFolder(tmp_path)
    run.config.write_text(to_yaml(cfg))
    options = ["--config", str(run.config), "--run-dir", str(run.path)]
    assert null_gpu.run(exit_code_of_training, options, memory_gb=40) == [2]
    failed = run.last("failed")
    assert failed is not None
    assert "micro_batch 64 at 224 pixels does not fit" in failed["error"]
    assert "in row 2 of train_sizes, which needs about" in failed["error"]
    assert "step" not in failed["seconds"]
