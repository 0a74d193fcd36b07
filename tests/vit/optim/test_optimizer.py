"""AdamW and LAMB agree with PyTorch, timm and the papers, and weight decay applies only to matrices."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import timm
import timm.optim
import torch
from torch import nn

from tests.helpers.data_sets import small_config
from tests.helpers.optimizers import NeverWaiting, steps
from vit.checkpoint.train_state import TrainState
from vit.config.sections import ModelConfig, OptimConfig
from vit.model.vision_transformer import VisionTransformer
from vit.optim.optimizer import build_optimizer, has_weight_decay, layer_index

SMALL = ModelConfig(image_size=28, patch_size=7, width=16, depth=2, heads=2, mlp_dim=24, num_classes=5)
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
def test_weight_decay_applies_only_to_matrices(
    pool: Literal["cls", "mean"], positions: Literal["learned", "sincos2d"], tokens: set[str]
) -> None:
    """By name: weights of linear layers decay; norms, biases, class token and positions do not."""
    model = VisionTransformer(replace(SMALL, pool=pool, positions=positions))
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.3))
    names = {p: name for name, p in model.named_parameters()}
    found: dict[float, set[str]] = {0.3: set(), 0.0: set()}
    for group in optimizer.param_groups:
        found[group["weight_decay"]] |= {names[p] for p in group["params"]}
    assert found == {0.3: DECAYED, 0.0: NOT_DECAYED | tokens}
    assert all(has_weight_decay(name, p) == (name in DECAYED) for name, p in model.named_parameters())


def test_with_zero_gradients_only_matrices_shrink() -> None:
    """By lr times weight_decay; all other parameters stay bit-identical."""
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


def test_adamw_is_that_of_pytorch() -> None:
    """Ten steps with non-default betas, eps and decay, compared with `torch.optim.AdamW` without fused kernels."""
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
def test_lamb_is_that_of_nvidia(weight_decay: float) -> None:
    """Twelve steps of a whole model, compared with timm's Lamb, which follows NVIDIA's FusedLAMB."""
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


def test_lamb_is_algorithm_2_of_the_paper() -> None:
    """Two steps of one matrix in float64, line by line; a matrix of zeros gets Adam's update."""
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


def test_lamb_resumes_bit_identically_from_a_checkpoint(tmp_path: Path) -> None:
    """Its state has the names that a checkpoint stores."""
    cfg = replace(small_config(tmp_path), optim=OptimConfig(optimizer="lamb", lr=0.01))
    state, resumed = (TrainState.fresh(cfg, torch.device("cpu")) for _ in range(2))
    steps(state.optimizer, state.model, 3)
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    assert "optimizer.head.weight.exp_avg_sq" in saved
    resumed.restore(3, saved, state.metadata())
    for ours, theirs in zip(
        steps(resumed.optimizer, resumed.model, 2), steps(state.optimizer, state.model, 2), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("optimizer_name", ["lamb", "muon"])
def test_an_update_that_overflows_in_fp16_is_skipped_without_waiting_for_the_gpu(
    optimizer_name: Literal["lamb", "muon"],
) -> None:
    """With the bits of a run without that update; the gradients of the second of three steps are not finite."""
    torch.manual_seed(0)
    model = VisionTransformer(SMALL)
    reference = copy.deepcopy(model)
    cfg = OptimConfig(optimizer=optimizer_name, lr=0.01)
    optimizer, expected = build_optimizer(model, cfg), build_optimizer(reference, cfg)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            q.grad = torch.randn_like(p)
            p.grad = scaler.scale(q.grad) if step != 1 else torch.full_like(p, math.nan)
        with NeverWaiting():
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        if step != 1:
            expected.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(value, expected.state[q][name]) for name, value in optimizer.state[p].items())


def test_weight_decay_can_apply_to_all_parameters() -> None:
    """`decayed: all`, as in torchvision's recipe: norms, biases and positions too, in a single parameter group."""
    (group,) = build_optimizer(VisionTransformer(SMALL), OptimConfig(weight_decay=0.3, decayed="all")).param_groups
    assert group["weight_decay"] == 0.3
    assert len(group["params"]) == len(list(VisionTransformer(SMALL).parameters()))


def test_layer_wise_learning_rate_decay_is_that_of_timm() -> None:
    """Except for the final norm, which gets the rate of the head, as in BEiT and MAE, not that of the last block."""
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
    assert optimizer.param_groups[0]["lr_scale"] == 1  # the learning rate that is logged
    assert layer_index("blocks.10.norm1.weight", 12) == 11
