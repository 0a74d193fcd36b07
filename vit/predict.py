"""Classifies images with the weights of a run, and draws attention maps.

    python -m vit.predict runs/vit_b16 cat.jpg dog.png
    python -m vit.predict runs/vit_b16 *.jpg --json
    python -m vit.predict runs/vit_b16 cat.jpg --attention runs/vit_b16/maps
    python -m vit.predict runs/vit_b16 --samples 8 --sheet runs/vit_b16/attention.png    # validation images

Images are resized, cropped and normalized as in evaluation.
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()
    from vit.run.garbage_collection import pause_collection

    pause_collection()

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vit.attention_figure import MAX_ROWS, Row, attention_figure, contact_sheet
from vit.augment.pipeline import normalize
from vit.checkpoint.trained_model import add_checkpoint_options, load_trained_model
from vit.config.option_errors import CommandParser
from vit.config.paths import printable, user_path
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.image_file import MAX_MEGAPIXELS
from vit.distributed.world import pick_device
from vit.model import attention_maps
from vit.model.vision_transformer import VisionTransformer
from vit.prediction import Prediction, read_image, read_samples
from vit.run.command import print_error, run_command
from vit.run.console import started_as
from vit.run.counts import counted

_BATCH = 16  # images; with --attention, the attention weights of ViT-B take 22 MB per image
_MAX_STEM = 200  # bytes of an image's name in that of its attention map; file systems allow 255 in all


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
    return _classify_all(model, cfg, classes, (read_image(file, cfg, max_megapixels) for file in files), top, attention)


def _classify_all(
    model: VisionTransformer, cfg: Config, classes: list[str], images: Iterable[Prediction], top: int, attention: bool
) -> Iterator[Prediction]:
    """Yields the images with their predictions, and unchanged those that could not be read."""
    images = iter(images)
    for first in images:
        batch = [first, *islice(images, _BATCH - 1)]
        readable = [image for image in batch if image.error is None]
        predicted = iter(_predict_batch(model, cfg, classes, readable, top, attention))
        yield from (image if image.error is not None else next(predicted) for image in batch)


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


def _output(predictions: Iterator[Prediction], options: argparse.Namespace) -> int:
    """Prints each prediction when it is ready; returns the exit code, 1 if an image could not be read."""
    failed = False
    shown, rows = [], []
    for i, prediction in enumerate(predictions):
        if prediction.error is not None:
            failed = True
            print_error("vit.predict", f"{_name(prediction)}: {prediction.error}")
        else:
            shown.append(prediction.best[0][0] == prediction.truth)
        written = _write_figure(i, prediction, options.attention) if options.attention and prediction.best else None
        if options.sheet and prediction.best:
            rows.append(_row(prediction))
        if options.json:
            print(json.dumps(_as_json(prediction, written)), flush=True)
        elif prediction.error is None:
            print(_name(prediction) + (f": {prediction.truth}" if prediction.truth is not None else ""))
            for name, probability in prediction.best:
                print(f"  {probability:7.2%}  {name}")
            if written:
                print(f"  attention maps: {printable(written)}")
    right = f"{sum(shown)} of {counted(len(shown), 'image')} right" if options.samples and shown else ""
    if right and not options.json:
        print(right)
    if rows:
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        unfinished = options.sheet.with_name(f".{options.sheet.name}.tmp")
        contact_sheet(": ".join(filter(None, [printable(options.run), right])), rows).save(unfinished, "PNG")
        unfinished.replace(options.sheet)  # a picture with its final name is whole
        print(f"attention maps of all images: {printable(options.sheet)}", file=sys.stderr if options.json else None)
    return int(failed)


def _name(prediction: Prediction) -> str:
    """The image in messages."""
    sample = "" if prediction.sample is None else f", sample {prediction.sample}"
    return printable(prediction.file) + sample


def _as_json(prediction: Prediction, written: Path | None) -> dict[str, object]:
    """What `--json` prints about an image."""
    out: dict[str, object] = {"file": str(prediction.file)}
    if prediction.sample is not None:
        out |= {"sample": prediction.sample, "true": prediction.truth}
    best = [{"class": name, "probability": round(probability, 6)} for name, probability in prediction.best]
    out |= {"error": prediction.error} if prediction.error is not None else {"predictions": best}
    return out | ({"attention": str(written)} if written else {})


def _write_figure(i: int, prediction: Prediction, folder: Path) -> Path:
    """Draws the attention maps of the image with this number on the command line; returns the path."""
    assert prediction.pixels is not None and prediction.maps is not None
    folder.mkdir(parents=True, exist_ok=True)
    stem = os.fsdecode(os.fsencode(prediction.file.stem)[:_MAX_STEM])
    sample = "" if prediction.sample is None else f"-{prediction.sample}"
    path = folder / f"{i:03}-{stem}{sample}.png"  # file names may not be unique
    name, probability = prediction.best[0]
    truth = f"  (true: {prediction.truth})" if prediction.truth is not None else ""
    title = " ".join(f"{name}{truth}".split())
    attention_figure(prediction.pixels, prediction.maps.numpy(), f"{probability:.1%}  {title}").save(path)
    return path


def _row(prediction: Prediction) -> Row:
    """The image in the contact sheet."""
    assert prediction.pixels is not None and prediction.maps is not None
    name, probability = prediction.best[0]
    stem = printable(prediction.file.name) if prediction.sample is None else f"sample {prediction.sample}"
    return Row(prediction.pixels, prediction.maps.numpy(), name, probability, prediction.truth, stem)


def _options(args: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(started_as("vit.predict"), description="Classifies images with the weights of a run.")
    parser.add_argument("run", type=user_path, help="run folder, or a checkpoint in it")
    parser.add_argument("images", type=user_path, nargs="*", metavar="IMAGE", help="any format that Pillow reads")
    parser.add_argument("--samples", type=int, metavar="N", help="instead: N images of a data set, a few of each class")
    parser.add_argument("--data", type=user_path, metavar="FILE", help=".beton file for --samples (default: data.val)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed: other --samples (default: 0)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="number of classes per image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line and image")
    parser.add_argument("--attention", type=user_path, metavar="FOLDER", help="write attention maps: rollout and heads")
    parser.add_argument("--sheet", type=user_path, metavar="FILE.png", help="draw them for all images in one picture")
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
    for name in ("samples", "top", "max_megapixels"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if bool(options.images) == (options.samples is not None):
        parser.error("give images after the run folder, or --samples N for images of a data set")
    if options.data is not None and options.samples is None:
        parser.error("--data is the data set of --samples N, which says how many of its images to classify")
    if options.seed < 0:
        parser.error(f"--seed must not be negative, not {options.seed}")
    if options.sheet is not None:
        if options.sheet.suffix.lower() != ".png":
            parser.error(f"--sheet {options.sheet}: the name of the picture must end with .png")
        count = options.samples or len(options.images)
        if count > MAX_ROWS:
            parser.error(
                f"--sheet draws at most {MAX_ROWS} images, not {count}; --attention draws each in its own file"
            )
    return options


def main(args: list[str] | None = None) -> int:
    """Command line.  Exit code 1 if an image could not be read, 2 for other errors that the user can fix."""
    options = _options(args)
    try:
        run = load_trained_model(options.run, options.which)
        model = run.select_model(options.weights).to(pick_device(options.device))
        if options.samples:
            images = read_samples(run, options.data or run.cfg.data.val, options.samples, options.seed)
        else:
            images = (read_image(file, run.cfg, options.max_megapixels) for file in options.images)
        attention = options.attention is not None or options.sheet is not None
        return _output(_classify_all(model, run.cfg, run.classes, images, options.top, attention), options)
    except (UserError, OSError) as error:
        print_error("vit.predict", error)
        return 2
    except torch.OutOfMemoryError:
        what = "the memory of the GPU is not enough for the model"
        print_error("vit.predict", f"{what}; use another GPU, or --device cpu")
        return 2


if __name__ == "__main__":
    run_command(main)
