"""The model is the published one: torchvision's numbers, the paper's formulas, and nothing random where it is used."""

import copy
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torchvision.models import vision_transformer as theirs

from tests.helpers.ranks import run_ranks
from vit.config.schema import ModelConfig
from vit.model.vision_transformer import (
    MLP,
    Block,
    DropPath,
    MultiHeadAttention,
    PatchEmbedding,
    VisionTransformer,
    attention,
    drop_path_rates,
    sincos2d,
)
from vit.model.weight_names import from_torchvision

SMALL = ModelConfig(image_size=28, patch_size=7, width=32, depth=3, heads=4, mlp_dim=48, num_classes=10)

BASE = ModelConfig()
LARGE = ModelConfig(width=1024, depth=24, heads=16, mlp_dim=4096)
PUBLISHED = {
    "vit_b_16": BASE,
    "vit_b_32": replace(BASE, patch_size=32),
    "vit_l_16": LARGE,
    "vit_l_32": replace(LARGE, patch_size=32),
    "vit_h_14": ModelConfig(patch_size=14, width=1280, depth=32, heads=16, mlp_dim=5120),
}


def pictures(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model all of whose weights are random, as no fresh one is: zeros hide what is not there."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.05 + (parameter.mean() > 0.5))
    return model


def torchvisions(cfg: ModelConfig) -> theirs.VisionTransformer:
    return theirs.VisionTransformer(
        image_size=cfg.image_size,
        patch_size=cfg.patch_size,
        num_layers=cfg.depth,
        num_heads=cfg.heads,
        hidden_dim=cfg.width,
        mlp_dim=cfg.mlp_dim,
        num_classes=cfg.num_classes,
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_torchvisions_number_of_weights(name: str) -> None:
    """86,567,656 of them for ViT-B/16; built on the meta device, where they take no memory."""
    with torch.device("meta"):
        ours, reference = VisionTransformer(PUBLISHED[name]), torchvision.models.get_model(name)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize(
    "cfg", [BASE, SMALL, replace(SMALL, image_size=32, patch_size=8)], ids=["vit_b_16", "28 pixels", "32 pixels"]
)
def test_torchvisions_weights_give_torchvisions_logits(cfg: ModelConfig) -> None:
    """All weights random, the head's and the biases too: the same scores to 1e-5."""
    reference = trained(torchvisions(cfg)).eval()
    with torch.device("meta"):
        model = VisionTransformer(cfg).eval()
    model.load_state_dict(from_torchvision(reference.state_dict()), assign=True)
    images = pictures(2, cfg.image_size)
    with torch.inference_mode():
        logits, expected = model(images), reference(images)
    assert expected.std() > 0.1, "scores that say nothing"
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_names_in_torchvisions_files_of_weights_are_known_too() -> None:
    """Those that it downloads were written when the MLP's layers were called linear_1 and linear_2."""
    weights = trained(torchvisions(SMALL)).state_dict()
    old = {n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): w for n, w in weights.items()}
    assert old.keys() != weights.keys()
    assert torchvisions(SMALL).load_state_dict(old)  # torchvision itself still reads them
    expected = from_torchvision(weights)
    assert from_torchvision(old).keys() == expected.keys() == VisionTransformer(SMALL).state_dict().keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in from_torchvision(old).items())


def test_the_written_out_attention_agrees_with_the_fused_kernel_and_so_do_its_gradients() -> None:
    """What one reads in `attention` is what runs: scores, shares and mixing, forwards and backwards, in float64."""
    x = torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        module = MultiHeadAttention(32, heads=4, dropout=0.5, fused=fused).double().eval()
        nn.init.normal_(module.qkv.weight, std=0.3)  # scores far from even
        mine = x.clone().requires_grad_()
        y = module(mine)
        y.square().sum().backward()
        results.append([y, mine.grad, *(p.grad for p in module.parameters())])
    for fused, written_out in zip(*results, strict=True):
        torch.testing.assert_close(fused, written_out, rtol=1e-9, atol=1e-9)


def test_attention_is_the_papers_formula() -> None:
    """softmax(QKᵀ / √K) V, spelt out for one token of one head in numpy."""
    q, k, v = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
    scores = np.array([math.fsum(q[1, 2, 3] * k[1, 2, j]) / math.sqrt(8) for j in range(5)])
    shares = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(attention(q, k, v)[1, 2, 3], shares @ v[1, 2].numpy(), rtol=1e-5)


def test_the_class_token_is_read_and_the_mean_is_over_all_patches() -> None:
    """`pool: cls` has one token more and its head sees that one alone; `pool: mean` sees all patches alike."""
    seen: list[Tensor] = []
    images = pictures(2, 28)
    for pool, tokens in (("cls", 17), ("mean", 16)):
        model = trained(VisionTransformer(replace(SMALL, pool=pool))).eval()
        model.norm.register_forward_hook(lambda _, inputs, output: seen.append(output))
        logits = model(images)
        assert seen[-1].shape == (2, tokens, 32)
        read = seen[-1][:, 0] if pool == "cls" else seen[-1].sum(1) / 16
        torch.testing.assert_close(logits, F.linear(read, model.head.weight, model.head.bias))


def test_the_class_token_comes_first_and_has_a_position_of_its_own() -> None:
    """As torchvision lays its positions out: those of the patches follow in the order of reading."""
    model = trained(VisionTransformer(replace(SMALL, pool="cls", depth=1))).eval()
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = pictures(2, 28)
    model(images)
    torch.testing.assert_close(seen[0][:, 0], (model.cls_token + model.positions[:, :1])[0].expand(2, -1))
    torch.testing.assert_close(seen[0][:, 1:], model.patches(images) + model.positions[:, 1:])


def posemb_sincos_2d(h: int, w: int, width: int, temperature: float = 10_000.0) -> NDArray[np.float64]:
    """big_vision's, in numpy: https://github.com/google-research/big_vision/blob/main/big_vision/models/vit.py."""
    y, x = np.mgrid[:h, :w]
    omega = np.arange(width // 4) / (width // 4 - 1)
    omega = 1.0 / (temperature**omega)
    y = np.einsum("m,d->md", y.flatten(), omega)
    x = np.einsum("m,d->md", x.flatten(), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)[None, :, :]


@pytest.mark.parametrize(("side", "width"), [(14, 384), (4, 64), (16, 8)])
def test_fixed_positions_are_big_visions(side: int, width: int) -> None:
    """Sines and cosines of both coordinates at geometric frequencies, to float32's accuracy."""
    np.testing.assert_allclose(sincos2d(side, width), posemb_sincos_2d(side, side, width), atol=2e-6)


def test_fixed_positions_are_neither_trained_nor_saved_and_leave_the_class_token_alone() -> None:
    """They follow from the config: no weight, nothing in a checkpoint, and zeros where there is no place."""
    model = VisionTransformer(replace(SMALL, positions="sincos2d", pool="cls"))
    assert "positions" not in model.state_dict()
    assert "positions" not in dict(model.named_parameters())
    assert not model.positions[:, 0].any()
    torch.testing.assert_close(model.positions[:, 1:], sincos2d(4, 32))


def test_the_patch_map_is_a_convolution_with_the_patch_as_stride() -> None:
    """The same map to every square, colors first: conv2d(kernel P, stride P), also for channels-last pictures."""
    patches = PatchEmbedding(patch_size=7, width=32)
    images = pictures(2, 28)
    kernel = patches.proj.weight.view(32, 3, 7, 7)
    expected = F.conv2d(images, kernel, patches.proj.bias, stride=7).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(patches(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)


def test_drop_path_skips_whole_images_and_keeps_the_mean() -> None:
    """A quarter of the images is dropped, all their tokens at once; the others are scaled by 4/3."""
    images = 20_000
    torch.manual_seed(0)
    y = DropPath(0.25).train()(torch.ones(images, 3, 2))
    kept = y[:, 0, 0] > 0
    assert torch.equal(y, torch.where(kept, 4 / 3, 0.0)[:, None, None].expand(y.shape))
    deviation = math.sqrt(0.25 * 0.75 / images)
    assert abs(kept.float().mean() - 0.75) < 4 * deviation
    assert abs(y.mean() - 1) < 4 * deviation * 4 / 3


def test_a_dropped_image_passes_a_block_untouched() -> None:
    """Each of the two branches is skipped for some images, and then adds nothing."""
    torch.manual_seed(0)
    block = trained(Block(SMALL, drop_path=0.5)).train()
    x = torch.randn(64, 5, 32)
    untouched = (block(x) == x).flatten(1).all(1)
    assert 4 <= untouched.sum() <= 30  # a quarter of 64, give or take 3.5 deviations


@pytest.mark.parametrize("cfg", [replace(SMALL, drop_path=0.9), replace(SMALL, dropout=0.9, attention_dropout=0.9)])
def test_nothing_is_dropped_when_a_model_is_used(cfg: ModelConfig) -> None:
    """In eval: the scores of the same model without dropout or drop path, to the bit; in training: others."""
    images = pictures(4, 28)
    model, plain = trained(VisionTransformer(cfg)), trained(VisionTransformer(SMALL))
    assert torch.equal(model.eval()(images), plain.eval()(images))
    assert not torch.allclose(model.train()(images), plain.train()(images), atol=1e-2)


def test_dropout_acts_where_the_config_says() -> None:
    """After the embedding, after the attention, on the attention's shares and after both layers of the MLP."""
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


def test_drop_path_grows_linearly_with_depth() -> None:
    """From 0 at the first block to the config's rate at the last; one block alone is never skipped."""
    model = VisionTransformer(replace(SMALL, depth=5, drop_path=0.2))
    torch.testing.assert_close(
        torch.stack([1 - block.drop_path.keep for block in model.blocks]), torch.tensor([0, 0.05, 0.1, 0.15, 0.2])
    )
    assert not VisionTransformer(replace(SMALL, depth=1, drop_path=0.2)).blocks[0].drop_path.drops


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_first_loss_is_exactly_the_logarithm_of_the_number_of_classes(classes: int) -> None:
    """A fresh head prefers no class, so a first loss other than log C is a fault elsewhere."""
    model = VisionTransformer(replace(SMALL, num_classes=classes))
    logits = model(pictures(4, 28))
    assert torch.equal(logits, torch.zeros(4, classes))
    loss = F.cross_entropy(logits, torch.tensor([0, 1, 0, 1]))
    assert loss.item() == pytest.approx(math.log(classes), rel=1e-6)


def test_layer_scale_multiplies_what_each_branch_adds() -> None:
    """By a factor for each feature that starts at the config's value: DeiT-III's block, spelt out."""
    cfg = replace(SMALL, layer_scale=1e-4)
    block = Block(cfg, drop_path=0.0)
    assert torch.equal(block.scale1.gamma, torch.full((32,), 1e-4)) and torch.equal(
        block.scale2.gamma, block.scale1.gamma
    )
    trained(block)
    x = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(1))
    y = x + block.scale1.gamma * block.attention(block.norm1(x))
    torch.testing.assert_close(block(x), y + block.scale2.gamma * block.mlp(block.norm2(y)))
    assert "scale1.gamma" not in Block(SMALL, drop_path=0.0).state_dict()


def test_drop_path_rates_rise_linearly_or_are_all_the_same() -> None:
    """As torch.linspace makes them in DeiT; DeiT-III gives every block the same."""
    cfg = replace(SMALL, depth=12, drop_path=0.2)
    assert drop_path_rates(cfg) == pytest.approx(torch.linspace(0, 0.2, 12).tolist())
    assert drop_path_rates(replace(cfg, drop_path_rule="uniform")) == [0.2] * 12
    blocks = VisionTransformer(replace(cfg, drop_path_rule="uniform")).blocks
    assert [block.drop_path.keep.item() for block in blocks] == pytest.approx([0.8] * 12)


def test_fresh_weights_have_the_deviation_of_the_paper() -> None:
    """0.02 for every matrix and the positions, zeros for biases, class token and head."""
    model = VisionTransformer(ModelConfig(depth=1, width=256, heads=4, mlp_dim=512))
    for name, p in model.named_parameters():
        if name.endswith("bias") or name in ("cls_token", "head.weight"):
            assert not p.any(), name
        elif "norm" not in name:
            assert p.std().item() == pytest.approx(0.02, rel=0.05), name
            assert abs(p.mean().item()) < 0.001, name


def compiled(cfg: ModelConfig) -> tuple[float, int, int]:
    """The greatest difference of compiled logits to eager ones, and the graphs made for using and for training."""
    model = trained(VisionTransformer(cfg)).eval()
    training = copy.deepcopy(model).train()
    images = pictures(2, cfg.image_size)
    backend = CompileCounterWithBackend("inductor")
    with torch.inference_mode():
        expected = model(images)
        for block in model.blocks:
            block.compile(backend=backend)
        difference = (model(images) - expected).abs().max().item()
    # What is shared is decided before a backend sees a graph: the one that only runs it is enough, and quick.
    eager = CompileCounterWithBackend("eager")
    for block in training.blocks:
        block.compile(backend=eager)
    training(images).sum().backward()
    return difference, backend.frame_count, eager.frame_count


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_logits_and_share_their_graphs() -> None:
    """To 1e-5; one graph for all twelve blocks in use, two in training, though each has its own drop path rate."""
    cfg = replace(SMALL, depth=12, drop_path=0.3)
    ((difference, using, training),) = run_ranks(1, compiled, cfg, timeout=300)
    assert difference < 1e-5
    assert using == 1
    assert training == 2  # the first block is never skipped
