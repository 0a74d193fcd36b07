"""Attention, drop path, dropout and layer scale do what their papers say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.models import SMALL, random_images, randomized
from vit.config.sections import ModelConfig
from vit.model.vision_transformer import (
    MLP,
    Block,
    DropPath,
    MultiHeadAttention,
    VisionTransformer,
    attention,
    drop_path_rates,
)


def test_the_explicit_attention_formula_and_the_fused_kernel_give_the_same_outputs_and_gradients() -> None:
    """Compares `attention` with `scaled_dot_product_attention`, forward and backward, in float64."""
    x = torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        module = MultiHeadAttention(32, heads=4, dropout=0.5, fused=fused).double().eval()
        nn.init.normal_(module.qkv.weight, std=0.3)  # makes the attention weights far from uniform
        inputs = x.clone().requires_grad_()
        y = module(inputs)
        y.square().sum().backward()
        results.append([y, inputs.grad, *(p.grad for p in module.parameters())])
    for fused, explicit in zip(*results, strict=True):
        torch.testing.assert_close(fused, explicit, rtol=1e-9, atol=1e-9)


def test_attention_computes_the_formula_of_the_paper() -> None:
    """softmax(QKᵀ / √d) V, computed for one token of one head in numpy."""
    q, k, v = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
    scores = np.array([math.fsum(q[1, 2, 3] * k[1, 2, j]) / math.sqrt(8) for j in range(5)])
    weights = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(attention(q, k, v)[1, 2, 3], weights @ v[1, 2].numpy(), rtol=1e-5)


def test_drop_path_skips_whole_images_and_keeps_the_mean() -> None:
    """Drops all tokens of a quarter of the images, and scales the other images by 4/3."""
    images = 20_000
    torch.manual_seed(0)
    y = DropPath(0.25).train()(torch.ones(images, 3, 2))
    kept = y[:, 0, 0] > 0
    assert torch.equal(y, torch.where(kept, 4 / 3, 0.0)[:, None, None].expand(y.shape))
    deviation = math.sqrt(0.25 * 0.75 / images)
    assert abs(kept.float().mean() - 0.75) < 4 * deviation
    assert abs(y.mean() - 1) < 4 * deviation * 4 / 3


def test_a_block_returns_an_image_unchanged_if_both_branches_are_dropped() -> None:
    """The probability of that is 1/4 at a drop-path rate of 0.5."""
    torch.manual_seed(0)
    block = randomized(Block(SMALL, drop_path=0.5)).train()
    x = torch.randn(64, 5, 32)
    unchanged = (block(x) == x).flatten(1).all(1)
    assert 4 <= unchanged.sum() <= 30  # a quarter of 64, plus or minus 3.5 standard deviations


def test_drop_path_grows_linearly_with_depth() -> None:
    """From 0 at the first block to the configured rate at the last; a model of one block drops nothing."""
    model = VisionTransformer(replace(SMALL, depth=5, drop_path=0.2))
    torch.testing.assert_close(
        torch.stack([1 - block.drop_path.keep for block in model.blocks]), torch.tensor([0, 0.05, 0.1, 0.15, 0.2])
    )
    assert not VisionTransformer(replace(SMALL, depth=1, drop_path=0.2)).blocks[0].drop_path.drops


def test_drop_path_rates_are_a_linear_ramp_or_constant() -> None:
    """The ramp is DeiT's torch.linspace; DeiT-III uses the same rate for all blocks."""
    cfg = replace(SMALL, depth=12, drop_path=0.2)
    assert drop_path_rates(cfg) == pytest.approx(torch.linspace(0, 0.2, 12).tolist())
    assert drop_path_rates(replace(cfg, drop_path_rule="uniform")) == [0.2] * 12
    blocks = VisionTransformer(replace(cfg, drop_path_rule="uniform")).blocks
    assert [block.drop_path.keep.item() for block in blocks] == pytest.approx([0.8] * 12)


@pytest.mark.parametrize("cfg", [replace(SMALL, drop_path=0.9), replace(SMALL, dropout=0.9, attention_dropout=0.9)])
def test_dropout_and_drop_path_are_off_in_evaluation_mode(cfg: ModelConfig) -> None:
    """In eval mode the logits are bit-identical to those of a model without either; in training mode they differ."""
    images = random_images(4, 28)
    model, plain = randomized(VisionTransformer(cfg)), randomized(VisionTransformer(SMALL))
    assert torch.equal(model.eval()(images), plain.eval()(images))
    assert not torch.allclose(model.train()(images), plain.train()(images), atol=1e-2)


def test_dropout_is_applied_where_the_config_documents_it() -> None:
    """After the embedding, after attention, on the attention weights, and after both layers of the MLP."""
    model = VisionTransformer(replace(SMALL, dropout=0.25, attention_dropout=0.125))
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert rates == {"dropout": 0.25} | {f"blocks.{i}.{n}": 0.25 for i in range(3) for n in ("dropout", "mlp.dropout")}
    assert [block.attention.dropout for block in model.blocks] == [0.125] * 3
    ones = torch.ones(1, 1, 1000)
    torch.manual_seed(0)
    mlp = MLP(1000, 1000, dropout=0.25).train()
    nn.init.eye_(mlp.up.weight)
    nn.init.eye_(mlp.down.weight)
    nn.init.zeros_(mlp.up.bias)
    nn.init.zeros_(mlp.down.bias)
    zeros = (mlp(ones) == 0).sum().item()
    assert abs(zeros - 1000 * (1 - 0.75**2)) < 4 * math.sqrt(1000 * 0.4375 * 0.5625)


def test_layer_scale_multiplies_the_output_of_each_branch() -> None:
    """By one factor per feature, initialized to the configured value, as in DeiT-III's block."""
    cfg = replace(SMALL, layer_scale=1e-4)
    block = Block(cfg, drop_path=0.0)
    assert torch.equal(block.scale1.gamma, torch.full((32,), 1e-4)) and torch.equal(
        block.scale2.gamma, block.scale1.gamma
    )
    randomized(block)
    x = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(1))
    y = x + block.scale1.gamma * block.attention(block.norm1(x))
    torch.testing.assert_close(block(x), y + block.scale2.gamma * block.mlp(block.norm2(y)))
    assert "scale1.gamma" not in Block(SMALL, drop_path=0.0).state_dict()
