"""Classifies images with the weights of a run, and draws attention maps.

    python -m vit.predict runs/vit_b16 cat.jpg dog.png
    python -m vit.predict runs/vit_b16 *.jpg --json
    python -m vit.predict runs/vit_b16 cat.jpg --attention maps/

Images are resized, cropped and normalized as in evaluation.
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vit.augment.pipeline import normalize
from vit.checkpoint.trained_model import add_checkpoint_options, load_trained_model
from vit.config.option_errors import CommandParser
from vit.config.paths import printable, user_path
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.image_file import MAX_MEGAPIXELS, Pixels, TooManyPixelsError
from vit.data.image_input import load_image
from vit.distributed.world import pick_device
from vit.model import attention_maps
from vit.model.vision_transformer import VisionTransformer
from vit.run.command import run_command
from vit.run.console import started_as
from vit.run.figures import font, import_matplotlib, shortened

_BATCH = 16  # images; with --attention, the attention weights of ViT-B take 22 MB per image
_MAX_STEM = 200  # bytes of an image's name in that of its attention map; file systems allow 255 in all
_TILE = 224  # minimum side of an attention map in the figure, in pixels


@dataclass(frozen=True)
class Prediction:
    """The predicted classes of one image, or why it could not be read."""

    file: Path
    error: str | None = None
    best: tuple[tuple[str, float], ...] = ()  # class names and probabilities, most probable first
    pixels: Pixels | None = None  # (S, S, 3), the input of the model before normalization
    maps: Tensor | None = None  # (1 + H, G, G): rollout, and the heads of the last block


def predict(
    model: VisionTransformer,
    cfg: Config,
    classes: list[str],
    files: list[Path],
    top: int = 5,
    attention: bool = False,
    max_megapixels: int = MAX_MEGAPIXELS,
) -> Iterator[Prediction]:
    """Yields a prediction for each file, in order; with `attention`, attention maps too."""
    for start in range(0, len(files), _BATCH):
        batch = [_read(file, cfg, max_megapixels) for file in files[start : start + _BATCH]]
        readable = [image for image in batch if image.error is None]
        predicted = iter(_predict_batch(model, cfg, classes, readable, top, attention))
        yield from (image if image.error is not None else next(predicted) for image in batch)


def _read(file: Path, cfg: Config, max_megapixels: int) -> Prediction:
    """The pixels of an image, or why it cannot be read."""
    try:
        return Prediction(file, pixels=load_image(file, cfg, max_megapixels))
    except MemoryError:
        return Prediction(file, error="not enough memory to read it")
    except TooManyPixelsError as error:
        return Prediction(file, error=f"{error}; --max-megapixels admits it")
    except OSError as error:
        return Prediction(file, error=error.strerror or str(error))
    except ValueError as error:
        return Prediction(file, error=str(error))


def _predict_batch(
    model: VisionTransformer, cfg: Config, classes: list[str], batch: list[Prediction], top: int, attention: bool
) -> list[Prediction]:
    """Classifies images that were read; in smaller batches if the memory is not enough."""
    if not batch:
        return []
    try:
        pixels = np.stack([image.pixels for image in batch if image.pixels is not None])
        images = normalize(torch.from_numpy(pixels).to(next(model.parameters()).device), cfg.augment)
        results = list(_classify(model, images, classes, top, attention))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    else:
        return [replace(image, best=best, maps=maps) for image, (best, maps) in zip(batch, results, strict=True)]
    if len(batch) == 1:
        return [replace(batch[0], error="not enough memory to classify it", pixels=None)]
    half = len(batch) // 2
    parts = (batch[:half], batch[half:])
    return [image for part in parts for image in _predict_batch(model, cfg, classes, part, top, attention)]


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Also by errors of torch that have no type of their own."""
    texts = ("can't allocate memory", "bad_alloc", "ALLOC_FAILED")  # of its allocator, of C++, of CUDA's libraries
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in texts)


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
    """The image, and overlays of the rollout and of each head of the last block, with captions.

    The title is the most probable class with its probability.
    """
    assert prediction.pixels is not None and prediction.maps is not None
    colormap = import_matplotlib().colormaps["inferno"]  # maps values from 0 to 1 to colors
    image = Image.fromarray(prediction.pixels)
    side = max(_TILE, image.width)
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    tiles = {"image": image}
    for i, weights in enumerate(prediction.maps.numpy()):
        strength = (weights - weights.min()) / max(float(np.ptp(weights)), 1e-12)  # (G, G), 0 to 1
        smooth = np.asarray(Image.fromarray(strength.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
        colors = colormap(smooth.clip(0, 1))[:, :, :3]  # (side, side, 3), 0 to 1
        overlay = Image.blend(image, Image.fromarray((255 * colors).astype(np.uint8)), 0.6)
        tiles[f"last block, head {i} of {len(prediction.maps) - 1}" if i else "attention rollout"] = overlay
    name, probability = prediction.best[0]
    return _sheet(tiles, f"{probability:.1%}  {' '.join(name.split())}")


def _sheet(tiles: dict[str, Image.Image], title: str) -> Image.Image:
    """Square tiles of one size, each below its caption, in rows of seven: ViT-B with its 12 heads fills two."""
    side, columns, caption, gap = tiles["image"].width, min(7, len(tiles)), 24, 8
    rows = -(-len(tiles) // columns)
    top = 40  # of the first row: the title is above it
    size = (gap + columns * (side + gap), top + rows * (caption + side + gap))
    sheet = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(sheet)
    canvas.text((gap, top / 2), shortened(title, font(20), size[0] - 2 * gap), "black", font(20), anchor="lm")
    for i, (text, tile) in enumerate(tiles.items()):
        x, y = gap + i % columns * (side + gap), top + i // columns * (caption + side + gap)
        canvas.text((x, y + caption / 2), text, "black", font(15), anchor="lm")
        sheet.paste(tile, (x, y + caption))
    return sheet


def _output(predictions: Iterator[Prediction], options: argparse.Namespace) -> int:
    """Prints each prediction when it is ready; returns the exit code, 1 if an image could not be read."""
    failed = False
    for i, prediction in enumerate(predictions):
        written = _write_figure(i, prediction, options.attention) if prediction.maps is not None else None
        if prediction.error is not None:
            failed = True
            print(f"{started_as('vit.predict')}: {printable(prediction.file)}: {prediction.error}", file=sys.stderr)
        if options.json:
            best = [{"class": name, "probability": round(probability, 6)} for name, probability in prediction.best]
            result = {"error": prediction.error} if prediction.error is not None else {"predictions": best}
            figure = {"attention": str(written)} if written else {}
            print(json.dumps({"file": str(prediction.file)} | result | figure), flush=True)
        elif prediction.error is None:
            print(printable(prediction.file))
            for name, probability in prediction.best:
                print(f"  {probability:7.2%}  {name}")
            if written:
                print(f"  attention maps: {printable(written)}")
    return int(failed)


def _write_figure(i: int, prediction: Prediction, folder: Path) -> Path:
    """Draws the attention maps of the image with this number on the command line; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = os.fsdecode(os.fsencode(prediction.file.stem)[:_MAX_STEM])
    path = folder / f"{i:03}-{stem}.png"  # file names may not be unique
    attention_figure(prediction).save(path)
    return path


def main(args: list[str] | None = None) -> int:
    """Command line.  Exit code 1 if an image could not be read, 2 for other errors that the user can fix."""
    parser = CommandParser(started_as("vit.predict"), description="Classifies images with the weights of a run.")
    parser.add_argument("run", type=user_path, help="run folder, or a checkpoint in it")
    parser.add_argument("images", type=user_path, nargs="+", metavar="IMAGE", help="any format that Pillow reads")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="number of classes per image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line and image")
    parser.add_argument("--attention", type=user_path, metavar="FOLDER", help="write attention maps: rollout and heads")
    add_checkpoint_options(parser)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="(default: auto)")
    parser.add_argument(
        "--max-megapixels",
        type=int,
        default=MAX_MEGAPIXELS,
        metavar="N",
        help="size of the largest image to read (default: %(default)s)",
    )
    options = parser.parse_args(args)
    if options.top < 1:
        parser.error(f"--top must be at least 1, not {options.top}")
    if options.max_megapixels < 1:
        parser.error(f"--max-megapixels must be at least 1, not {options.max_megapixels}")
    try:
        run = load_trained_model(options.run, options.which)
        model = run.select_model(options.weights).to(pick_device(options.device))
        attention = options.attention is not None
        limits = (options.top, attention, options.max_megapixels)
        return _output(predict(model, run.cfg, run.classes, options.images, *limits), options)
    except (UserError, OSError) as error:
        print(f"{started_as('vit.predict')}: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        what = "the memory of the GPU is not enough for the model"
        print(f"{started_as('vit.predict')}: {what}; use another GPU, or --device cpu", file=sys.stderr)
        return 2


if __name__ == "__main__":
    run_command(main)
