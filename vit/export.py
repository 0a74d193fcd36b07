"""Exports the weights of a run to other libraries, which then compute the same logits.

    python -m vit.export runs/vit_b16 --to torchvision   a state dict for torchvision.models.VisionTransformer
    python -m vit.export runs/vit_b16 --to timm          a folder for timm.create_model("local-dir:…", pretrained=True)
    python -m vit.export runs/vit_b16 --to safetensors   our own parameter names, for --init_from and other tools
    python -m vit.export runs/vit_b16 --to onnx          (B, 3, S, S) normalized images to (B, C) logits, any B

Input images must be normalized with `augment.mean` and `augment.std`.  timm's config.json and the metadata of
safetensors and ONNX files contain these values and the class names.
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()
    from vit.run.garbage_collection import pause_collection

    pause_collection()

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from vit.checkpoint import trained_model
from vit.checkpoint.safetensors_file import write_safetensors
from vit.checkpoint.trained_model import TrainedModel, add_checkpoint_options, load_trained_model
from vit.config.option_errors import CommandParser
from vit.config.paths import user_path
from vit.config.user_error import UserError
from vit.model.pretrained import Tensors, to_theirs
from vit.model.vision_transformer import VisionTransformer
from vit.model.weight_names import TIMM, TORCHVISION
from vit.run.command import print_error, run_command
from vit.run.console import started_as


def to_torchvision(model: VisionTransformer, run: TrainedModel, out: Path) -> None:
    """Writes a state dict.  torchvision has no layer scale, so its factors are multiplied into the preceding layers."""
    cfg = model.cfg
    if cfg.pool != "cls":
        raise UserError("torchvision's VisionTransformer needs a class token, but this model has none; use --to timm")
    weights = _weights(model)
    for i in range(cfg.depth if cfg.layer_scale else 0):
        for scale, layer in (("scale1", "attention.out"), ("scale2", "mlp.down")):
            gamma = weights.pop(f"blocks.{i}.{scale}.gamma")
            weights[f"blocks.{i}.{layer}.weight"] = gamma[:, None] * weights[f"blocks.{i}.{layer}.weight"]
            weights[f"blocks.{i}.{layer}.bias"] = gamma * weights[f"blocks.{i}.{layer}.bias"]
    with out.open("wb") as file:  # given a path, torch.save writes its name into the file
        torch.save(to_theirs(weights, TORCHVISION, cfg.patch_size), file)


def to_timm(model: VisionTransformer, run: TrainedModel, out: Path) -> None:
    """Writes a folder with model.safetensors and config.json, the format of the Hugging Face Hub."""
    cfg, augment = model.cfg, run.cfg.augment
    arguments: dict[str, Any] = {
        "img_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "embed_dim": cfg.width,
        "depth": cfg.depth,
        "num_heads": cfg.heads,
        "mlp_ratio": cfg.mlp_dim / cfg.width,
        "init_values": cfg.layer_scale or None,
        "class_token": cfg.pool == "cls",
        "global_pool": "token" if cfg.pool == "cls" else "avg",
        "fc_norm": False,  # the norm comes before the mean over tokens, not after it
    }
    pretrained_cfg = {
        "input_size": [3, cfg.image_size, cfg.image_size],
        "mean": augment.mean,
        "std": augment.std,
        "crop_pct": run.cfg.data.val_crop,
        "interpolation": run.cfg.data.interpolation,
        "label_names": run.classes,
    }
    description = {
        "architecture": "vit_base_patch16_224",  # modified by model_args
        "num_classes": cfg.num_classes,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": pretrained_cfg,
    }
    out.mkdir()
    write_safetensors(out / "model.safetensors", to_theirs(_weights(model), TIMM, cfg.patch_size))
    (out / "config.json").write_text(json.dumps(description, indent=1))


def to_safetensors(model: VisionTransformer, run: TrainedModel, out: Path) -> None:
    """Writes one file with our own parameter names."""
    write_safetensors(out, _weights(model), _metadata(run))


def to_onnx(model: VisionTransformer, run: TrainedModel, out: Path) -> None:
    """Writes one file.  The format limits it to 2 GB."""
    import onnx

    side = model.cfg.image_size
    with warnings.catch_warnings():
        # This exporter is deprecated, but needs only onnx; the new one needs onnxscript too.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, side, side),),
            out,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    exported = onnx.load(out)
    onnx.helper.set_model_props(exported, _metadata(run))
    onnx.save(exported, out)


FORMATS: dict[str, tuple[Callable[[VisionTransformer, TrainedModel, Path], None], str]] = {
    "torchvision": (to_torchvision, "-torchvision.pth"),
    "timm": (to_timm, "-timm"),
    "safetensors": (to_safetensors, ".safetensors"),
    "onnx": (to_onnx, ".onnx"),
}


def _weights(model: VisionTransformer) -> Tensors:
    """The state dict with fixed positions included, because other libraries only have learned ones."""
    positions = model.positions if isinstance(model.positions, nn.Parameter) else model.positions.clone()
    return {
        name: tensor.contiguous() for name, tensor in (model.state_dict() | {"positions": positions.detach()}).items()
    }


def _metadata(run: TrainedModel) -> dict[str, str]:
    """`classes` are the identifiers of the data set, by which `--init_from` compares them; `names` are readable."""
    cfg = run.cfg
    metadata = {"model": asdict(cfg.model), "mean": cfg.augment.mean, "std": cfg.augment.std, "step": run.step}
    metadata |= {"classes": run.class_ids or run.classes, "names": run.classes}
    return {name: json.dumps(value) for name, value in metadata.items()}


def export(
    path: Path,
    to: str,
    out: Path | None = None,
    which: str = "newest",
    weights: trained_model.WeightsKind | None = None,
) -> Path:
    """Writes the weights of a run atomically and returns the path.  Raises UserError or OSError."""
    run = load_trained_model(path, which)
    model = run.select_model(weights)
    write, suffix = FORMATS[to]
    out = out or path / (path.resolve().name + suffix)
    if out.exists():
        raise UserError(f"{out} already exists; choose another path with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        write(model, run, temporary)
        temporary.rename(out)
    except (RuntimeError, safetensors.SafetensorError) as error:  # raised by the writers if the disk is full
        raise OSError(f"{out} cannot be written: {str(error).splitlines()[0]}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
    return out


def main(args: list[str] | None = None) -> int:
    """Command line.  Exit code 2 for errors that the user can fix."""
    parser = CommandParser(started_as("vit.export"), description="Exports the weights of a run to another library.")
    parser.add_argument("run", type=user_path, help="run folder, or a checkpoint in it")
    parser.add_argument("--to", choices=FORMATS, required=True, help="target library or format")
    parser.add_argument(
        "--out", type=user_path, help="output file; for timm, output folder (default: in the run folder)"
    )
    add_checkpoint_options(parser)
    options = parser.parse_args(args)
    try:
        print(export(options.run, options.to, options.out, options.which, options.weights))
    except (UserError, OSError) as error:
        print_error("vit.export", error)
        return 2
    except ModuleNotFoundError as error:
        print_error("vit.export", f"{error.name} is not installed; pip install {error.name}")
        return 2
    return 0


if __name__ == "__main__":
    run_command(main)
