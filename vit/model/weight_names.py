"""The names of weights: ours, and those of torchvision, timm and DeiT.  Does not import torch.

torchvision   conv_proj.weight           encoder.layers.encoder_layer_0.mlp.0.weight
timm, DeiT    patch_embed.proj.weight    blocks.0.mlp.fc1.weight
ours          patches.proj.weight        blocks.0.mlp.up.weight
"""

import functools
import math
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]

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
# The patch embedding, by which a state dict is recognized: ours, torchvision's, timm's.
PATCH_EMBEDDINGS = ("patches.proj.weight", "conv_proj.weight", "patch_embed.proj.weight")


def our_names(theirs: Iterable[str]) -> dict[str, str]:
    """Maps our names to those of a state dict of this project, torchvision, timm or DeiT; others are mapped to
    themselves."""
    names = list(theirs)
    library = TORCHVISION if "conv_proj.weight" in names else TIMM if "patch_embed.proj.weight" in names else {}
    renames = _ALIASES | {theirs: ours for ours, theirs in library.items()} if library else {}
    return {renamed(name, renames): name for name in names}


def our_shapes(theirs: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes that weights under our names have after conversion.

    The patch embedding of other libraries is the kernel of a convolution, (D, 3, P, P); ours is the matrix of a linear
    layer, (D, 3 P P).  DeiT-III has no position embedding for the class token: ours is set to zero.
    """
    out = dict(theirs)
    if kernel := out.get("patches.proj.weight"):
        out["patches.proj.weight"] = (kernel[0], math.prod(kernel[1:]))
    positions = out.get("positions", ())
    if len(positions) == 3 and "cls_token" in out and math.isqrt(positions[1]) ** 2 == positions[1]:
        out["positions"] = (positions[0], positions[1] + 1, positions[2])
    return out


def renamed(name: str, renames: Mapping[str, str]) -> str:
    """The name with all substrings replaced."""
    return functools.reduce(lambda n, part: n.replace(part, renames[part]), renames, name)
