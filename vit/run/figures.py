"""Matplotlib for figures that are written to files, whatever backend the environment names; text in pictures."""

import functools
import importlib
import importlib.util
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import ImageFont


def import_matplotlib() -> Any:
    """Matplotlib, with the backend for files if it was not imported before.  That takes a second.

    While it is imported it checks the backend that the environment names, which in the shell of a notebook is one that
    only the notebook's own environment may have.  The variable is left as it was, for the caller's own processes.
    """
    backend = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it works without a cache folder, and says so in two lines
    try:
        return importlib.import_module("matplotlib")
    finally:
        del os.environ["MPLBACKEND"]
        os.environ |= {"MPLBACKEND": backend} if backend is not None else {}


@functools.cache
def font(size: int) -> "ImageFont.FreeTypeFont":
    """The font of Matplotlib, which has Latin, Greek and Cyrillic letters; Pillow's own has only those of English."""
    from PIL import ImageFont  # not at the top: most commands that import this module draw no picture

    package = importlib.util.find_spec("matplotlib")  # located without importing it, which takes a second
    assert package and package.origin
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def shortened(text: str, font: "ImageFont.FreeTypeFont", width: int) -> str:
    """The start of a text that fits into `width` pixels, with an ellipsis if it is not all of it."""
    while len(text) > 1 and font.getlength(text) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text
