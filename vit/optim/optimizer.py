"""AdamW or LAMB over groups of parameters: weight decay for matrices alone, layer-wise learning rates."""

import torch
from torch import Tensor

from vit.config.schema import OptimConfig
from vit.model.vision_transformer import VisionTransformer
from vit.optim.lamb import Lamb

# Vectors of the model that are stored as (1, N, D): no matrices either.
_TOKENS = ("cls_token", "positions")


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices alone, not to norms, biases, the class token and positions."""
    return parameter.ndim >= 2 and name not in _TOKENS


def build_optimizer(model: VisionTransformer, cfg: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) in one fused kernel, or LAMB.

    Each group's `lr_scale` is to multiply the learning rate of a step; the first group's is 1.
    """
    groups = _groups(model, cfg)
    if cfg.optimizer == "lamb":
        return Lamb(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps)
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, fused=True)


def _groups(model: VisionTransformer, cfg: OptimConfig) -> list[dict[str, object]]:
    """The weights by learning rate and by decay: those of the head first, those of the patches last."""
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, p in model.named_parameters():
        scale = cfg.layer_decay ** (model.cfg.depth + 1 - layer(name, model.cfg.depth))
        groups.setdefault((scale, cfg.decayed == "all" or decays(name, p)), []).append(p)
    return [
        {"params": params, "weight_decay": cfg.weight_decay if decayed else 0.0, "lr_scale": scale}
        for (scale, decayed), params in sorted(groups.items(), key=lambda group: group[0], reverse=True)
    ]


def layer(name: str, depth: int) -> int:
    """0 for what stands before the blocks, 1 to `depth` for a block, `depth` + 1 for the head and the norm before it.

    Layer-wise decay of the learning rate counts so in BEiT (https://arxiv.org/abs/2106.08254) and MAE.
    """
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1 if name.startswith(("norm.", "head.")) else 0
