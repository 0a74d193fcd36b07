"""The properties of every source, random subsets, and folders of images."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.sources.folders import image_folder
from data_prep.sources.imagenet import ilsvrc
from data_prep.sources.source import InputError, Source
from tests.helpers.image_files import noise, save_image
from tests.helpers.imagenet import NAMES, WNIDS


def test_a_source_needs_one_label_per_image() -> None:
    with pytest.raises(InputError, match="2 images but 1 labels"):
        Source(("a",), ["x", "y"], np.zeros(1, np.int64))


def test_classes_of_folders_are_numbered_as_in_torchvision(tmp_path: Path) -> None:
    """By the sorted names of the folders, upper case first; other files are ignored."""
    for name in ("b", "a", "Z"):
        save_image(tmp_path / name / "x" / "1.PNG", noise(4, 4))
    (tmp_path / "readme.txt").touch()
    (tmp_path / "a" / "readme.txt").touch()
    source = image_folder(tmp_path)
    assert source.classes == ("Z", "a", "b")
    assert source.labels.tolist() == [0, 1, 2]
    assert source.images[1] == str(tmp_path / "a" / "x" / "1.PNG")


def test_a_subset_has_the_same_classes_in_training_and_validation(imagenet: Path) -> None:
    """The seed chooses them; each class keeps its name and has as many images as were asked for."""
    train = ilsvrc(imagenet / "train.tar", imagenet / "devkit.tar.gz")
    val = ilsvrc(imagenet / "val.tar", imagenet / "devkit.tar.gz")
    choices = set()
    for seed in range(8):
        subset = train.random_subset(2, 3, seed)
        assert subset.classes == val.random_subset(2, None, seed).classes == train.random_subset(2, None, seed).classes
        assert subset.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert [dict(zip(WNIDS, NAMES, strict=True))[wnid] for wnid in subset.classes] == list(subset.names)
        for i, label in enumerate(subset.labels):
            assert subset.classes[label] in subset.describe(i)
        choices.add((subset.classes, tuple(subset.describe(i) for i in range(6))))
    assert len(choices) > 3
    with pytest.raises(InputError, match="only 3 classes"):
        train.random_subset(4, None, 0)
    with pytest.raises(InputError, match="n01440764 has only 2 images"):
        val.random_subset(None, 3, 0)
