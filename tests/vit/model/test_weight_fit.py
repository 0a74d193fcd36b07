"""Weights that would change a model's output are never left out: what does not fit is refused, with the setting."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from tests.helpers.models import SMALL, randomized, to_ours
from vit.config.parser import load_config
from vit.config.sections import ModelConfig
from vit.config.user_error import UserError
from vit.model.pretrained import load_pretrained
from vit.model.vision_transformer import VisionTransformer, sincos2d
from vit.model.weight_fit import check_fit, model_shapes, shortened

ARCHITECTURES = {
    "small": SMALL,
    "mean": replace(SMALL, pool="mean"),
    "sines": replace(SMALL, positions="sincos2d"),
    "mean of sines, layer scale": replace(SMALL, pool="mean", positions="sincos2d", layer_scale=1e-4),
    "another shape": ModelConfig(image_size=32, patch_size=8, width=24, depth=1, heads=3, mlp_dim=7, num_classes=2),
}


def timm_weights(**changes: object) -> dict[str, Tensor]:
    """Of a model of timm with the shape of SMALL, under our names."""
    shape = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 1.5}
    return to_ours(randomized(timm.models.VisionTransformer(**shape | {"num_classes": 10} | changes)).state_dict())


def refused(weights: Mapping[str, Tensor], cfg: ModelConfig = SMALL, heads: int | None = None) -> str:
    """The message; the check of shapes alone, as on the login node, must say the same."""
    with pytest.raises(UserError) as error:
        load_pretrained(weights, VisionTransformer(cfg), "vit.pth", heads)
    with pytest.raises(UserError) as on_login_node:
        check_fit({name: tuple(tensor.shape) for name, tensor in weights.items()}, cfg, "vit.pth", heads)
    assert str(on_login_node.value) == str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix("vit.pth does not fit the model: ")


@pytest.mark.parametrize("name", [*ARCHITECTURES, "configs/vit_b16.yaml", "configs/vit_s16_deit3_192.yaml"])
def test_the_expected_shapes_are_those_of_the_module(name: str, request: pytest.FixtureRequest) -> None:
    """In the order of its state dict, for every setting that changes a shape."""
    path = request.config.rootpath / name
    cfg = load_config(path).model if name.endswith(".yaml") else ARCHITECTURES[name]
    with torch.device("meta"):
        state = {n: tuple(tensor.shape) for n, tensor in VisionTransformer(cfg).state_dict().items()}
    assert list(model_shapes(cfg).items()) == list(state.items())


def test_every_wrong_setting_is_named_with_the_right_value() -> None:
    """All of them in one message, also the number of heads, which no shape shows."""
    weights = timm_weights(patch_size=14, embed_dim=64, depth=2)
    assert refused(weights, replace(SMALL, heads=8), heads=4) == (
        "set model.patch_size to 14 (not 7), model.width to 64 (not 32), model.depth to 2 (not 3), "
        "model.heads to 4 (not 8), model.mlp_dim to 96 (not 48)"
    )
    assert refused(timm_weights(depth=5)) == "set model.depth to 5 (not 3)"


def test_layer_scale_is_neither_left_out_nor_made_up() -> None:
    """Of DeiT-III and DINOv2; left out, logits are wrong by as much as they are large."""
    scaled = timm_weights(init_values=1e-5)
    assert (
        refused(scaled) == "set model.layer_scale to its initial value, e.g. 1e-5 (not 0: the weights have layer scale)"
    )
    with_scale = replace(SMALL, layer_scale=1e-4)
    assert refused(timm_weights(), with_scale) == (
        "set model.layer_scale to 0 (not 0.0001: the weights have no layer scale)"
    )
    model = VisionTransformer(with_scale)
    load_pretrained(scaled, model)
    assert torch.equal(model.blocks[2].scale2.gamma, scaled["blocks.2.scale2.gamma"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": True}, "it has qk norm (blocks.0.attn.q_norm.weight, "),
        ({"reg_tokens": 4, "no_embed_class": True}, "it has register tokens (reg_token), for which there is no"),
        ({"pre_norm": True}, "it has a norm before the blocks (norm_pre.weight, norm_pre.bias)"),
        ({"global_pool": "avg", "class_token": False}, "it has a norm after pooling (fc_norm.weight, fc_norm.bias)"),
        ({"qkv_bias": False}, "it lacks blocks.0.attention.qkv.bias, blocks.1.attention.qkv.bias, blocks.2"),
        ({"pos_embed": "none"}, "set model.positions to sincos2d (not learned: the weights have no positions)"),
    ],
)  # fmt: skip
def test_weights_that_the_model_cannot_hold_are_refused(changes: dict[str, object], message: str) -> None:
    """Of real models of timm; the message names the part of the architecture and examples of its weights."""
    assert message in refused(timm_weights(**changes), replace(SMALL, num_classes=2))


def test_unknown_weights_are_refused_and_harmless_ones_are_reported() -> None:
    """A name that nobody knows may be anything; a token for masked pretraining and MAE's decoder have no effect."""
    weights = timm_weights()
    assert "it has blocks.0.adapter.weight, for which" in refused(weights | {"blocks.0.adapter.weight": torch.zeros(2)})
    names = ["mask_token", "decoder_blocks.0.attn.qkv.weight", "blocks.0.total_ops", "decoder_norm.weight", "total_ops"]
    report = load_pretrained(weights | {name: torch.zeros(2) for name in names}, VisionTransformer(SMALL))
    assert report[1:] == [f"ignored: {', '.join(names)}"], "all of them, for the ledger"
    assert shortened(report) == f"{report[0]}; ignored: {', '.join(names[:3])} and 2 more"


def test_a_head_that_is_not_a_single_layer_is_never_half_loaded() -> None:
    """The representation layer before the head is left out only together with the head."""
    weights = timm_weights() | {"pre_logits.fc.weight": torch.zeros(32, 32)}
    assert "it has pre_logits.fc.weight, for which" in refused(weights)
    model = VisionTransformer(replace(SMALL, num_classes=2))
    assert load_pretrained(weights, model)[1:] == [
        "initialized: head for 2 classes (pretrained: 10)",
        "ignored: pre_logits.fc.weight",
    ]


def test_a_head_trained_on_the_class_token_is_not_used_on_the_mean() -> None:
    """And the other way round.  With a new head, a class token may be left out: that is fine-tuning."""
    setting = "set model.pool to cls (not mean: the head was trained on the class token)"
    assert refused(timm_weights(), replace(SMALL, pool="mean")) == setting
    mean = timm_weights(class_token=False, global_pool="avg", fc_norm=False)
    assert refused(mean) == "set model.pool to mean (not cls: the weights have no class token)"
    load_pretrained(mean, VisionTransformer(replace(SMALL, pool="mean")))


def test_fixed_positions_are_those_of_the_weights() -> None:
    """A model with fixed positions takes weights that contain the same ones, of any image size, and refuses others."""
    model = VisionTransformer(replace(SMALL, positions="sincos2d"))
    weights = timm_weights() | {"positions": torch.cat([torch.zeros(1, 1, 32), sincos2d(6, 32)], dim=1).half()}
    assert load_pretrained(weights, model)[1:] == ["ignored: positions"]
    others = (timm_weights()["positions"], torch.zeros(1, 17, 18), torch.zeros(32), weights["positions"].flip(1))
    for positions in others:
        with pytest.raises(UserError, match=r"its positions are learned; set model\.positions to learned"):
            load_pretrained(weights | {"positions": positions}, model)


def test_positions_that_cannot_be_resized_are_found_without_loading_them(tmp_path: Path) -> None:
    """The patches must form a square."""
    weights = timm_weights() | {"positions": torch.zeros(1, 15, 32)}
    assert refused(weights) == "cannot resize 15 positions to 17: the patches do not form a square"
    weights["positions"] = torch.zeros(32)
    assert "positions has shape (32,), but the model expects (1, 17, 32)" in refused(weights)
