"""Classifies images with the weights of a run, and draws attention maps.

    python -m vit.predict runs/vit_b16 cat.jpg dog.png
    python -m vit.predict runs/vit_b16 *.jpg --json
    python -m vit.predict runs/vit_b16 cat.jpg --attention maps/

Images are resized, cropped and normalized as in evaluation.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from vit.augment.pipeline import normalize
from vit.checkpoint.trained_model import load_trained_model
from vit.config.paths import user_path
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.decode import CenterCrop
from vit.distributed.world import pick_device
from vit.model import attention_maps
from vit.model.vision_transformer import VisionTransformer
from vit.run.command import run_command
from vit.run.figures import import_matplotlib

Pixels = NDArray[np.uint8]

_BATCH = 16  # images; with --attention, the attention weights of ViT-B take 22 MB per image
_TILE = 224  # minimum side of an attention map in the figure, in pixels


@dataclass(frozen=True)
class Prediction:
    """The predicted classes of one image, or why it could not be read."""

    file: Path
    error: str | None = None
    best: tuple[tuple[str, float], ...] = ()  # class names and probabilities, most probable first
    pixels: Pixels | None = None  # (S, S, 3), the input of the model before normalization
    maps: Tensor | None = None  # (1 + H, G, G): rollout, and the heads of the last block


def load_image(path: Path, cfg: Config) -> Pixels:
    """Reads, resizes and crops an image as evaluation does: (S, S, 3) uint8.

    Raises OSError or ValueError if the file is not an image or is damaged.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
    except (SyntaxError, Image.DecompressionBombError) as error:  # of broken PNGs; of more than 180 megapixels
        raise UserError(str(error)) from None
    if image.mode.startswith("I;16"):  # Pillow's convert() would clip values at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    size, one = cfg.model.image_size, np.ones(1, np.int64)
    window = CenterCrop(cfg.data.val_crop).windows(one, one, image.height * one, image.width * one, size)
    height, width = int(window.resized_height[0]), int(window.resized_width[0])
    top, left = int(window.out_top[0]), int(window.out_left[0])
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    resized = image.convert("RGB").resize((width, height), filters[cfg.data.interpolation])
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def predict(
    model: VisionTransformer, cfg: Config, classes: list[str], files: list[Path], top: int = 5, attention: bool = False
) -> Iterator[Prediction]:
    """Yields a prediction for each file, in order; with `attention`, attention maps too."""
    device = next(model.parameters()).device
    for start in range(0, len(files), _BATCH):
        batch = files[start : start + _BATCH]
        pixels: dict[Path, Pixels] = {}
        errors: dict[Path, str] = {}
        for file in batch:
            try:
                pixels[file] = load_image(file, cfg)
            except (OSError, ValueError) as error:
                errors[file] = str(error)
        results = {}
        if pixels:
            images = normalize(torch.from_numpy(np.stack(list(pixels.values()))).to(device), cfg.augment)
            results = dict(zip(pixels, _classify(model, images, classes, top, attention), strict=True))
        for file in batch:
            if file in errors:
                yield Prediction(file, error=errors[file])
            else:
                best, maps = results[file]
                yield Prediction(file, best=best, pixels=pixels[file], maps=maps)


@torch.inference_mode()
def _classify(
    model: VisionTransformer, images: Tensor, classes: list[str], top: int, attention: bool
) -> Iterator[tuple[tuple[tuple[str, float], ...], Tensor | None]]:
    """Yields the most probable classes and, with `attention`, the attention maps of each image."""
    maps: list[Tensor] | list[None] = [None] * len(images)
    if attention:
        logits, weights = attention_maps.forward_with_attention(model, images)
        maps = list(attention_maps.patch_maps(model, weights).cpu().unbind())
    else:
        logits = model(images)
    best = logits.float().softmax(dim=1).topk(min(top, len(classes)))
    for values, indices, image_maps in zip(best.values.tolist(), best.indices.tolist(), maps, strict=True):
        yield tuple((classes[i], value) for i, value in zip(indices, values, strict=True)), image_maps


def attention_figure(prediction: Prediction) -> Image.Image:
    """The image, and overlays of the rollout and of each head of the last block, side by side."""
    assert prediction.pixels is not None and prediction.maps is not None
    colormap = import_matplotlib().colormaps["inferno"]  # maps values from 0 to 1 to colors
    image = Image.fromarray(prediction.pixels)
    side = max(_TILE, image.width)
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    tiles = [image]
    for weights in prediction.maps.numpy():
        strength = (weights - weights.min()) / max(float(np.ptp(weights)), 1e-12)  # (G, G), 0 to 1
        smooth = np.asarray(Image.fromarray(strength.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
        colors = colormap(smooth.clip(0, 1))[:, :, :3]  # (side, side, 3), 0 to 1
        tiles.append(Image.blend(image, Image.fromarray((255 * colors).astype(np.uint8)), 0.6))
    columns = 7  # ViT-B with its 12 heads fills two rows
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (min(columns, len(tiles)) * side, rows * side), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * side, i // columns * side))
    return sheet


def _output(predictions: Iterator[Prediction], options: argparse.Namespace) -> int:
    """Prints each prediction when it is ready; returns the exit code, 1 if an image could not be read."""
    failed = False
    for i, prediction in enumerate(predictions):
        if prediction.error is not None:
            failed = True
            print(f"vit.predict: {prediction.file}: {prediction.error}", file=sys.stderr)
        if options.json:
            best = [{"class": name, "probability": round(probability, 6)} for name, probability in prediction.best]
            result = {"error": prediction.error} if prediction.error is not None else {"predictions": best}
            print(json.dumps({"file": str(prediction.file)} | result), flush=True)
        elif prediction.error is None:
            print(prediction.file)
            for name, probability in prediction.best:
                print(f"  {probability:7.2%}  {name}")
        if options.attention and prediction.maps is not None:
            options.attention.mkdir(parents=True, exist_ok=True)
            name = f"{i:03}-{prediction.file.stem}.png"  # file names may not be unique
            attention_figure(prediction).save(options.attention / name)
    return int(failed)


def main(args: list[str] | None = None) -> int:
    """Command line.  Exit code 1 if an image could not be read, 2 for other errors that the user can fix."""
    parser = argparse.ArgumentParser("vit.predict", description="Classifies images with the weights of a run.")
    parser.add_argument("run", type=user_path, help="run folder, or a checkpoint in it")
    parser.add_argument("images", type=user_path, nargs="+", metavar="IMAGE", help="any format that Pillow reads")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="number of classes per image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line and image")
    parser.add_argument("--attention", type=user_path, metavar="FOLDER", help="write attention maps: rollout and heads")
    parser.add_argument(
        "--which", default="newest", metavar="STEP", help="checkpoint: newest, best or a step (default: newest)"
    )
    parser.add_argument("--weights", choices=("ema", "last"), help="weights to use (default: the EMA if there is one)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="(default: auto)")
    options = parser.parse_args(args)
    if options.top < 1:
        parser.error(f"--top must be at least 1, not {options.top}")
    try:
        run = load_trained_model(options.run, options.which)
        model = run.select_model(options.weights).to(pick_device(options.device))
        attention = options.attention is not None
        return _output(predict(model, run.cfg, run.classes, options.images, options.top, attention), options)
    except (UserError, OSError) as error:
        print(f"vit.predict: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    run_command(main)
