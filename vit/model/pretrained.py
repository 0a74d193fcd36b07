"""Converts weights from and to the shapes and names of torchvision, timm and DeiT, and loads them into a model."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.model.fixed_positions import check_fixed_positions
from vit.model.vision_transformer import VisionTransformer
from vit.model.weight_fit import check_fit, position_grid
from vit.model.weight_names import Shape, renamed

Tensors = dict[str, Tensor]


def converted(tensor: Tensor, shape: Shape) -> Tensor:
    """A weight in the shape of `our_shapes`: a kernel is flattened, positions get zeros for the class token."""
    if math.prod(shape) == tensor.numel():
        return tensor.reshape(shape)
    return F.pad(tensor, (0, 0, shape[1] - tensor.shape[1], 0))


def to_theirs(weights: Mapping[str, Tensor], names: Mapping[str, str], patch_size: int) -> Tensors:
    """Converts our weights to the names and shapes of `TORCHVISION` or `TIMM`."""
    reshaped = {
        n: t.unflatten(1, (3, patch_size, patch_size)) if n == "patches.proj.weight" else t for n, t in weights.items()
    }
    return {renamed(name, names): tensor for name, tensor in reshaped.items()}


def resize_positions(positions: Tensor, tokens: int) -> Tensor:
    """Resizes learned position embeddings to another number of tokens, bicubic: (1, N, D) -> (1, tokens, D).

    Keeps the class token's position if there is one, and aligns corners as torchvision's `interpolate_embeddings` does.
    Raises UserError if the patches do not form a square.
    """
    class_tokens, old, new = position_grid(positions.shape[1], tokens)
    grid = positions[:, class_tokens:].transpose(1, 2).unflatten(2, (old, old))  # (1, D, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=True)
    return torch.cat([positions[:, :class_tokens], grid.flatten(2).transpose(1, 2)], dim=1)


def load_pretrained(
    weights: Mapping[str, Tensor],
    model: VisionTransformer,
    source: str = "the file",
    heads: int | None = None,
    new_head: bool = False,
) -> list[str]:
    """Copies weights under our names into a model; returns one line each on what was loaded, initialized, resized and
    ignored.

    Resizes learned positions to the model's number of patches.  If the number of classes differs, or with
    `new_head`, the model keeps its own head.  Raises UserError that names `source` and what does not fit; `heads` is
    its number of attention heads.
    """
    own, given = model.state_dict(), dict(weights)
    fit = check_fit({name: tuple(tensor.shape) for name, tensor in given.items()}, model.cfg, source, heads, new_head)
    if fit.positions == "fixed":
        check_fixed_positions(given["positions"].float().numpy(force=True), model.cfg.width, source)
    elif fit.positions == "learned":
        if model.cls_token is None and "cls_token" in given:
            given["positions"] = given["positions"][:, 1:]
        if given["positions"].shape[1] != own["positions"].shape[1]:
            given["positions"] = resize_positions(given["positions"], own["positions"].shape[1])
    model.load_state_dict(own | {name: given[name] for name in fit.loaded})
    return fit.report
