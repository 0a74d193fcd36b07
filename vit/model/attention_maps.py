"""Attention maps: the attention weights of each head of each block, and attention rollout.

Shapes: B images, L blocks, H heads, N tokens, G patches along a side, S pixels along a side.
"""

from typing import Any

import torch
from torch import Tensor

from vit.model.vision_transformer import MultiHeadAttention, VisionTransformer


@torch.inference_mode()
def forward_with_attention(model: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and attention weights: (B, 3, S, S) -> (B, C), (B, L, H, N, N).  Rows of the weights sum to 1.

    The fused kernel does not return attention weights, so a forward hook recomputes them from each block's input.
    """
    weights: list[Tensor] = []

    def hook(module: MultiHeadAttention, inputs: tuple[Any, ...], _: Tensor) -> None:
        weights.append(attention_weights(module, inputs[0]))

    modules = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    hooks = [module.register_forward_hook(hook) for module in modules]
    try:
        logits = model(images)
    finally:
        for handle in hooks:
            handle.remove()
    return logits, torch.stack(weights, dim=1)


def attention_weights(module: MultiHeadAttention, x: Tensor) -> Tensor:
    """softmax(QKᵀ / √d) of each head: (B, N, D) -> (B, H, N, N)."""
    B, N, D = x.shape
    q, k, _ = module.qkv(x).view(B, N, 3, module.heads, D // module.heads).permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-2, -1) / (D // module.heads) ** 0.5).softmax(dim=-1)


def rollout(weights: Tensor) -> Tensor:
    """Attention rollout, from input tokens to tokens of the last block: (B, L, H, N, N) -> (B, N, N).  Rows sum to 1.

    Averages the heads, mixes the result half and half with the identity (the residual connection), and multiplies over
    blocks.  Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928.
    """
    blocks = weights.mean(dim=2)  # (B, L, N, N)
    blocks = (blocks + torch.eye(blocks.shape[-1], device=blocks.device)) / 2
    product = blocks[:, 0]
    for block in blocks.unbind(dim=1)[1:]:
        product = block @ product
    return product


def patch_maps(model: VisionTransformer, weights: Tensor) -> Tensor:
    """The attention of the classification head's input to each patch: (B, L, H, N, N) -> (B, 1 + H, G, G).

    The first map is the rollout, the others are the heads of the last block.  Takes the class token's row or, with
    `pool: mean`, the mean over the rows of all patches.
    """
    rows = torch.cat([rollout(weights)[:, None], weights[:, -1]], dim=1)  # (B, 1 + H, N, N)
    patches = rows[:, :, 0, 1:] if model.cls_token is not None else rows.mean(dim=2)
    side = model.cfg.image_size // model.cfg.patch_size
    return patches.unflatten(2, (side, side))
