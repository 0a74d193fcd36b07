"""`--pictures FILE`: the images of a step as the model saw them, after augmentation, worst first."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vit.augment.pipeline import channel_levels
from vit.replay.replayer import ReplayedStep
from vit.replay.report import prediction, worst_first
from vit.replay.sample_names import SampleNames, partner
from vit.run.figures import font, shortened

MOST = 60  # images in a sheet
COLUMNS = 6
SMALLEST_SHARE = 0.005  # of an image that is mixed in and shown
_TILE, _GAP, _LINE = 176, 12, 17  # pixels: side of an image, space between images, height of a line of text
_LINES = 4  # of text below an image
_TOP = 74  # pixels above the first row
_GRAY, _GREEN, _RED = "#555555", "#1a6b2b", "#b3261e"  # dark enough to be read on white


def save_picture(sheet: Image.Image, path: Path) -> None:
    """Writes a picture; with its final name it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    sheet.save(unfinished, "PNG")
    unfinished.replace(path)


def pixels(step: ReplayedStep, micro_batch: int, row: int) -> NDArray[np.uint8]:
    """An image as the model saw it, without normalization: (S, S, 3).  Values that are not finite are magenta."""
    image = step.micro_batches[micro_batch][0][row].detach().cpu()[None]  # (1, 3, S, S)
    cpu = torch.device("cpu")
    levels = image * channel_levels(step.cfg.augment.std, cpu) + channel_levels(step.cfg.augment.mean, cpu)
    out: NDArray[np.uint8] = levels[0].nan_to_num().round().clamp(0, 255).byte().permute(1, 2, 0).numpy().copy()
    out[~image[0].isfinite().all(0).numpy()] = (255, 0, 255)
    return out


def contact_sheet(step: ReplayedStep, names: SampleNames, title: str) -> Image.Image:
    """The images of a step with labels, predictions and losses; the MOST worst ones, if there are more."""
    order = worst_first(step)
    shown = order[:MOST]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    width, height = _TILE + _GAP, _TILE + _LINES * _LINE + _GAP
    sheet = Image.new("RGB", (_GAP + max(columns, 3) * width, _TOP + rows * height), "white")
    canvas = ImageDraw.Draw(sheet)
    left = f"the {len(shown)} worst of {len(order):,} images" if len(shown) < len(order) else f"{len(order)} images"
    about = f"As the model saw them, {left}, by their loss. Below: loss, label, prediction, sample."
    for y, text, size, color in ((24, title, 20, "black"), (52, about, 13, _GRAY)):
        canvas.text((_GAP, y), shortened(text, font(size), sheet.width - 2 * _GAP), color, font(size), anchor="lm")
    for i, (j, row) in enumerate(shown):
        x, y = _GAP + i % columns * width, _TOP + i // columns * height
        tile = Image.fromarray(pixels(step, j, row))
        sheet.paste(tile.resize((_TILE, _TILE), Image.Resampling.BICUBIC), (x, y))
        for line, (text, color) in enumerate(_captions(step, names, j, row)):
            place = (x, y + _TILE + 4 + line * _LINE)
            canvas.text(place, shortened(" ".join(text.split()), font(12), _TILE), color, font(12))
    return sheet


def _captions(step: ReplayedStep, names: SampleNames, j: int, row: int) -> list[tuple[str, str]]:
    """The lines below an image, with their colors."""
    sample = int(step.samples[j, row])
    mixed, (predicted, probability) = partner(step, j, row), prediction(step, names, j, row)
    share = mixed[1] if mixed is not None else 0.0
    parts = [(1 - share, sample), (share, mixed[0] if mixed is not None else -1)]
    shown = [(part, each) for part, each in parts if part >= SMALLEST_SHARE]
    labels = " + ".join(f"{part:.0%} {names.class_of(each)}" for part, each in shown)
    labels = labels if len(shown) > 1 else names.class_of(shown[0][1])
    right = {names.class_of(each) for _, each in shown}
    color = _GREEN if predicted in right else _RED
    return [
        (f"loss {step.sample_losses[j, row]:.4g}", "black"),
        (labels, "black"),
        (f"{'✓' if predicted in right else '✗'} {predicted} {probability:.0%}", color),
        (f"{' + '.join(f'{each:,}' for _, each in shown)}, micro-batch {j}", _GRAY),
    ]
