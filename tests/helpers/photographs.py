"""Real photographs, as a miniature of the Oxford-IIIT Pet data set: crops of a cat, a cup and a rocket.

The photographs are those at the left of benchmarks/results/augment.jpg, CC0.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.image_files import encode_image
from tests.helpers.paths import ROOT
from tests.helpers.published_data import write_pets_archives

_SIDE = 160  # of a photograph in the picture
# Two breeds of cats, which show the cat; two of dogs, which show a cup and a rocket: name, species, row of the picture.
BREEDS = (("Abyssinian", 1, 0), ("Bengal", 1, 0), ("beagle", 2, 1), ("pug", 2, 2))


def crops(row: int, count: int, seed: int) -> list[bytes]:
    """Random crops of a photograph, half of them mirrored, as JPEG files of different sizes."""
    with Image.open(ROOT / "benchmarks" / "results" / "augment.jpg") as picture:
        photograph = picture.convert("RGB").crop((0, row * _SIDE, _SIDE, (row + 1) * _SIDE))
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        side = int(rng.integers(120, _SIDE))
        x, y = rng.integers(0, _SIDE - side, 2).tolist()
        crop = photograph.crop((x, y, x + side, y + side)).resize((200 + 10 * i, 210), Image.Resampling.BICUBIC)
        if i % 2:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        out.append(encode_image(np.asarray(crop), "JPEG"))
    return out


def pets_of_photographs(train: int = 8, test: int = 3) -> dict[str, bytes]:
    """The contents of the two archives of the data set: this many pictures of each breed in its two lists."""
    files: dict[str, bytes] = {}
    lists = {"trainval": "", "test": ""}
    for breed, (name, species, row) in enumerate(BREEDS, 1):
        for number, content in enumerate(crops(row, train + test, breed), 1):
            files[f"images/{name}_{number}.jpg"] = content
            lists["trainval" if number <= train else "test"] += f"{name}_{number} {breed} {species} {breed}\n"
    return files | {f"annotations/{name}.txt": text.encode() for name, text in lists.items()}


def write_pets(folder: Path, files: Mapping[str, bytes] | None = None) -> None:
    """images.tar.gz and annotations.tar.gz of the miniature in `folder`."""
    write_pets_archives(folder, pets_of_photographs() if files is None else files)
