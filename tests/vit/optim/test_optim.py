"""Optimizers, schedules, losses and averages are those of their sources, to the last step."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import timm
import timm.loss
import timm.optim
import timm.scheduler
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.helpers.data_sets import small_config
from vit.checkpoint.train_state import TrainState
from vit.config.schema import Config, ModelConfig, OptimConfig
from vit.model.vision_transformer import VisionTransformer
from vit.optim.ema import ema_decay, update_ema
from vit.optim.loss import training_loss
from vit.optim.optimizer import build_optimizer, decays, layer
from vit.optim.schedule import learning_rate

SMALL = ModelConfig(image_size=28, patch_size=7, width=16, depth=2, heads=2, mlp_dim=24, num_classes=5)


def schedule(samples: int, **changes: float) -> tuple[Config, list[float]]:
    cfg = Config(epochs=10, global_batch=8, micro_batch=8, optim=OptimConfig(**changes))
    return cfg, [learning_rate(step, cfg, samples) for step in range(cfg.steps(10, samples))]


@pytest.mark.parametrize("samples", [40, 43])
@pytest.mark.parametrize("final_lr", [0.0, 1e-4])
def test_every_steps_learning_rate_is_that_of_torchs_schedulers(samples: int, final_lr: float) -> None:
    """A linear warm-up, then a cosine, as LinearLR and CosineAnnealingLR make them one step after the other."""
    cfg, ours = schedule(samples, lr=3e-3, warmup_epochs=2, final_lr=final_lr)
    total, warmup = len(ours), cfg.steps(2, samples)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-3)
    linear = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    cosine = CosineAnnealingLR(optimizer, T_max=total - 1 - warmup, eta_min=final_lr)
    reference = SequentialLR(optimizer, [linear, cosine], milestones=[warmup])
    for step, rate in enumerate(ours):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15), f"step {step} of {total}"
        optimizer.step()
        reference.step()


def test_the_learning_rate_starts_small_reaches_its_peak_and_ends_where_it_should() -> None:
    """The published recipe on ImageNet: 1,281,167 images, 30 of 300 epochs of warm-up, 0.01, down to 0."""
    cfg = Config(epochs=300, global_batch=1536, optim=OptimConfig(lr=0.01, warmup_epochs=30))
    samples = 1_281_167
    total, warmup = math.ceil(300 * samples / 1536), math.ceil(30 * samples / 1536)
    assert learning_rate(0, cfg, samples) == pytest.approx(0.01 / warmup)
    assert learning_rate(warmup // 2 - 1, cfg, samples) == pytest.approx(0.005, rel=1e-3)
    assert learning_rate(warmup - 1, cfg, samples) == learning_rate(warmup, cfg, samples) == 0.01
    assert learning_rate((warmup + total) // 2, cfg, samples) == pytest.approx(0.005, rel=1e-3)
    assert learning_rate(total - 1, cfg, samples) == 0
    rates = [learning_rate(step, cfg, samples) for step in range(0, total, 100)]
    assert rates == sorted(rates[: warmup // 100 + 1]) + sorted(rates[warmup // 100 + 1 :], reverse=True)


@pytest.mark.parametrize("samples", [40, 43])
def test_the_warm_up_starts_where_the_sources_start_it(samples: int) -> None:
    """timm's warm-up from a rate of its own (DeiT: 1e-6), which each of our steps has reached when it ends."""
    cfg, ours = schedule(samples, lr=3e-3, warmup_epochs=2, warmup_lr=1e-4)
    warmup = cfg.steps(2, samples)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-3)
    reference = timm.scheduler.CosineLRScheduler(
        optimizer, len(ours), warmup_t=warmup, warmup_lr_init=1e-4, warmup_prefix=True, t_in_epochs=False
    )
    for step in range(warmup):
        reference.step_update(step + 1)
        assert ours[step] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
    assert ours[0] == pytest.approx(1e-4 + 2.9e-3 / warmup)


@pytest.mark.parametrize("samples", [8, 40])
def test_without_warm_up_the_first_step_has_the_peak(samples: int) -> None:
    """Also in a run of few steps, which still ends at the last rate."""
    _, rates = schedule(samples, lr=1e-3, final_lr=1e-5)
    assert rates[0] == 1e-3
    assert rates[-1] == pytest.approx(1e-5)


LINEAR = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
DECAYED = {
    *(f"blocks.{i}.{layer}.weight" for i in range(2) for layer in LINEAR),
    *("patches.proj.weight", "head.weight"),
}
NOT_DECAYED = {
    *(f"blocks.{i}.{layer}.bias" for i in range(2) for layer in LINEAR),
    *(f"blocks.{i}.{norm}.{what}" for i in range(2) for norm in ("norm1", "norm2") for what in ("weight", "bias")),
    *("patches.proj.bias", "norm.weight", "norm.bias", "head.bias"),
}


@pytest.mark.parametrize(
    ("pool", "positions", "tokens"),
    [
        ("cls", "learned", {"cls_token", "positions"}),
        ("cls", "sincos2d", {"cls_token"}),
        ("mean", "learned", {"positions"}),
        ("mean", "sincos2d", set()),
    ],
)
def test_weight_decay_is_for_matrices_alone(
    pool: Literal["cls", "mean"], positions: Literal["learned", "sincos2d"], tokens: set[str]
) -> None:
    """Of a whole model, by name: every weight of a linear map decays; no norm, bias, class token or position does."""
    model = VisionTransformer(replace(SMALL, pool=pool, positions=positions))
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.3))
    names = {p: name for name, p in model.named_parameters()}
    found: dict[float, set[str]] = {0.3: set(), 0.0: set()}
    for group in optimizer.param_groups:
        found[group["weight_decay"]] |= {names[p] for p in group["params"]}
    assert found == {0.3: DECAYED, 0.0: NOT_DECAYED | tokens}
    assert all(decays(name, p) == (name in DECAYED) for name, p in model.named_parameters())


def test_decay_acts_on_matrices_and_leaves_the_rest_as_it_is() -> None:
    """Gradients of zero: matrices shrink by lr times weight_decay, all else keeps its bits."""
    torch.manual_seed(0)
    model = VisionTransformer(SMALL)
    nn.init.normal_(model.head.weight)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        if name in DECAYED:
            torch.testing.assert_close(p.detach(), before[name] * 0.95)
        else:
            assert torch.equal(p, before[name]), name


def steps(optimizer: torch.optim.Optimizer, model: nn.Module, count: int) -> list[Tensor]:
    """The weights after `count` steps of given gradients, whose learning rate changes as a schedule changes it."""
    random = torch.Generator().manual_seed(1)
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (step + 1)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=random) * 10 ** (step % 3 - 1)
        optimizer.step()
    return list(model.parameters())


def test_the_fused_kernel_is_torchs_plain_adamw() -> None:
    """Ten steps with the config's betas, eps and decay: the weights of `torch.optim.AdamW` in its plainest form."""
    torch.manual_seed(0)
    cfg = OptimConfig(weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-3)
    model = VisionTransformer(SMALL)
    reference = copy.deepcopy(model)
    groups = [
        {"params": [p for n, p in reference.named_parameters() if n in DECAYED], "weight_decay": 0.1},
        {"params": [p for n, p in reference.named_parameters() if n not in DECAYED], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-3, fused=False, foreach=False)
    fused = build_optimizer(model, cfg)
    assert all(group["fused"] for group in fused.param_groups)
    for ours, theirs in zip(steps(fused, model, 10), steps(plain, reference, 10), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_lamb_is_nvidias(weight_decay: float) -> None:
    """Twelve steps of a whole model, against timm's Lamb, which was written to behave as NVIDIA's FusedLAMB does."""
    torch.manual_seed(0)
    cfg = OptimConfig(optimizer="lamb", weight_decay=weight_decay, beta1=0.8, beta2=0.95, eps=1e-6)
    model = VisionTransformer(replace(SMALL, layer_scale=0.1))
    reference = copy.deepcopy(model)
    groups = [
        {"params": [p for n, p in reference.named_parameters() if n in DECAYED], "weight_decay": weight_decay},
        {"params": [p for n, p in reference.named_parameters() if n not in DECAYED], "weight_decay": 0.0},
    ]
    theirs = timm.optim.Lamb(groups, betas=(0.8, 0.95), eps=1e-6, max_grad_norm=None)
    for ours, expected in zip(steps(build_optimizer(model, cfg), model, 12), steps(theirs, reference, 12), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_lamb_is_the_papers_algorithm() -> None:
    """Two steps of one matrix in float64, line by line of algorithm 2; a matrix of zeros takes Adam's step."""
    random = torch.Generator().manual_seed(0)
    cfg = OptimConfig(optimizer="lamb", weight_decay=0.3, beta1=0.8, beta2=0.9, eps=1e-3, lr=0.01)
    model = VisionTransformer(SMALL).double()
    p = model.blocks[0].mlp.up.weight
    x, m, v = p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)
    optimizer = build_optimizer(model, cfg)
    head = model.head.weight
    for t in (1, 2):
        p.grad = torch.randn(p.shape, generator=random, dtype=torch.float64)
        head.grad = torch.ones_like(head) if t == 1 else None
        g = p.grad
        optimizer.step()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        r = (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-3) + 0.3 * x
        x = x - 0.01 * (x.norm() / r.norm()) * r
        torch.testing.assert_close(p.detach(), x, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(head.detach(), torch.full_like(head, -0.01 / 1.001))


def test_lamb_goes_on_where_a_checkpoint_was_taken(tmp_path: Path) -> None:
    """Its memory has names that a checkpoint keeps: the next step has the same bits."""
    cfg = replace(small_config(tmp_path), optim=OptimConfig(optimizer="lamb", lr=0.01))
    state, resumed = (TrainState.fresh(cfg, torch.device("cpu")) for _ in range(2))
    steps(state.optimizer, state.model, 3)
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    assert "optimizer.head.weight.exp_avg_sq" in saved
    resumed.restore(3, saved, state.about())
    for ours, theirs in zip(
        steps(resumed.optimizer, resumed.model, 2), steps(state.optimizer, state.model, 2), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_all_weights_decay_where_the_recipe_says_so() -> None:
    """torchvision's decays norms, biases and positions too: one group."""
    (group,) = build_optimizer(VisionTransformer(SMALL), OptimConfig(weight_decay=0.3, decayed="all")).param_groups
    assert group["weight_decay"] == 0.3
    assert len(group["params"]) == len(list(VisionTransformer(SMALL).parameters()))


def test_layers_learn_the_slower_the_deeper_they_lie() -> None:
    """As timm counts layers; only the last norm goes with the head, as in BEiT and MAE, and not with the last block."""
    model = VisionTransformer(replace(SMALL, depth=3))
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3, layer_decay=0.65))
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: scales[id(p)] for name, p in model.named_parameters()}
    theirs = timm.models.VisionTransformer(img_size=28, patch_size=7, embed_dim=16, depth=3, num_heads=2, num_classes=5)
    groups = timm.optim.param_groups_layer_decay(theirs, layer_decay=0.65)
    names = {id(p): name for name, p in theirs.named_parameters()}
    expected = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    same = {"cls_token": "cls_token", "positions": "pos_embed", "patches.proj.weight": "patch_embed.proj.weight"}
    same |= {f"blocks.{i}.{n}": f"blocks.{i}.{n}" for i in range(3) for n in ("norm1.weight", "norm2.bias")}
    same |= {f"blocks.{i}.mlp.up.weight": f"blocks.{i}.mlp.fc1.weight" for i in range(3)}
    same |= {name: name for name in ("head.weight", "head.bias")}
    for ours, name in same.items():
        assert found[ours] == pytest.approx(expected[name]), ours
    assert found["norm.weight"] == 1
    assert optimizer.param_groups[0]["lr_scale"] == 1  # the rate that is logged
    assert layer("blocks.10.norm1.weight", 12) == 11


def test_bce_takes_every_class_that_is_mixed_in_for_a_right_one() -> None:
    """DeiT-III's line: `targets.gt(0.0)`, then torch's BCEWithLogitsLoss over images and classes."""
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    targets = F.one_hot(torch.tensor([0, 2, 5, 5]), 6) * 0.3 + F.one_hot(torch.tensor([1, 2, 0, 4]), 6) * 0.7
    expected = nn.BCEWithLogitsLoss()(logits, targets.gt(0.0).type(targets.dtype))
    assert training_loss(logits, targets, "bce") == expected
    half = logits.bfloat16()
    assert training_loss(half, targets, "bce") == training_loss(half.float(), targets, "bce")  # summed in float32


def test_cross_entropy_of_soft_targets_is_that_of_its_formula() -> None:
    """The mean over images of - sum of target times log-softmax, as timm's SoftTargetCrossEntropy."""
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    expected = timm.loss.SoftTargetCrossEntropy()(logits, targets)
    torch.testing.assert_close(training_loss(logits, targets, "cross-entropy"), expected)


def test_the_average_begins_where_the_warm_up_ends_or_forgets_its_first_steps() -> None:
    """torchvision's `copy` against torch's own AveragedModel; `ramp` against TensorFlow's rule."""
    cfg = Config(
        epochs=4, global_batch=8, micro_batch=8,
        optim=OptimConfig(ema_decay=0.9, ema_warmup="copy", warmup_epochs=2),
    )  # fmt: skip
    model = nn.Linear(2, 2)
    average = copy.deepcopy(model)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(12):  # three steps an epoch
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 2, generator=torch.Generator().manual_seed(step)))
        update_ema(average, model, ema_decay(step, cfg, 24))
        theirs.update_parameters(model)
        if step < 5:  # torchvision forgets after each step of the warm-up, and copies at the next
            theirs.n_averaged.fill_(0)
        torch.testing.assert_close(average.weight, theirs.module.weight)
        assert torch.equal(average.weight, model.weight) == (step < 6)
    ramp = replace(cfg, optim=replace(cfg.optim, ema_warmup="ramp"))
    assert [ema_decay(n, ramp, 24) for n in (0, 1, 90, 1000)] == [1 / 10, 2 / 11, 0.9, 0.9]


def test_averaged_weights_are_the_exponential_average_of_all_steps() -> None:
    """Against the closed form: decay^n of the first weights, (1 - decay) decay^(n - i) of those of step i."""
    decay, count = 0.9, 7
    torch.manual_seed(0)
    model = VisionTransformer(SMALL)
    average = copy.deepcopy(model).requires_grad_(False)
    expected = [decay**count * p.detach().double() for p in model.parameters()]
    for i in range(1, count + 1):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        update_ema(average, model, decay)
        for total, p in zip(expected, model.parameters(), strict=True):
            total.add_(p.detach().double(), alpha=(1 - decay) * decay ** (count - i))
    for total, p in zip(expected, average.parameters(), strict=True):
        torch.testing.assert_close(p.double(), total, rtol=1e-5, atol=1e-6)


def test_a_run_keeps_an_average_only_if_it_is_asked_to(tmp_path: Path) -> None:
    """It starts as the weights, is no copy of them that shares memory, and no gradient reaches it."""
    cfg = small_config(tmp_path)
    assert TrainState.fresh(cfg, torch.device("cpu")).ema is None
    state = TrainState.fresh(replace(cfg, optim=OptimConfig(ema_decay=0.99)), torch.device("cpu"))
    assert state.ema is not None
    for averaged, p in zip(state.ema.parameters(), state.model.parameters(), strict=True):
        assert torch.equal(averaged, p)
        assert averaged.data_ptr() != p.data_ptr()
        assert not averaged.requires_grad
    held = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in state.model.parameters()}
