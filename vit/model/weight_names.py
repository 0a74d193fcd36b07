"""Conversion of weights from and to the names of torchvision, timm and DeiT, and loading of pretrained weights.

torchvision   conv_proj.weight           encoder.layers.encoder_layer_0.mlp.0.weight
timm, DeiT    patch_embed.proj.weight    blocks.0.mlp.fc1.weight
ours          patches.proj.weight        blocks.0.mlp.up.weight
"""

import functools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.config.user_error import UserError
from vit.model.vision_transformer import VisionTransformer

# Substrings of parameter names: ours -> theirs.
TORCHVISION = {
    "cls_token": "class_token",
    "patches.proj.": "conv_proj.",
    "positions": "encoder.pos_embedding",
    "blocks.": "encoder.layers.encoder_layer_",
    "norm.": "encoder.ln.",
    "head.": "heads.head.",
    ".norm1.": ".ln_1.",
    ".norm2.": ".ln_2.",
    ".attention.qkv.": ".self_attention.in_proj_",
    ".attention.out.": ".self_attention.out_proj.",
    ".mlp.up.": ".mlp.0.",
    ".mlp.down.": ".mlp.3.",
}
TIMM = {
    "patches.proj.": "patch_embed.proj.",
    "positions": "pos_embed",
    ".attention.qkv.": ".attn.qkv.",
    ".attention.out.": ".attn.proj.",
    ".mlp.up.": ".mlp.fc1.",
    ".mlp.down.": ".mlp.fc2.",
    ".scale1.": ".ls1.",
    ".scale2.": ".ls2.",
}
# Other names for the same layers, in the files that torchvision downloads and in DeiT-III's files.
_ALIASES = {
    ".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3.", ".gamma_1": ".ls1.gamma", ".gamma_2": ".ls2.gamma",
}  # fmt: skip
Tensors = dict[str, Tensor]


def from_torchvision(weights: Mapping[str, Tensor]) -> Tensors:
    """Converts the state dict of a torchvision `vit_*` to our names and shapes."""
    return _to_ours(weights, TORCHVISION)


def from_timm(weights: Mapping[str, Tensor]) -> Tensors:
    """Converts the state dict of a timm or DeiT ViT to our names and shapes.

    DeiT-III has no position embedding for the class token: ours is set to zero.
    """
    out = _to_ours(weights, TIMM)
    positions = out.get("positions")
    if positions is not None and "cls_token" in out and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        out["positions"] = F.pad(positions, (0, 0, 1, 0))
    return out


def _to_ours(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> Tensors:
    renames = _ALIASES | {theirs: ours for ours, theirs in names.items()}
    renamed = {_renamed(name, renames): tensor for name, tensor in weights.items()}
    # Theirs is the kernel of a convolution, (D, 3, P, P); ours is the matrix of a linear layer, (D, 3 P P).
    return {n: t.flatten(1) if n == "patches.proj.weight" else t for n, t in renamed.items()}


def to_theirs(weights: Mapping[str, Tensor], names: Mapping[str, str], patch_size: int) -> Tensors:
    """Converts our weights to the names and shapes of `TORCHVISION` or `TIMM`."""
    reshaped = {
        n: t.unflatten(1, (3, patch_size, patch_size)) if n == "patches.proj.weight" else t for n, t in weights.items()
    }
    return {_renamed(name, names): tensor for name, tensor in reshaped.items()}


def _renamed(name: str, renames: Mapping[str, str]) -> str:
    return functools.reduce(lambda n, part: n.replace(part, renames[part]), renames, name)


def resize_positions(positions: Tensor, tokens: int) -> Tensor:
    """Resizes learned position embeddings to another number of tokens, bicubic: (1, N, D) -> (1, tokens, D).

    Keeps the class token's position if there is one, and aligns corners as torchvision's `interpolate_embeddings` does.
    Raises UserError if the patches do not form a square.
    """
    # 1 if both have a class token, that is, a square number of patches and one token more.
    class_tokens = int(all(math.isqrt(n - 1) ** 2 == n - 1 for n in (positions.shape[1], tokens)))
    old, new = (math.isqrt(n - class_tokens) for n in (positions.shape[1], tokens))
    if old**2 + class_tokens != positions.shape[1] or new**2 + class_tokens != tokens:
        raise UserError(f"cannot resize {positions.shape[1]} positions to {tokens}: the patches do not form a square")
    grid = positions[:, class_tokens:].transpose(1, 2).unflatten(2, (old, old))  # (1, D, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=True)
    return torch.cat([positions[:, :class_tokens], grid.flatten(2).transpose(1, 2)], dim=1)


def load_pretrained(weights: Tensors, model: VisionTransformer) -> list[str]:
    """Copies weights into a model; returns one line each on what was loaded, initialized, resized and ignored.

    Resizes learned positions to the model's number of patches.  If the number of classes differs, the model keeps its
    own head.  Raises UserError that names what is missing or has a different shape.
    """
    own, given, report = model.state_dict(), dict(weights), []
    loaded = [name for name in own if not name.startswith("head.")]
    classes = len(given.get("head.weight", ()))
    if classes == model.cfg.num_classes:
        loaded = list(own)
    else:
        given |= {name: own[name] for name in ("head.weight", "head.bias")}
        pretrained = f" (pretrained: {classes})" if classes else ""
        report.append(f"initialized: head for {model.cfg.num_classes} classes{pretrained}")
    if missing := [name for name in own if name not in given]:
        raise UserError(f"the pretrained weights lack {_some(missing)}; set model.* to their architecture")
    if "positions" in own:
        tokens, before = own["positions"].shape[1], given["positions"].shape[1]
        if model.cls_token is None and "cls_token" in given:
            given["positions"] = given["positions"][:, 1:]
        if given["positions"].shape[1] != tokens:
            given["positions"] = resize_positions(given["positions"], tokens)
            report.append(f"resized: positions, {before} to {tokens}")
    for name, tensor in own.items():
        if given[name].shape != tensor.shape:
            shapes = f"{tuple(given[name].shape)}, but the model expects {tuple(tensor.shape)}"
            raise UserError(f"{name} has shape {shapes}; set model.* to the architecture of the pretrained weights")
    if ignored := [name for name in given if name not in own]:
        report.append(f"ignored: {_some(ignored)}")
    model.load_state_dict({name: given[name] for name in own})
    return [f"loaded: {sum(own[name].numel() for name in loaded):,} weights", *report]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
