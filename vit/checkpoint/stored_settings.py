"""What is stored with weights of the settings that they were trained with, by dotted name.  Does not import torch."""

import json
from collections.abc import Mapping
from typing import Any

from vit.config.parser import config_from_text
from vit.config.schema import flatten
from vit.config.sections import AugmentConfig, ModelConfig
from vit.config.user_error import UserError

# What weights are of use with: the architecture, and how pixels are turned into its input.
ARCHITECTURE = ("image_size", "patch_size", "width", "depth", "heads", "mlp_dim", "pool", "positions", "layer_scale")
MODEL = tuple(f"model.{name}" for name in ARCHITECTURE)
INPUT = ("augment.mean", "augment.std", "data.interpolation")
CLASSES = "model.num_classes"


def of_config(text: str, source: str) -> dict[str, Any]:
    """Those in a config: of a checkpoint, or of a run.  Raises UserError that names the `source`."""
    return _wanted(flatten(config_from_text(text, source)))


def of_metadata(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """Those in the metadata of a safetensors file that `vit.export` wrote; none if another program wrote it.

    Raises UserError if they cannot be read.
    """
    if "model" not in metadata or "mean" not in metadata:
        return {}
    try:
        values = {name: json.loads(metadata[name]) for name in ("model", "mean", "std")}
        model = flatten(ModelConfig(**values["model"]), "model.")
        augment = flatten(AugmentConfig(mean=tuple(values["mean"]), std=tuple(values["std"])), "augment.")
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{source} has metadata of vit.export that cannot be read ({error}); export it again") from None
    return _wanted(model | {name: augment[name] for name in INPUT if name in augment})


def of_timm(content: str, source: str) -> dict[str, Any]:
    """Those in a config.json that timm or `vit.export` wrote.  Raises UserError if it is damaged.

    Without the positions: timm also stores fixed ones as weights.
    """
    try:
        config = json.loads(content)
        arguments, pretrained = (config.get(name) or {} for name in ("model_args", "pretrained_cfg"))
        found = {
            "model.heads": arguments.get("num_heads"),
            "model.image_size": _side(arguments.get("img_size") or (pretrained.get("input_size") or [None])[-1]),
            "augment.mean": _three(pretrained.get("mean")),
            "augment.std": _three(pretrained.get("std")),
            "data.interpolation": pretrained.get("interpolation"),
        }
        found = {name: value for name, value in found.items() if value is not None}
        if found.get("data.interpolation") not in ("bilinear", "bicubic"):  # `random`, `lanczos`
            found.pop("data.interpolation", None)
        flatten(ModelConfig(width=found.get("model.heads", 1), heads=found.get("model.heads", 1)))
        AugmentConfig(**{name: found[f"augment.{name}"] for name in ("mean", "std") if f"augment.{name}" in found})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{source} is damaged ({error}); copy the folder again") from None
    return found


def _side(size: Any) -> Any:
    """The side of square images; None if they are not square."""
    if isinstance(size, list):
        return size[0] if len(set(size)) == 1 else None
    return size


def _three(values: Any) -> tuple[float, float, float] | None:
    if values is None:
        return None
    red, green, blue = map(float, values)
    return red, green, blue


def _wanted(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in (*MODEL, CLASSES, *INPUT) if name in settings}
