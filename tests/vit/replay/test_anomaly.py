"""`--anomaly` names the first operation that is not finite, its module, and the samples that are the reason."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.data_sets import small_config
from tests.helpers.replayed_runs import replay, train_on, write_gray_images, write_overflowing_weights
from vit.augment.mixup import Mix
from vit.config.schema import Config
from vit.data.beton import open_beton
from vit.replay.culprits import failing_rows, tell_apart
from vit.replay.first_not_finite import first_not_finite
from vit.run.folder import RunFolder


def overflowing_config(data: Path, **augment: float) -> Config:
    """Four micro-batches of 16 images a step in fp16; two steps are the whole data set."""
    cfg = small_config(data)
    plain = replace(cfg.augment, flip=0.0, randaugment_ops=0, erasing=0.0, **augment)
    data_cfg = replace(cfg.data, crop_scale=(0.9, 1.0))
    log = replace(cfg.log, every_steps=1)
    optim = replace(cfg.optim, lr=1e-6, warmup_epochs=0.0)
    return replace(cfg, epochs=2, micro_batch=16, precision="fp16", augment=plain, data=data_cfg, log=log, optim=optim)


def train_with_a_white_image(folder: Path, **augment: float) -> tuple[Path, int, int]:
    """A run that skips the steps with the white image: its folder, the first of them, and the sample."""
    data = write_gray_images(folder / "images", 127, white=True)
    beton = open_beton(data)
    sizes = np.array(beton.size)
    white = int(sizes.argmin())  # a JPEG of one color is the smallest
    cfg = overflowing_config(data, **augment)
    write_overflowing_weights(folder / "weights.safetensors", cfg)
    run = folder / "white"
    train_on(4, run, replace(cfg, init_from=str(folder / "weights.safetensors")))
    skipped = [e["step"] for e in RunFolder(run).events() if e["event"] == "skipped"]
    assert skipped, "the white image did not overflow"
    return run, skipped[0], white


def test_a_sample_that_overflows_is_found_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run on four ranks skips its step; the replay names module, operation, micro-batch, sample and precision."""
    run, step, white = train_with_a_white_image(tmp_path)
    capsys.readouterr()
    assert replay(run, "--step", str(step), "--anomaly") == 0
    out = capsys.readouterr().out
    assert f"the run skipped this step: the loss of step {step} is not finite" in out
    assert "the first result that is not finite is in forward" in out
    assert "  module      patches.proj\n" in out
    assert re.search(r"  operation   addmm at vision_transformer.py:\d+, in forward: return self.proj\(", out)
    assert re.search(r"  result      float16 \[.*\]: [\d,]+ infinite of ", out)
    assert f"  => sample {white:,} (class class-3) is the first whose activations are not finite: patches.proj\n" in out
    assert out.count("=> sample") == 1
    assert "in float32 all of it is finite: an overflow of fp16" in out


def test_images_that_cutmix_has_mixed_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The image into which the white one was pasted fails too, but only the white one is the reason."""
    run, step, white = train_with_a_white_image(tmp_path, cutmix=1.0)
    capsys.readouterr()
    assert replay(run, "--step", str(step), "--anomaly") == 0
    out = capsys.readouterr().out
    assert re.search(rf", mixed with \d+% of sample {white} \(class class-3\): alone it does not fail, but ", out) or (
        re.search(rf"sample {white} \(class class-3\), row \d+, mixed with .*: alone it fails, ", out)
    )
    assert f"  => sample {white:,} (class class-3) is the first whose activations are not finite: patches.proj\n" in out


def test_weights_that_were_not_finite_before_are_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the step to replay instead."""
    from vit.replay.replayer import Replayer

    original = Replayer.forward_backward

    def with_nan(self: Replayer) -> object:
        with torch.no_grad():
            self.state.model.blocks[1].mlp.up.weight[3, 4] = math.nan
        return original(self)

    monkeypatch.setattr(Replayer, "forward_backward", with_nan)
    assert replay(trained, "--step", "3", "--anomaly") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "model.blocks.1.mlp.up.weight is not finite before step 3; replay the step before: --step 2"


def test_a_step_without_an_anomaly_says_so(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its update is looked at, too."""
    assert replay(trained, "--step", "2", "--anomaly") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "no anomaly: loss, gradients and updated weights of step 2 are finite"


class Root(torch.nn.Module):
    """A square root: at 0 its value is finite, and its gradient is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


def test_an_operation_of_the_backward_pass_is_found_with_its_module() -> None:
    """Although all activations are finite; images are tried alone to find which one it is."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Sequential(Root()), torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[0].bias.zero_()
    images = torch.rand(8, 3) + 0.1
    images[5, 1] = 0.0
    parameters = list(model.parameters())

    def forward(x: Tensor = images) -> tuple[Tensor, Tensor]:
        logits = model(x)
        return logits, logits.square().sum()

    found = first_not_finite(model, forward, parameters, len(images))
    assert found is not None
    assert (found.phase, found.module, found.infinities, found.rows) == ("backward", "1.0", 1, (5,))
    assert found.operation == "div (SqrtBackward0)"
    assert first_not_finite(model, lambda: forward(images + 1), parameters, len(images)) is None

    def fails(x: Tensor, _: Tensor) -> bool:
        gradients = torch.autograd.grad(forward(x + 0.01 * (x == 0).all(1, keepdim=True))[1], parameters)
        return not all(bool(g.isfinite().all()) for g in gradients)

    assert failing_rows(images, images, fails) == [5]
    assert failing_rows(images, images, lambda *_: True) is None
    together = failing_rows(images, images, lambda x, _: bool((x[:2] != 0).any(1).all()))
    assert together == [0, 1]


def test_mixed_images_are_tried_apart() -> None:
    """The image itself, the one that is mixed into it, both, or only their mixture."""
    bad = {1, 2}
    images = torch.ones(6, 3)

    def fails(x: Tensor, _: Tensor) -> bool:
        return any(bool(x[row].any()) for row in bad)

    found = tell_apart([1, 2, 3, 5], Mix(lam=0.6, box=None, distance=1), (images, images), fails)
    assert [(c.row, c.partner, c.apart) for c in found] == [
        (1, 0, "own"),
        (2, 1, "both"),
        (3, 2, "partner"),
        (5, 4, "neither"),
    ]
