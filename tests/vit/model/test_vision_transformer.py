"""The model agrees with torchvision, big_vision and the paper, before and after torch.compile."""

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
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.helpers.models import SMALL, random_images, randomized, to_ours, torchvision_model
from tests.helpers.ranks import run_ranks
from vit.config.sections import ModelConfig
from vit.model.vision_transformer import PatchEmbedding, VisionTransformer, sincos2d

BASE = ModelConfig()
LARGE = ModelConfig(width=1024, depth=24, heads=16, mlp_dim=4096)
PUBLISHED = {
    "vit_b_16": BASE,
    "vit_b_32": replace(BASE, patch_size=32),
    "vit_l_16": LARGE,
    "vit_l_32": replace(LARGE, patch_size=32),
    "vit_h_14": ModelConfig(patch_size=14, width=1280, depth=32, heads=16, mlp_dim=5120),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_torchvisions_number_of_weights(name: str) -> None:
    """86,567,656 for ViT-B/16.  The models are built on the meta device, where they take no memory."""
    with torch.device("meta"):
        ours, reference = VisionTransformer(PUBLISHED[name]), torchvision.models.get_model(name)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize(
    "cfg", [BASE, SMALL, replace(SMALL, image_size=32, patch_size=8)], ids=["vit_b_16", "28 pixels", "32 pixels"]
)
def test_torchvisions_weights_give_torchvisions_logits(cfg: ModelConfig) -> None:
    """With all weights random, head and biases included: equal to 1e-5."""
    reference = randomized(torchvision_model(cfg)).eval()
    with torch.device("meta"):
        model = VisionTransformer(cfg).eval()
    model.load_state_dict(to_ours(reference.state_dict()), assign=True)
    images = random_images(2, cfg.image_size)
    with torch.inference_mode():
        logits, expected = model(images), reference(images)
    assert expected.std() > 0.1, "the logits are nearly constant, so that comparing them proves nothing"
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_weights_files_that_torchvision_downloads_can_be_converted() -> None:
    """They use older names for the layers of the MLP, linear_1 and linear_2."""
    weights = randomized(torchvision_model(SMALL)).state_dict()
    old = {n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): w for n, w in weights.items()}
    assert old.keys() != weights.keys()
    assert torchvision_model(SMALL).load_state_dict(old)  # torchvision itself still reads them
    expected = to_ours(weights)
    assert to_ours(old).keys() == expected.keys() == VisionTransformer(SMALL).state_dict().keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in to_ours(old).items())


def test_the_patch_embedding_is_a_convolution_with_the_patch_size_as_stride() -> None:
    """Equal to conv2d with kernel size P and stride P, also for channels-last images."""
    patches = PatchEmbedding(patch_size=7, width=32)
    images = random_images(2, 28)
    kernel = patches.proj.weight.view(32, 3, 7, 7)
    expected = F.conv2d(images, kernel, patches.proj.bias, stride=7).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(patches(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)


def test_the_head_gets_the_class_token_or_the_mean_over_all_patches() -> None:
    """`pool: cls` adds a token, and the head gets only that one; `pool: mean` averages all patches."""
    seen: list[Tensor] = []
    images = random_images(2, 28)
    for pool, tokens in (("cls", 17), ("mean", 16)):
        model = randomized(VisionTransformer(replace(SMALL, pool=pool))).eval()
        model.blocks[-1].register_forward_hook(lambda _, inputs, output: seen.append(output))
        logits = model(images)
        assert seen[-1].shape == (2, tokens, 32)
        normalized = model.norm(seen[-1])
        pooled = normalized[:, 0] if pool == "cls" else normalized.sum(1) / 16
        torch.testing.assert_close(logits, F.linear(pooled, model.head.weight, model.head.bias))


def test_the_class_token_comes_first_and_has_its_own_position() -> None:
    """The layout is torchvision's: the positions of the patches follow, row by row."""
    model = randomized(VisionTransformer(replace(SMALL, pool="cls", depth=1))).eval()
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = random_images(2, 28)
    model(images)
    torch.testing.assert_close(seen[0][:, 0], (model.cls_token + model.positions[:, :1])[0].expand(2, -1))
    torch.testing.assert_close(seen[0][:, 1:], model.patches(images) + model.positions[:, 1:])


def posemb_sincos_2d(h: int, w: int, width: int, temperature: float = 10_000.0) -> NDArray[np.float64]:
    """big_vision's implementation, in numpy: https://github.com/google-research/big_vision/blob/main/big_vision/models/vit.py."""
    y, x = np.mgrid[:h, :w]
    omega = np.arange(width // 4) / (width // 4 - 1)
    omega = 1.0 / (temperature**omega)
    y = np.einsum("m,d->md", y.flatten(), omega)
    x = np.einsum("m,d->md", x.flatten(), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)[None, :, :]


@pytest.mark.parametrize(("side", "width"), [(14, 384), (4, 64), (16, 8)])
def test_fixed_positions_are_those_of_big_vision(side: int, width: int) -> None:
    """Equal to float32 precision."""
    np.testing.assert_allclose(sincos2d(side, width), posemb_sincos_2d(side, side, width), atol=2e-6)


def test_fixed_positions_are_neither_trained_nor_saved_and_are_zero_for_the_class_token() -> None:
    """They follow from the config: they are neither a parameter nor part of a checkpoint."""
    model = VisionTransformer(replace(SMALL, positions="sincos2d", pool="cls"))
    assert "positions" not in model.state_dict()
    assert "positions" not in dict(model.named_parameters())
    assert not model.positions[:, 0].any()
    torch.testing.assert_close(model.positions[:, 1:], sincos2d(4, 32))


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_first_loss_is_exactly_the_logarithm_of_the_number_of_classes(classes: int) -> None:
    """The head is initialized to zero, so any other first loss points to a bug elsewhere."""
    model = VisionTransformer(replace(SMALL, num_classes=classes))
    logits = model(random_images(4, 28))
    assert torch.equal(logits, torch.zeros(4, classes))
    loss = F.cross_entropy(logits, torch.tensor([0, 1, 0, 1]))
    assert loss.item() == pytest.approx(math.log(classes), rel=1e-6)


def test_weights_are_initialized_with_the_standard_deviation_of_the_paper() -> None:
    """0.02 for all matrices and positions, zero for biases, class token and head."""
    model = VisionTransformer(ModelConfig(depth=1, width=256, heads=4, mlp_dim=512))
    for name, p in model.named_parameters():
        if name.endswith("bias") or name in ("cls_token", "head.weight"):
            assert not p.any(), name
        elif "norm" not in name:
            assert p.std().item() == pytest.approx(0.02, rel=0.05), name
            assert abs(p.mean().item()) < 0.001, name


def compile_and_compare(cfg: ModelConfig) -> tuple[float, int, int]:
    """The largest difference between compiled and eager logits, and the number of graphs in eval and training mode."""
    model = randomized(VisionTransformer(cfg)).eval()
    training = copy.deepcopy(model).train()
    images = random_images(2, cfg.image_size)
    backend = CompileCounterWithBackend("inductor")
    with torch.inference_mode():
        expected = model(images)
        for block in model.blocks:
            block.compile(backend=backend)
        difference = (model(images) - expected).abs().max().item()
    # The number of graphs does not depend on the backend, so the fast "eager" backend is enough here.
    eager = CompileCounterWithBackend("eager")
    for block in training.blocks:
        block.compile(backend=eager)
    training(images).sum().backward()
    return difference, backend.frame_count, eager.frame_count


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_logits_and_share_their_graphs() -> None:
    """Equal to 1e-5.  Twelve blocks with twelve drop-path rates share one graph in eval mode, and two in training."""
    cfg = replace(SMALL, depth=12, drop_path=0.3)
    ((difference, eval_graphs, training_graphs),) = run_ranks(1, compile_and_compare, cfg, timeout=300)
    assert difference < 1e-5
    assert eval_graphs == 1
    assert training_graphs == 2  # the first block drops nothing
