"""Food-101: 101,000 pictures of dishes in 101 classes, https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101."""

from pathlib import Path

import numpy as np

from data_prep.sources.archives import Archive, find_folders, read_lines, require_images
from data_prep.sources.source import InputError, Source

ARCHIVE = Archive(
    "food-101.tar.gz",
    "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
    "85eeb15f3717b99a5da872d97d918f87",
    "food-101",
)
_LISTS = {"train": "train.txt", "val": "test.txt"}


def food101(split: str, root: Path, fetch: bool = True) -> Source:
    """The pictures of meta/train.txt ("train") or meta/test.txt ("val"), with labels.txt's names of the classes.

    Read from `root`/food-101, or unpacked there from `root`/food-101.tar.gz, which is downloaded if it is missing; not
    without `fetch`.  Raises InputError if something is damaged, or missing without a network.
    """
    root = root.parent if root.name == ARCHIVE.top else root
    base = find_folders(root, "", [ARCHIVE], fetch) / ARCHIVE.top
    meta = base / "meta"
    classes, names = read_lines(meta / "classes.txt"), read_lines(meta / "labels.txt")
    if len(names) != len(classes) or len(set(classes)) < len(classes):
        what = f"has {len(names)} names for the {len(classes)} classes of classes.txt"
        raise InputError(f"{meta / 'labels.txt'}: {what}, which must differ; unpack {ARCHIVE.name} again")
    pairs = sorted(zip(classes, names, strict=True))  # the order of torchvision
    label_of = {name: label for label, (name, _) in enumerate(pairs)}
    paths, labels = [], []
    for number, line in enumerate(read_lines(meta / _LISTS[split]), 1):
        name, _, image = line.partition("/")
        if name not in label_of or not image or "/" in image:
            what = f"line {number} is not CLASS/IMAGE with a class of classes.txt: {line[:60]!r}"
            raise InputError(f"{meta / _LISTS[split]}: {what}; unpack {ARCHIVE.name} again")
        paths.append(base / "images" / name / f"{image}.jpg")
        labels.append(label_of[name])
    if not paths:
        raise InputError(f"{meta / _LISTS[split]}: is empty; unpack {ARCHIVE.name} again")
    classes, names = map(list, zip(*pairs, strict=True))
    return Source(tuple(classes), require_images(paths), np.array(labels, np.int64), tuple(names))
