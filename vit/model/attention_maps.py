"""Where a model looks: the attention of each head of each block, and its rollout through all of them.

Shapes: B images, L blocks, H heads, N tokens, G patches along a side.
"""

from typing import Any

import torch
from torch import Tensor

from vit.model.vision_transformer import MultiHeadAttention, VisionTransformer


@torch.inference_mode()
def look(model: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and who attends to whom: (B, 3, S, S) -> (B, C), (B, L, H, N, N), whose rows sum to 1.

    The fused kernel keeps no shares, so they are computed beside it from what each block's attention is given.
    """
    shares: list[Tensor] = []

    def watch(module: MultiHeadAttention, inputs: tuple[Any, ...], _: Tensor) -> None:
        shares.append(attention_shares(module, inputs[0]))

    modules = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    hooks = [module.register_forward_hook(watch) for module in modules]
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, torch.stack(shares, dim=1)


def attention_shares(module: MultiHeadAttention, x: Tensor) -> Tensor:
    """softmax(QKᵀ / √K) of each head: (B, N, D) -> (B, H, N, N)."""
    B, N, D = x.shape
    q, k, _ = module.qkv(x).view(B, N, 3, module.heads, D // module.heads).permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-2, -1) / (D // module.heads) ** 0.5).softmax(dim=-1)


def rollout(shares: Tensor) -> Tensor:
    """How much of each token reaches each token of the last block: (B, L, H, N, N) -> (B, N, N), rows sum to 1.

    Heads are averaged, and half of each token comes by the residual path.  Abnar and Zuidema 2020,
    https://arxiv.org/abs/2005.00928.
    """
    mixed = shares.mean(dim=2)  # (B, L, N, N)
    mixed = (mixed + torch.eye(mixed.shape[-1], device=mixed.device)) / 2
    reached = mixed[:, 0]
    for block in mixed.unbind(dim=1)[1:]:
        reached = block @ reached
    return reached


def maps(model: VisionTransformer, shares: Tensor) -> Tensor:
    """What the head's input looked at, patch by patch: (B, L, H, N, N) -> (B, 1 + H, G, G).

    First the rollout, then each head of the last block.  The class token's row or, where the head reads the mean of all
    patches, the mean of theirs.
    """
    rows = torch.cat([rollout(shares)[:, None], shares[:, -1]], dim=1)  # (B, 1 + H, N, N)
    seen = rows[:, :, 0, 1:] if model.cls_token is not None else rows.mean(dim=2)
    side = model.cfg.image_size // model.cfg.patch_size
    return seen.unflatten(2, (side, side))
