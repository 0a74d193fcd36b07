"""A contact sheet: random images of a data set with the names of their classes, for a person to look at."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_prep.beton_reader import Beton

_TILE, _CAPTION, _GAP, _COLUMNS = 144, 18, 6, 8  # pixels, and tiles in a row


def draw(beton: Beton, names: Sequence[str], picture: Path, count: int = 48, seed: int = 0) -> None:
    """Draw `count` samples, or all if there are fewer, into a PNG file.

    `names` are those of the classes.  Raises InputError for a damaged sample, OSError for a file that cannot be
    written.
    """
    random = np.random.default_rng(seed)
    samples = np.sort(random.choice(len(beton), min(count, len(beton)), replace=False)).tolist()
    rows = -(-len(samples) // _COLUMNS)
    step, height = _TILE + _GAP, _TILE + _CAPTION + _GAP
    sheet = Image.new("RGB", (_GAP + _COLUMNS * step, _GAP + rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    descriptor = os.open(beton.path, os.O_RDONLY)
    try:
        for i, sample in enumerate(samples):
            x, y = _GAP + i % _COLUMNS * step, _GAP + i // _COLUMNS * height
            tile = Image.fromarray(beton.pixels(descriptor, sample))
            times = _TILE // max(tile.size)
            if times > 1:  # small images as large pixels
                tile = tile.resize((tile.width * times, tile.height * times), Image.Resampling.NEAREST)
            tile.thumbnail((_TILE, _TILE))
            sheet.paste(tile, (x + (_TILE - tile.width) // 2, y + (_TILE - tile.height) // 2))
            caption = " ".join(names[int(beton.labels[sample])].split())
            while font.getlength(caption) > _TILE:
                caption = caption.removesuffix("…")[:-1] + "…"
            pen.text((x + (_TILE - font.getlength(caption)) / 2, y + _TILE), caption, "black", font)
    finally:
        os.close(descriptor)
    picture.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(picture, "PNG")
