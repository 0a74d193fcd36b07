"""The recipes whose image size follows the step have the schedules of their sources, which are written out here."""

import math
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.paths import CONFIGS
from vit.config.parser import load_config
from vit.config.run_schedule import RunSchedule
from vit.history.utilization import training_flops_per_image
from vit.optim.schedule import learning_rate

README = (CONFIGS / "README.md").read_text()
IMAGENET = 1_281_167  # training images
STEPS_PER_EPOCH = IMAGENET // 4096  # main_buffer.py drops the rest
SIDES = [96, 96, 160, 160, 160, 160, 192, 192, 224, 224]  # res_list of _ET_pp_main_deitS.py
BATCHES = [512] * 6 + [256] * 4  # bs_list: per GPU, of 8, with one or two of them per step (up_freq_list)


def cosine_scheduler(base: float, final: float, epochs: int, per_epoch: int, warmup: int) -> NDArray[np.float64]:
    """The learning rate of each step, as utils_buffer.py of EfficientTrain computes it."""
    iters = epochs * per_epoch - warmup * per_epoch
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(iters) / iters))
    return np.concatenate((np.linspace(0, base, warmup * per_epoch), cosine))


def source_stages(epochs: int) -> list[NDArray[np.float64]]:
    """The learning rates of the ten commands of _ET_pp_main_deitS.py --epoch EPOCHS, step by step."""
    out, end, previous = [], 0, SIDES[0]
    for stage, side in enumerate(SIDES):
        own = int(epochs * (224 * 224) / (side * side))
        warmup = int(0.2 * epochs * (224 * 224) / (side * side))
        start = round(end * previous**2 / side**2)  # auto_load_model
        end, previous = int(own / 10 * (stage + 1)), side
        rates = cosine_scheduler(4e-3, 1e-6, own, STEPS_PER_EPOCH, warmup)
        out.append(rates[start * STEPS_PER_EPOCH : end * STEPS_PER_EPOCH])
    return out


@pytest.mark.parametrize("epochs", [100, 150, 200, 300])
@pytest.mark.parametrize("name", ["vit_s16_efficienttrain", "vit_ti16_efficienttrain"])
def test_each_stage_of_efficienttrain_has_the_published_sizes_steps_and_learning_rates(name: str, epochs: int) -> None:
    """The source rounds each stage to whole epochs, which shifts its learning rates by up to 1.5 % of the peak."""
    options = (f"--epochs={epochs}", f"--optim.warmup_epochs={0.2 * epochs}", f"--model.drop_path={0.1 * epochs / 200}")
    cfg = load_config(CONFIGS / f"{name}.yaml", *options)
    schedule = RunSchedule(cfg, IMAGENET)
    work = epochs * IMAGENET / cfg.global_batch
    tenths = np.array([schedule.work(step) * 10 / work for step in range(schedule.total_steps)]).astype(int).clip(max=9)
    rates = np.array([learning_rate(step, schedule) for step in range(schedule.total_steps)])
    for stage, source in enumerate(source_stages(epochs)):
        steps = np.flatnonzero(tenths == stage)
        for step in (int(steps[5]), int(steps[len(steps) // 2]), int(steps[-5])):
            now = schedule.config(step)
            assert (now.model.image_size, now.micro_batch) == (SIDES[stage], BATCHES[stage]), step
            assert now.augment.randaugment_magnitude == stage, "rand-m{stage}-mstd0.5-inc1"
        own_epochs = epochs * (224 / SIDES[stage]) ** 2 / 10
        assert len(steps) / (IMAGENET / 4096) == pytest.approx(own_epochs, abs=0.02)
        assert len(source) / STEPS_PER_EPOCH == pytest.approx(own_epochs, abs=1.2)
        # At the same place in the stage, with the number of steps of the source.
        ours = np.interp(np.linspace(0, 1, len(source)), np.linspace(0, 1, len(steps)), rates[steps])
        assert np.abs(ours - source).max() < 0.015 * 4e-3, stage
    assert rates.max() == pytest.approx(4e-3, rel=1e-3)
    assert rates[-1] == pytest.approx(1e-6, rel=0.05)
    assert cfg.model.drop_path == pytest.approx(0.1 * epochs / 200)


def test_an_epoch_of_efficienttrain_costs_about_as_much_as_one_at_224_pixels() -> None:
    """So that its GPU-hours follow from the throughput at 224 pixels: 200 epochs are 469 passes."""
    for name in ("vit_s16_efficienttrain", "vit_ti16_efficienttrain"):
        cfg = load_config(CONFIGS / f"{name}.yaml")
        schedule = RunSchedule(cfg, IMAGENET)
        flops = sum((s.stop - s.start) * training_flops_per_image(s.cfg.model) for s in schedule.stages)
        full = training_flops_per_image(cfg.model) * 200 * IMAGENET / cfg.global_batch
        assert 0.94 < flops / full < 1.0
        assert schedule.total_steps * cfg.global_batch / IMAGENET == pytest.approx(469, abs=0.1)


def ffcv_side(epoch: int, start_ramp: int, end_ramp: int) -> int:
    """The image size of an epoch, as train_imagenet.py of ffcv-imagenet computes it with its sizes 160 and 192."""
    if epoch <= start_ramp or epoch >= end_ramp:
        return 160 if epoch <= start_ramp else 192
    between = 160 + 32 * (epoch - start_ramp) / (end_ramp - start_ramp)
    return round(between / 32) * 32


@pytest.mark.parametrize(("epochs", "ramp"), [(32, (23, 27)), (88, (65, 76))])
def test_the_pilot_has_the_image_sizes_of_ffcv_imagenet(epochs: int, ramp: tuple[int, int]) -> None:
    """start_ramp and end_ramp of rn50_32_epochs.yaml; those of rn50_88_epochs.yaml with the rows in the README."""
    (rows,) = re.findall(r"the one of 88 epochs after 71, which is\s+`--train_sizes '(.*)'`", README)
    options = [] if epochs == 32 else ["--epochs", "88", "--train_sizes", rows]
    cfg = load_config(CONFIGS / "vit_s16_pilot.yaml", *options)
    schedule = RunSchedule(cfg, IMAGENET)
    assert cfg.epochs == epochs
    for epoch in range(epochs):
        middle = schedule.steps(epoch + 0.5)
        assert schedule.config(middle).model.image_size == ffcv_side(epoch, *ramp), epoch
    changed = schedule.stages[0].stop
    assert schedule.epoch(changed) == pytest.approx({32: 25, 88: 71}[epochs], abs=0.01)
    assert schedule.total_steps == math.ceil(epochs * IMAGENET / 1024)


def test_the_readme_has_the_values_of_efficienttrain_for_each_number_of_epochs() -> None:
    """`0.2 E` epochs of warmup and a drop path of `0.1 E / 200`; the command for 100 epochs, and its config."""
    (epochs,) = re.findall(r"^\| published top-1 \| E = (.*) \|$", README, re.MULTILINE)
    warmup, drop_path = (
        re.findall(rf"^\| `--{name}` \(.*\) \| (.*) \|$", README, re.MULTILINE)[0].split(" | ")
        for name in ("optim.warmup_epochs", "model.drop_path")
    )
    assert [float(e) * 0.2 for e in epochs.split(" | ")] == pytest.approx([float(w) for w in warmup])
    assert [float(e) * 0.1 / 200 for e in epochs.split(" | ")] == pytest.approx([float(d) for d in drop_path])
    (command,) = re.findall(r"--name et100 .*\n +(--epochs.*)", README)
    cfg = load_config(CONFIGS / "vit_s16_efficienttrain.yaml", *command.split())
    assert (cfg.epochs, cfg.optim.warmup_epochs, cfg.model.drop_path) == (100, 20, 0.05)


def test_the_pilot_is_the_recipe_of_90_epochs_apart_from_its_length_and_sizes() -> None:
    pilot, base = (load_config(CONFIGS / f"vit_s16_{name}.yaml") for name in ("pilot", "90ep"))
    assert pilot.data == base.data
    assert pilot.augment == base.augment
    assert pilot.optim.warmup_epochs / pilot.epochs == pytest.approx(base.optim.warmup_epochs / base.epochs, rel=1e-4)
