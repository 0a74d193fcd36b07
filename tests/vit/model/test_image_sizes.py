"""One model takes images of any size: its positions are resampled to their patches."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.models import SMALL, random_images, randomized
from vit.config.sections import ModelConfig
from vit.model.vision_transformer import VisionTransformer, on_device, resampled, sincos2d

GRIDS = [(14, 6), (14, 8), (14, 10), (14, 12), (24, 14), (4, 1), (4, 3), (4, 6)]


def interpolated(grid: Tensor, side: int) -> Tensor:
    """The reference: torch's bicubic interpolation with antialiasing, (1, G², D) -> (1, side², D)."""
    G = round(grid.shape[1] ** 0.5)
    image = grid.transpose(1, 2).unflatten(2, (G, G))
    image = F.interpolate(image, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return image.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_learned_positions_are_resampled_as_torch_resizes_images(old: int, new: int) -> None:
    """Bicubic with antialiasing; values and gradients, also under autocast to bfloat16."""
    grid = torch.randn(1, old * old, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(1, new * new, 48, generator=torch.Generator().manual_seed(1))
    expected = interpolated(grid, new)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), grid)
    with torch.autocast("cpu", torch.bfloat16):
        positions = resampled(grid, new)
    (gradient,) = torch.autograd.grad((positions * weights).sum(), grid)
    torch.testing.assert_close(positions, expected, rtol=1e-5, atol=3e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=3e-6)


def sines_of_places(side: int, own: int) -> Tensor:
    """The sines of patches by the place of their centers in the picture, in patches of the model's own grid."""
    omega = 10_000.0 ** -(torch.arange(SMALL.width // 4) / (SMALL.width // 4 - 1))
    places = [(i + 0.5) / side * own - 0.5 for i in range(side)]
    rows = [
        torch.cat([(x * omega).sin(), (x * omega).cos(), (y * omega).sin(), (y * omega).cos()])
        for y in places
        for x in places
    ]
    return torch.stack(rows)[None]


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("positions", ["learned", "sincos2d"])
@pytest.mark.parametrize("size", [7, 14, 21, 35])
def test_a_model_computes_smaller_images_like_a_model_of_their_size(
    pool: Literal["cls", "mean"], positions: Literal["learned", "sincos2d"], size: int
) -> None:
    """With the same weights and its positions resampled; the class token keeps its own position."""
    model = randomized(VisionTransformer(replace(SMALL, pool=pool, positions=positions))).eval()
    reference = VisionTransformer(replace(SMALL, pool=pool, positions=positions, image_size=size)).eval()
    weights = dict(model.state_dict())
    if positions == "learned":
        first = weights["positions"].shape[1] - 16
        grid = interpolated(weights["positions"][:, first:], size // 7)
        weights["positions"] = torch.cat([weights["positions"][:, :first], grid], dim=1)
    reference.load_state_dict(weights)
    if positions == "sincos2d":
        reference.positions[:, reference.positions.shape[1] - (size // 7) ** 2 :] = sines_of_places(size // 7, 4)
    images = random_images(2, size)
    torch.testing.assert_close(model(images), reference(images), rtol=1e-5, atol=1e-5)


def test_images_of_the_models_own_size_get_its_positions_as_they_are() -> None:
    """Not a copy: nothing is computed, and no bit of a run at one size changes."""
    for cfg in (SMALL, replace(SMALL, positions="sincos2d")):
        model = VisionTransformer(cfg)
        assert model.positions_for(4) is model.positions
        assert {name for name, _ in model.named_buffers()} - {"positions"} <= {
            f"blocks.{i}.drop_path.keep" for i in range(3)
        }


def test_every_weight_learns_from_small_images() -> None:
    """The positions of all patches of the model's own grid get a gradient, and the class token's."""
    model = randomized(VisionTransformer(SMALL))
    model(random_images(2, 14)).square().sum().backward()
    assert isinstance(model.positions.grad, Tensor)
    assert (model.positions.grad.abs().sum(dim=2) > 0).all()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_size_that_is_first_evaluated_can_be_trained_afterwards() -> None:
    """What is kept for a size is no inference tensor, of which autograd would refuse to compute a gradient."""
    on_device.cache_clear()
    model = VisionTransformer(ModelConfig(image_size=40, patch_size=8, width=8, depth=1, heads=1, mlp_dim=8))
    with torch.inference_mode():
        model(random_images(1, 24))
    model(random_images(1, 24)).sum().backward()


def test_what_is_kept_for_a_size_is_computed_once() -> None:
    """Sines and matrices of resampling: each step of a stage uses the same tensor."""
    cpu = torch.device("cpu")
    assert on_device(sincos2d, cpu, 3, 16) is on_device(sincos2d, cpu, 3, 16)
    assert torch.equal(on_device(sincos2d, cpu, 3, 16), sincos2d(3, 16))
