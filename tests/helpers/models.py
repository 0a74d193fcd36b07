"""Small models with random weights, random images, and torchvision's model for comparison."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models import vision_transformer

from vit.config.sections import ModelConfig
from vit.model.pretrained import Tensors, converted
from vit.model.weight_names import our_names, our_shapes

SMALL = ModelConfig(image_size=28, patch_size=7, width=32, depth=3, heads=4, mlp_dim=48, num_classes=10)


def random_images(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Sets all weights to random values.  A new model has zeros, which would hide a missing layer."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.05 + (parameter.mean() > 0.5))
    return model


def torchvision_model(cfg: ModelConfig) -> vision_transformer.VisionTransformer:
    return vision_transformer.VisionTransformer(
        image_size=cfg.image_size,
        patch_size=cfg.patch_size,
        num_layers=cfg.depth,
        num_heads=cfg.heads,
        hidden_dim=cfg.width,
        mlp_dim=cfg.mlp_dim,
        num_classes=cfg.num_classes,
    )


def to_ours(weights: Mapping[str, Tensor]) -> Tensors:
    """Converts the state dict of a ViT of torchvision, timm, DeiT or this project to our names and shapes."""
    named = {ours: weights[theirs] for ours, theirs in our_names(weights).items()}
    shapes = our_shapes({name: tuple(tensor.shape) for name, tensor in named.items()})
    return {name: converted(tensor, shapes[name]) for name, tensor in named.items()}
