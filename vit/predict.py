"""Names what is in images, with a run's weights; and shows where the model looked.

    python -m vit.predict runs/vit_b16 cat.jpg dog.png
    python -m vit.predict runs/vit_b16 *.jpg --json
    python -m vit.predict runs/vit_b16 cat.jpg --attention looks/

Images are cropped, resized and normalized as in evaluation.
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
from vit.config.schema import Config
from vit.data.decode import CenterCrop
from vit.distributed.world import pick_device
from vit.model import attention_maps
from vit.model.vision_transformer import VisionTransformer

Pixels = NDArray[np.uint8]

_BATCH = 16  # images at once: with --attention ViT-B's shares take 22 MB for each
_TILE = 224  # pixels of a picture of attention, at least


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image, or why it could not be read."""

    file: Path
    error: str | None = None
    best: tuple[tuple[str, float], ...] = ()  # names and probabilities, highest first
    pixels: Pixels | None = None  # (S, S, 3), what the model saw
    maps: Tensor | None = None  # (1 + H, G, G): rollout, and the heads of the last block


def pixels(path: Path, cfg: Config) -> Pixels:
    """An image as evaluation sees it: (S, S, 3) uint8.  Raises OSError or ValueError if it is none that is whole."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
    except (SyntaxError, Image.DecompressionBombError) as error:  # Pillow's, for broken PNGs and for 180 megapixels
        raise ValueError(str(error)) from None
    if image.mode.startswith("I;16"):  # Pillow's convert would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    size, one = cfg.model.image_size, np.ones(1, np.int64)
    window = CenterCrop(cfg.data.val_crop).windows(one, one, image.height * one, image.width * one, size)
    rows, columns, down, right = (int(n[0]) for n in (window.rows, window.columns, window.down, window.right))
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    resized = image.convert("RGB").resize((columns, rows), filters[cfg.data.interpolation])
    return np.asarray(resized.crop((right, down, right + size, down + size)))


def predict(
    model: VisionTransformer, cfg: Config, classes: list[str], files: list[Path], top: int = 5, look: bool = False
) -> Iterator[Prediction]:
    """A prediction for each file, in their order; `look` adds what the model attended to."""
    device = next(model.parameters()).device
    for start in range(0, len(files), _BATCH):
        part = files[start : start + _BATCH]
        read: dict[Path, Pixels | str] = {}
        for file in part:
            try:
                read[file] = pixels(file, cfg)
            except (OSError, ValueError) as error:
                read[file] = str(error)
        whole = {file: seen for file, seen in read.items() if not isinstance(seen, str)}
        said = {}
        if whole:
            images = torch.from_numpy(np.stack(list(whole.values()))).to(device)
            said = dict(zip(whole, _said(model, normalize(images, cfg.augment), classes, top, look), strict=True))
        for file in part:
            seen = read[file]
            if isinstance(seen, str):
                yield Prediction(file, error=seen)
            else:
                best, maps = said[file]
                yield Prediction(file, best=best, pixels=seen, maps=maps)


@torch.inference_mode()
def _said(
    model: VisionTransformer, images: Tensor, classes: list[str], top: int, look: bool
) -> Iterator[tuple[tuple[tuple[str, float], ...], Tensor | None]]:
    maps: list[Tensor] | list[None] = [None] * len(images)
    if look:
        logits, shares = attention_maps.look(model, images)
        maps = list(attention_maps.maps(model, shares).cpu().unbind())
    else:
        logits = model(images)
    found = logits.float().softmax(dim=1).topk(min(top, len(classes)))
    for values, indices, seen in zip(found.values.tolist(), found.indices.tolist(), maps, strict=True):
        yield tuple((classes[i], value) for i, value in zip(indices, values, strict=True)), seen


def picture(prediction: Prediction) -> Image.Image:
    """The image, the rollout over it, and each head of the last block over it, side by side."""
    assert prediction.pixels is not None and prediction.maps is not None
    import matplotlib  # takes a second, which nobody else should wait

    image = Image.fromarray(prediction.pixels)
    side = max(_TILE, image.width)
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    tiles = [image]
    for seen in prediction.maps.numpy():
        strength = (seen - seen.min()) / max(float(np.ptp(seen)), 1e-12)  # (G, G), 0 to 1
        smooth = np.asarray(Image.fromarray(strength.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
        colors = matplotlib.colormaps["inferno"](smooth.clip(0, 1))[:, :, :3]  # (side, side, 3), 0 to 1
        tiles.append(Image.blend(image, Image.fromarray((255 * colors).astype(np.uint8)), 0.6))
    columns = 7  # ViT-B has 12 heads: two rows
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (min(columns, len(tiles)) * side, rows * side), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * side, i // columns * side))
    return sheet


def _show(predictions: Iterator[Prediction], options: argparse.Namespace) -> int:
    """Prints each prediction as it comes; 1 if an image could not be read."""
    failed = False
    for i, prediction in enumerate(predictions):
        if prediction.error is not None:
            failed = True
            print(f"vit.predict: {prediction.file}: {prediction.error}", file=sys.stderr)
        if options.json:
            best = [{"class": name, "probability": round(share, 6)} for name, share in prediction.best]
            what = {"error": prediction.error} if prediction.error is not None else {"predictions": best}
            print(json.dumps({"file": str(prediction.file)} | what), flush=True)
        elif prediction.error is None:
            print(prediction.file)
            for name, share in prediction.best:
                print(f"  {share:7.2%}  {name}")
        if options.attention and prediction.maps is not None:
            options.attention.mkdir(parents=True, exist_ok=True)
            name = f"{i:03}-{prediction.file.stem}.png"  # numbered: two folders may hold an image of the same name
            picture(prediction).save(options.attention / name)
    return int(failed)


def main(args: list[str] | None = None) -> int:
    """The command line.  Exit code 1 if an image could not be read, 2 for what else the user can mend."""
    parser = argparse.ArgumentParser("vit.predict", description="Names what is in images, with a run's weights.")
    parser.add_argument("run", type=Path, help="run folder, or one of its checkpoints")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="any format that Pillow reads")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes for each image (default: 5)")
    parser.add_argument("--json", action="store_true", help="a JSON object for each image, a line each")
    parser.add_argument("--attention", type=Path, metavar="FOLDER", help="write where the model looked: rollout, heads")
    parser.add_argument("--which", default="newest", metavar="STEP", help="newest, best or a step (default: newest)")
    parser.add_argument(
        "--weights", choices=("ema", "last"), help="which weights (default: the EMA if the run keeps one)"
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="(default: auto)")
    options = parser.parse_args(args)
    if options.top < 1:
        parser.error(f"--top must be at least 1, not {options.top}")
    try:
        run = load_trained_model(options.run, options.which)
        model = run.pick(options.weights).to(pick_device(options.device, 0))
        look = options.attention is not None
        return _show(predict(model, run.cfg, run.classes, options.images, options.top, look), options)
    except (ValueError, OSError) as error:
        print(f"vit.predict: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
