"""AdamW or LAMB with parameter groups: weight decay only for matrices, layer-wise learning-rate decay."""

import torch
from torch import Tensor

from vit.config.sections import OptimConfig
from vit.model.vision_transformer import VisionTransformer
from vit.optim.lamb import Lamb

# Parameters of shape (1, N, D) that are not weight matrices and get no weight decay.
_TOKENS = ("cls_token", "positions")


def has_weight_decay(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: only to weight matrices, not to norms, biases, the class token and positions."""
    return parameter.ndim >= 2 and name not in _TOKENS


def build_optimizer(model: VisionTransformer, cfg: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) in one fused kernel, or LAMB.

    Each group has an `lr_scale`, by which the caller multiplies the learning rate; that of the first group is 1.
    """
    groups = _parameter_groups(model, cfg)
    if cfg.optimizer == "lamb":
        return Lamb(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps)
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, fused=True)


def _parameter_groups(model: VisionTransformer, cfg: OptimConfig) -> list[dict[str, object]]:
    """Parameters grouped by learning-rate scale and weight decay; the head comes first, the patch embedding last."""
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, p in model.named_parameters():
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
