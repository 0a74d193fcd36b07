"""Muon updates the matrices of the blocks as torch and its authors define it, and AdamW all other parameters."""

import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.data_sets import small_config
from tests.helpers.interrupted_runs import (
    ALL_RANKS,
    Fault,
    final_tensors,
    learning_curve,
    new_run_folder,
    run_attempt,
    save_each_step,
    short_config,
)
from tests.helpers.optimizers import steps
from tests.helpers.ranks import run_ranks
from vit.checkpoint.train_state import TrainState
from vit.config.sections import ModelConfig, OptimConfig
from vit.config.user_error import UserError
from vit.model.vision_transformer import VisionTransformer
from vit.model.weight_fit import state_bytes
from vit.optim.optimizer import build_optimizer

SMALL = ModelConfig(image_size=28, patch_size=7, width=16, depth=2, heads=2, mlp_dim=24, num_classes=5)
LINEAR = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
MATRICES = {f"blocks.{i}.{layer}.weight" for i in range(2) for layer in LINEAR}
CFG = OptimConfig(optimizer="muon", weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-3, momentum=0.9)


def test_muon_is_that_of_pytorch_for_matrices_and_adamw_for_the_rest() -> None:
    """Ten steps of a whole model with a decreasing learning rate: the same bits as `torch.optim.Muon`.

    Its reference has the matrices of Q, K and V as parameters of their own.
    """
    torch.manual_seed(0)
    model = VisionTransformer(replace(SMALL, layer_scale=0.1))
    reference = {name: p.detach().clone() for name, p in model.named_parameters()}
    matrices = {name: reference.pop(name) for name in sorted(MATRICES)}
    parts = {name: list(p.chunk(3 if "qkv" in name else 1)) for name, p in matrices.items()}
    decayed = [p for name, p in reference.items() if name in ("patches.proj.weight", "head.weight")]
    rest = [p for name, p in reference.items() if name not in ("patches.proj.weight", "head.weight")]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-3, fused=True)
    every_part = [part for of_one in parts.values() for part in of_one]
    muon = torch.optim.Muon(every_part, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")

    def step_reference(step: int, gradients: dict[str, Tensor]) -> None:
        for optimizer in (adamw, muon):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (step + 1)
        for name, p in reference.items():
            p.grad = gradients[name].clone()
        for name, of_one in parts.items():
            for part, gradient in zip(of_one, gradients[name].chunk(len(of_one)), strict=True):
                part.grad = gradient.clone()
        adamw.step()
        muon.step()

    steps(build_optimizer(model, CFG), model, 10, step_reference)
    for name, p in model.named_parameters():
        assert torch.equal(p, torch.cat(parts[name]) if name in parts else reference[name]), name


def newton_schulz(matrix: Tensor) -> Tensor:
    """Five iterations of the polynomial of https://kellerjordan.github.io/posts/muon/, in the precision of `matrix`."""
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_an_update_is_the_momentum_with_all_singular_values_near_one() -> None:
    """Written out in float64: Nesterov momentum, Newton-Schulz, and the scale 0.2 · √max(A, B) of Moonlight.

    Muon iterates in bfloat16, with 8 bits of precision.
    """
    torch.manual_seed(0)
    model = VisionTransformer(replace(SMALL, width=64, mlp_dim=256))
    optimizer = build_optimizer(model, replace(CFG, lr=0.01))
    qkv, up = model.blocks[0].attention.qkv.weight, model.blocks[0].mlp.up.weight
    gradients = [{p: torch.randn_like(p) for p in (qkv, up)} for _ in range(2)]
    before = {p: p.detach().double() for p in (qkv, up)}
    expected = {}
    for p, start in before.items():
        average, out = torch.zeros_like(start), start
        for gradient in (g[p].double() for g in gradients):
            average = 0.9 * average + 0.1 * gradient
            nesterov = 0.1 * gradient + 0.9 * average
            parts = nesterov.chunk(3 if p is qkv else 1)
            scale = 0.2 * math.sqrt(max(parts[0].shape))
            out = out * (1 - 0.01 * 0.1) - 0.01 * scale * torch.cat([newton_schulz(part) for part in parts])
        expected[p] = out
    for of_step in gradients:
        for p, gradient in of_step.items():
            p.grad = gradient
        optimizer.step()
    for p, start in before.items():
        error = (p.detach() - expected[p]).norm() / (expected[p] - start).norm()
        assert error < 0.02
    update = newton_schulz(gradients[0][up].double())
    assert torch.linalg.svdvals(update).min() > 0.6 and torch.linalg.svdvals(update).max() < 1.3
    assert 0.2 * 16 * update.square().mean().sqrt() == pytest.approx(0.2, rel=0.25), "as large as AdamW's"


def test_one_learning_rate_and_layer_decay_apply_to_both_parts() -> None:
    """The first group has the learning rate that is logged; each matrix is in the group of its block's rate."""
    model = VisionTransformer(SMALL)
    optimizer = build_optimizer(model, replace(CFG, layer_decay=0.5))
    names = {p: name for name, p in model.named_parameters()}
    found = {names[p]: (g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found.keys() == set(names.values())
    assert optimizer.param_groups[0]["lr_scale"] == 1
    assert {found[f"blocks.0.{layer}.weight"] for layer in LINEAR} == {(0.25, 0.1)}
    assert {found[f"blocks.1.{layer}.weight"] for layer in LINEAR} == {(0.5, 0.1)}
    assert found["blocks.1.norm1.weight"] == (0.5, 0.0) and found["patches.proj.weight"] == (0.125, 0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps(optimizer, model, 1)
    moved = {n: (p.detach() - before[n]).norm() for n, p in model.named_parameters() if "up" in n}
    assert moved.keys() == {f"blocks.{i}.mlp.up.{kind}" for i in range(2) for kind in ("weight", "bias")}
    assert all(moved.values())


def test_muon_resumes_bit_identically_from_a_checkpoint(tmp_path: Path) -> None:
    """One moment of each matrix, as large as the checkpoint is expected to be, and AdamW's of all other parameters."""
    cfg = replace(small_config(tmp_path), optim=replace(CFG, ema_decay=0.9))
    state, resumed = (TrainState.fresh(cfg, torch.device("cpu")) for _ in range(2))
    steps(state.optimizer, state.model, 3)
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    names = {name.removeprefix("optimizer.") for name in saved if name.startswith("optimizer.blocks.0.mlp.up.")}
    up = "blocks.0.mlp.up"
    assert names == {f"{up}.weight.momentum_buffer", *(f"{up}.bias.{n}" for n in ("step", "exp_avg", "exp_avg_sq"))}
    assert sum(t.nbytes for n, t in saved.items() if not n.endswith(".step")) == state_bytes(cfg)
    resumed.restore(3, saved, state.metadata())
    for ours, theirs in zip(
        steps(resumed.optimizer, resumed.model, 2), steps(state.optimizer, state.model, 2), strict=True
    ):
        assert torch.equal(ours, theirs)
    resumed.reset(cfg)
    fresh = TrainState.fresh(cfg, torch.device("cpu")).tensors()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in resumed.tensors().items())


@pytest.mark.parametrize(("before", "after"), [("adamw", "muon"), ("muon", "adamw"), ("muon", "lamb")])
def test_a_run_that_is_told_to_change_its_optimizer_keeps_the_moments_that_both_have(
    before: str, after: str, tmp_path: Path
) -> None:
    """The others are zero, as at step 0; no checkpoint has moments that no optimizer uses."""
    old, new = (
        TrainState.fresh(replace(small_config(tmp_path), optim=OptimConfig(optimizer=name)), torch.device("cpu"))  # type: ignore[arg-type]
        for name in (before, after)
    )
    steps(old.optimizer, old.model, 3)
    names = new.tensors().keys()
    new.restore(3, old.tensors(), old.metadata())
    assert new.tensors().keys() == names
    kept, given = new.tensors(), old.tensors()
    assert all(torch.equal(tensor, given.get(name, torch.zeros_like(tensor))) for name, tensor in kept.items())
    assert all(p.isfinite().all() for p in steps(new.optimizer, new.model, 2))


def test_a_run_with_muon_is_identical_after_kills_and_a_skipped_step_on_other_numbers_of_ranks(
    betons: Path, tmp_path: Path
) -> None:
    """Killed on four ranks, then on two after it rolled back from a step that was not finite, and finished on one."""
    cfg = save_each_step(short_config(betons))
    cfg = replace(cfg, optim=replace(cfg.optim, optimizer="muon", layer_decay=0.7))
    expected, killed = new_run_folder(tmp_path / "expected"), new_run_folder(tmp_path / "killed")
    assert run_ranks(4, run_attempt, cfg, expected, None, (), (3,)) == ["finished"] * 4
    assert run_ranks(4, run_attempt, cfg, killed, Fault(2, ALL_RANKS, signal.SIGKILL)) == [-signal.SIGKILL] * 4
    assert run_ranks(2, run_attempt, cfg, killed, Fault(5, 0, signal.SIGTERM), (), (3,)) == ["stopped"] * 2
    assert run_ranks(1, run_attempt, cfg, killed) == ["finished"]
    tensors, others = final_tensors(expected), final_tensors(killed)
    assert "optimizer.blocks.0.mlp.up.weight.momentum_buffer" in tensors
    assert tensors.keys() == others.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []
    assert learning_curve(expected) == learning_curve(killed)


def test_momentum_is_refused_where_it_would_have_no_effect() -> None:
    """AdamW and LAMB have `optim.beta1`."""
    with pytest.raises(UserError, match=r"optim\.momentum requires optim\.optimizer muon"):
        OptimConfig(momentum=0.9)
    with pytest.raises(UserError, match=r"optim\.momentum must be in \[0, 1\), not 1"):
        OptimConfig(optimizer="muon", momentum=1.0)
