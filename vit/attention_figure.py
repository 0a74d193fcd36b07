"""Draws attention maps over the images that they belong to: one image in a figure, or several in a contact sheet.

Shapes: S pixels along a side, H heads, G patches along a side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vit.run.figures import font, import_matplotlib, shortened

MAX_ROWS = 64  # of a contact sheet
_TILE = 224  # minimum side of a map in a figure, in pixels
_GAP = 8
_ROW_TILE, _ROW_TEXT = 160, 230  # of a contact sheet: side of a tile, width of the text at its left
_GRAY, _GREEN, _RED = "#555555", "#1a6b2b", "#b3261e"  # dark enough to be read on white


@dataclass(frozen=True)
class Row:
    """One image of a contact sheet, with what is written beside it."""

    pixels: NDArray[np.uint8]  # (S, S, 3)
    maps: NDArray[np.float32]  # (1 + H, G, G): rollout, and the heads of the last block
    predicted: str  # class
    probability: float
    truth: str | None  # class; None: it is not known
    name: str  # of the image


def attention_figure(pixels: NDArray[np.uint8], maps: NDArray[np.float32], title: str) -> Image.Image:
    """The image, and overlays of the rollout and of each head of the last block, with captions."""
    names = ["attention rollout", *(f"last block, head {i} of {len(maps) - 1}" for i in range(1, len(maps)))]
    tiles = dict(zip(["image", *names], _tiles(pixels, maps, max(_TILE, len(pixels))), strict=True))
    return _sheet(tiles, title)


def contact_sheet(title: str, rows: Sequence[Row]) -> Image.Image:
    """One row for each image: predicted and true class, the image, and the overlays of `attention_figure`."""
    heads = max(len(row.maps) for row in rows) - 1
    columns = ["image", "rollout", *(f"head {i}" for i in range(1, heads + 1))]
    left, top, step = _GAP + _ROW_TEXT, 88, _ROW_TILE + _GAP
    sheet = Image.new("RGB", (left + len(columns) * step, top + len(rows) * step), "white")
    canvas = ImageDraw.Draw(sheet)

    def write(x: int, y: int, text: str, size: int, color: str, width: int) -> None:
        canvas.text((x, y), shortened(" ".join(text.split()), font(size), width), color, font(size), anchor="lm")

    left_text = "Left: predicted class and its probability"
    left_text += ", true class" if any(row.truth is not None for row in rows) else ""
    about = f"{left_text}. Attention: its rollout over all blocks, and the heads of the last block; bright is high."
    write(_GAP, 22, title, 20, "black", sheet.width - 2 * _GAP)
    write(_GAP, 48, about, 14, _GRAY, sheet.width - 2 * _GAP)
    for i, column in enumerate(columns):
        write(left + i * step, top - 14, column, 14, "black", _ROW_TILE)
    for n, row in enumerate(rows):
        y = top + n * step
        for i, tile in enumerate(_tiles(row.pixels, row.maps, _ROW_TILE)):
            sheet.paste(tile, (left + i * step, y))
        is_right = row.truth == row.predicted
        mark = "" if row.truth is None else "✓ " if is_right else "✗ "
        color = "black" if row.truth is None else _GREEN if is_right else _RED
        lines = [(row.predicted, 17, "black"), (f"{mark}{row.probability:.1%}", 17, color)]
        lines += [(f"true: {row.truth}", 14, color)] if row.truth is not None else []
        lines += [(row.name, 12, _GRAY)]
        first = y + _ROW_TILE // 2 - 13 * (len(lines) - 1)
        for i, (text, size, ink) in enumerate(lines):
            write(_GAP, first + 26 * i, text, size, ink, _ROW_TEXT - _GAP)
    return sheet


def _tiles(pixels: NDArray[np.uint8], maps: NDArray[np.float32], side: int) -> list[Image.Image]:
    """The image, then each map over it, as squares of this side."""
    colormap = import_matplotlib().colormaps["inferno"]  # maps values from 0 to 1 to colors
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    tiles = [image]
    for weights in maps:
        strength = (weights - weights.min()) / max(float(np.ptp(weights)), 1e-12)  # (G, G), 0 to 1
        smooth = np.asarray(Image.fromarray(strength.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
        colors = colormap(smooth.clip(0, 1))[:, :, :3]  # (side, side, 3), 0 to 1
        tiles.append(Image.blend(image, Image.fromarray((255 * colors).astype(np.uint8)), 0.6))
    return tiles


def _sheet(tiles: dict[str, Image.Image], title: str) -> Image.Image:
    """Square tiles of one size, each below its caption, in equal rows of seven at most: two for ViT-S and ViT-B."""
    side, caption, gap = tiles["image"].width, 24, _GAP
    rows = -(-len(tiles) // 7)
    columns = -(-len(tiles) // rows)
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
