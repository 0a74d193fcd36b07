"""The FLOPs of a model and the peaks of devices."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vit.config.sections import ModelConfig
from vit.history.utilization import peak_flops, training_flops_per_image, utilization
from vit.model.vision_transformer import VisionTransformer


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_flops_are_those_that_torch_counts(pool: str) -> None:
    """Forward and backward of a small model.  Torch counts no gradient of the images, which nobody computes, and counts
    the product that fused attention computes again in its backward pass."""
    cfg = ModelConfig(image_size=32, patch_size=8, width=24, depth=3, heads=2, mlp_dim=40, num_classes=7, pool=pool)
    model = VisionTransformer(cfg)
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(5, 3, 32, 32)).sum().backward()
    of_images = 2 * (32 // 8) ** 2 * 3 * 8 * 8 * 24  # the gradient of the images: part of the 6 per weight
    tokens = (32 // 8) ** 2 + (pool == "cls")
    again = 3 * 2 * tokens * tokens * 24
    assert training_flops_per_image(cfg) == counter.get_total_flops() / 5 + of_images - again


def test_vit_b_takes_the_flops_of_the_literature() -> None:
    """17.6 GFLOPs (multiply-adds) for the forward pass of ViT-B/16, so 6 times as many operations for both."""
    assert training_flops_per_image(ModelConfig()) == pytest.approx(6 * 17.56e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("Tesla V100-SXM2-32GB", 125),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(name: str, tera: float) -> None:
    """As torch gives it."""
    assert peak_flops(name, "bf16") == pytest.approx(1e12 * tera)


@pytest.mark.parametrize("name", ["cpu", "NVIDIA RTX A4000", "NVIDIA A10G", ""])
def test_a_device_that_is_not_in_the_table_has_no_peak(name: str) -> None:
    """A similar name does not give it the peak of another device."""
    assert peak_flops(name, "bf16") is None
    assert utilization(ModelConfig(), "bf16", name, 1, 1000) is None


def test_the_utilization_counts_all_ranks() -> None:
    """3,344 images/s of ViT-B/16 on one H200 are a third of its peak; on two of them, a sixth."""
    one = utilization(ModelConfig(), "bf16", "NVIDIA H200", 1, 3344)
    assert one == pytest.approx(0.356, abs=0.01)
    two = utilization(ModelConfig(), "bf16", "NVIDIA H200", 2, 3344)
    assert one is not None and two == pytest.approx(one / 2)
