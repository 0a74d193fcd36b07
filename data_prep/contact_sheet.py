"""Draws a contact sheet: random images of a data set with their class names, for visual inspection."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data_prep.beton_reader import BetonIndex
from vit.run.figures import font, shortened

_TILE, _CAPTION, _GAP, _COLUMNS = 144, 18, 6, 8  # pixels; the last: tiles per row


def draw(beton: BetonIndex, names: Sequence[str], picture: Path, count: int = 48, seed: int = 0) -> None:
    """Draws `count` random samples, or all if there are fewer, into a PNG file.

    `names` are the names of the classes.  Raises InputError for a damaged sample, OSError if the PNG cannot be written.
    """
    rng = np.random.default_rng(seed)
    samples = np.sort(rng.choice(len(beton), min(count, len(beton)), replace=False)).tolist()
    rows = -(-len(samples) // _COLUMNS)
    column_step, row_step = _TILE + _GAP, _TILE + _CAPTION + _GAP
    sheet = Image.new("RGB", (_GAP + _COLUMNS * column_step, _GAP + rows * row_step), "white")
    canvas, small = ImageDraw.Draw(sheet), font(11)
    descriptor = os.open(beton.path, os.O_RDONLY)
    try:
        for i, sample in enumerate(samples):
            x, y = _GAP + i % _COLUMNS * column_step, _GAP + i // _COLUMNS * row_step
            tile = Image.fromarray(beton.read_pixels(descriptor, sample))
            factor = _TILE // max(tile.size)
            if factor > 1:  # enlarge small images by an integer factor
                tile = tile.resize((tile.width * factor, tile.height * factor), Image.Resampling.NEAREST)
            tile.thumbnail((_TILE, _TILE))
            sheet.paste(tile, (x + (_TILE - tile.width) // 2, y + (_TILE - tile.height) // 2))
            caption = shortened(" ".join(names[int(beton.labels[sample])].split()), small, _TILE)
            canvas.text((x + (_TILE - small.getlength(caption)) / 2, y + _TILE), caption, "black", small)
    finally:
        os.close(descriptor)
    picture.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(picture, "PNG")
