"""The Oxford-IIIT Pet data set: 7,349 pictures of 37 breeds of cats and dogs, https://www.robots.ox.ac.uk/~vgg/data/pets.

Some of its .jpg files contain another format; their content counts, not their name.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.sources.archives import Archive, find_folders, read_lines, require_images
from data_prep.sources.source import InputError, Source

FOLDER = "oxford-iiit-pet"
ARCHIVES = (
    Archive(
        "images.tar.gz",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
        "5c4f3ee8e5d25df40f4fd59a7f44e54c",
        "images",
    ),
    Archive(
        "annotations.tar.gz",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
        "95a8c909bbe2e81eed6a22bccdf3f68f",
        "annotations",
    ),
)
TARGETS = ("breed", "species")
_SPECIES = ("Cat", "Dog")
_LISTS = {"train": "trainval.txt", "val": "test.txt"}


class _Line(NamedTuple):
    image: str  # name without .jpg
    breed: int  # from 0
    species: int  # 0: cat, 1: dog

    @property
    def breed_name(self) -> str:
        """As torchvision writes it: "american_bulldog_12" -> "American Bulldog"."""
        return self.image.rpartition("_")[0].replace("_", " ").title()


def oxford_pets(split: str, root: Path, target: str = "breed", fetch: bool = True) -> Source:
    """The pictures of "train" (trainval.txt) or "val" (test.txt), labeled by breed, or by `target` "species".

    Read from `root`/oxford-iiit-pet; what is missing there is unpacked from `root`'s images.tar.gz and
    annotations.tar.gz, which are downloaded if they are missing; not without `fetch`.  Raises InputError if
    something is damaged, or missing without a network.
    """
    base = find_folders(root, FOLDER, ARCHIVES, fetch)
    lists = {name: _read_list(base / "annotations" / file) for name, file in _LISTS.items()}
    lines = lists[split]
    images = require_images([base / "images" / f"{line.image}.jpg" for line in lines])
    if target == "species":
        return Source(_SPECIES, images, np.array([line.species for line in lines], np.int64))
    # From both lists, so that both splits have the same classes.
    names = {line.breed: line.breed_name for each in lists.values() for line in each}
    for each, file in zip(lists.values(), _LISTS.values(), strict=True):
        for line in each:
            if names[line.breed] != line.breed_name:
                what = f"{line.image} has number {line.breed + 1}, which is {names[line.breed]}"
                raise InputError(f"{base / 'annotations' / file}: {what}; download annotations.tar.gz again")
    if sorted(names) != list(range(len(names))) or len(set(names.values())) < len(names):
        what = f"the numbers of its breeds are not 1 to {len(names)}, once each"
        raise InputError(f"{base / 'annotations'}: {what}; download annotations.tar.gz again")
    labels = np.array([line.breed for line in lines], np.int64)
    return Source(tuple(names[number] for number in range(len(names))), images, labels)


def _read_list(path: Path) -> list[_Line]:
    """The lines "image breed species number" of a list, whose numbers start with 1."""
    found = []
    for number, text in enumerate(read_lines(path), 1):
        match = re.fullmatch(r"(\w[^/\s]*_\d+) ([1-9]\d*) ([12]) \d+", text)
        if match is None:
            what = f"line {number} is not an image and its three numbers: {text[:60]!r}"
            raise InputError(f"{path}: {what}; download annotations.tar.gz again")
        found.append(_Line(match[1], int(match[2]) - 1, int(match[3]) - 1))
    if not found:
        raise InputError(f"{path}: is empty; download annotations.tar.gz again")
    return found
