"""Weights from elsewhere, under our names: runs, checkpoints, and the files of torchvision, timm and DeiT.

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

from vit.model.vision_transformer import VisionTransformer

# Parts of names: ours, theirs.
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
# The same layers in other files: those that torchvision downloads, and DeiT-III's own.
_ALIASES = {
    ".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3.", ".gamma_1": ".ls1.gamma", ".gamma_2": ".ls2.gamma",
}  # fmt: skip
Tensors = dict[str, Tensor]


def from_torchvision(weights: Mapping[str, Tensor]) -> Tensors:
    """The state dict of a torchvision `vit_*`, under our names and shapes."""
    return _to_ours(weights, TORCHVISION)


def from_timm(weights: Mapping[str, Tensor]) -> Tensors:
    """The state dict of a timm or DeiT ViT, under our names and shapes.

    DeiT-III gives its class token no position: ours gets one of zeros.
    """
    out = _to_ours(weights, TIMM)
    positions = out.get("positions")
    if positions is not None and "cls_token" in out and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        out["positions"] = F.pad(positions, (0, 0, 1, 0))
    return out


def _to_ours(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> Tensors:
    renames = _ALIASES | {theirs: ours for ours, theirs in names.items()}
    renamed = {_renamed(name, renames): tensor for name, tensor in weights.items()}
    # A convolution's (D, 3, P, P) is the patch map's (D, 3 P P).
    return {n: t.flatten(1) if n == "patches.proj.weight" else t for n, t in renamed.items()}


def to_theirs(weights: Mapping[str, Tensor], names: Mapping[str, str], patch_size: int) -> Tensors:
    """Our weights under the names and shapes of `TORCHVISION` or `TIMM`."""
    convolution = {
        n: t.unflatten(1, (3, patch_size, patch_size)) if n == "patches.proj.weight" else t for n, t in weights.items()
    }
    return {_renamed(name, names): tensor for name, tensor in convolution.items()}


def _renamed(name: str, renames: Mapping[str, str]) -> str:
    return functools.reduce(lambda n, part: n.replace(part, renames[part]), renames, name)


def resize_positions(positions: Tensor, tokens: int) -> Tensor:
    """Learned positions for another number of patches: (1, N, D) -> (1, tokens, D), bicubic.

    The class token's, if there is one, is kept; corners stay on corners, as in torchvision's `interpolate_embeddings`.
    Raises ValueError if the patches are no square.
    """
    sides = {math.isqrt(n - 1) ** 2 == n - 1 for n in (positions.shape[1], tokens)}
    front = int(sides == {True})  # both have a class token
    old, new = (math.isqrt(n - front) for n in (positions.shape[1], tokens))
    if old**2 + front != positions.shape[1] or new**2 + front != tokens:
        raise ValueError(f"{positions.shape[1]} positions cannot be made {tokens}: they are not those of a square")
    grid = positions[:, front:].transpose(1, 2).unflatten(2, (old, old))  # (1, D, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=True)
    return torch.cat([positions[:, :front], grid.flatten(2).transpose(1, 2)], dim=1)


def fit_weights(weights: Tensors, model: VisionTransformer) -> list[str]:
    """Copies weights into a model, and says in a line each what was loaded, resized, made new and left out.

    Learned positions are resized to the model's patches; a head for another number of classes stays as it is.  Raises
    ValueError that names what is missing or has another shape.
    """
    own, given, said = model.state_dict(), dict(weights), []
    loaded = [name for name in own if not name.startswith("head.")]
    classes = len(given.get("head.weight", ()))
    if classes == model.cfg.num_classes:
        loaded = list(own)
    else:
        given |= {name: own[name] for name in ("head.weight", "head.bias")}
        said.append(f"new: a head of {model.cfg.num_classes} classes" + (f" in place of {classes}" if classes else ""))
    if missing := [name for name in own if name not in given]:
        raise ValueError(f"the weights lack {_some(missing)}; model.* must describe the model that they were made for")
    if "positions" in own:
        tokens, before = own["positions"].shape[1], given["positions"].shape[1]
        if model.cls_token is None and "cls_token" in given:
            given["positions"] = given["positions"][:, 1:]
        if given["positions"].shape[1] != tokens:
            given["positions"] = resize_positions(given["positions"], tokens)
            said.append(f"resized: positions, {before} to {tokens}")
    for name, tensor in own.items():
        if given[name].shape != tensor.shape:
            shapes = f"{tuple(given[name].shape)}, and the model wants {tuple(tensor.shape)}"
            raise ValueError(f"{name} has the shape {shapes}; model.* must describe the model that it was made for")
    if left_out := [name for name in given if name not in own]:
        said.append(f"left out: {_some(left_out)}")
    model.load_state_dict({name: given[name] for name in own})
    return [f"loaded: {sum(own[name].numel() for name in loaded):,} weights", *said]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
