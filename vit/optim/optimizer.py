"""AdamW, LAMB or Muon with parameter groups: weight decay only for matrices, layer-wise learning-rate decay."""

from typing import Any

import torch
from torch import Tensor

from vit.config.sections import OptimConfig
from vit.model.vision_transformer import VisionTransformer
from vit.model.weight_fit import is_block_matrix
from vit.optim.lamb import Lamb
from vit.optim.muon import MuonAdamW

# Parameters of shape (1, N, D) that are not weight matrices and get no weight decay.
_TOKENS = ("cls_token", "positions")


def has_weight_decay(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: only to weight matrices, not to norms, biases, the class token and positions."""
    return parameter.ndim >= 2 and name not in _TOKENS


def build_optimizer(model: VisionTransformer, cfg: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) in one fused kernel, LAMB, or Muon.

    Each group has an `lr_scale`, by which the caller multiplies the learning rate; that of the first group is 1.
    """
    betas = (cfg.beta1, cfg.beta2)
    if cfg.optimizer == "muon":
        matrices = {name: p for name, p in model.named_parameters() if is_block_matrix(name, p.shape)}
        others = {name for name, _ in model.named_parameters() if name not in matrices}
        return MuonAdamW(
            _parameter_groups(model, cfg, set(matrices)),
            _parameter_groups(model, cfg, others),
            lr=cfg.lr,
            betas=betas,
            eps=cfg.eps,
            momentum=cfg.momentum,
            stacked={p: 3 for name, p in matrices.items() if name.endswith(".qkv.weight")},
        )
    groups = _parameter_groups(model, cfg, {name for name, _ in model.named_parameters()})
    if cfg.optimizer == "lamb":
        return Lamb(groups, lr=cfg.lr, betas=betas, eps=cfg.eps)
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=betas, eps=cfg.eps, fused=True)


def initialize_state(optimizer: torch.optim.Optimizer) -> None:
    """Creates all moments as the first update would, so that the set of a run's tensors never changes."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if "momentum" in group:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
            else:
                moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p] |= {"step": torch.zeros((), device=p.device), **moments}


def _parameter_groups(model: VisionTransformer, cfg: OptimConfig, names: set[str]) -> list[dict[str, Any]]:
    """Parameters grouped by learning-rate scale and weight decay; the head comes first, the patch embedding last."""
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, p in model.named_parameters():
        if name not in names:
            continue
        scale = cfg.layer_decay ** (model.cfg.depth + 1 - layer_index(name, model.cfg.depth))
        groups.setdefault((scale, cfg.decayed == "all" or has_weight_decay(name, p)), []).append(p)
    return [
        {"params": params, "weight_decay": cfg.weight_decay if decayed else 0.0, "lr_scale": scale}
        for (scale, decayed), params in sorted(groups.items(), key=lambda group: group[0], reverse=True)
    ]


def layer_index(name: str, depth: int) -> int:
    """Layer number of a parameter for layer-wise learning-rate decay.

    0 for everything before the blocks, 1 to `depth` for the blocks, `depth` + 1 for the head and the final norm, as in
    BEiT (https://arxiv.org/abs/2106.08254) and MAE.
    """
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1 if name.startswith(("norm.", "head.")) else 0
