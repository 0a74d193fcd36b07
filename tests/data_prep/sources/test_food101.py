"""Food-101, from its archive or unpacked."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Food101

from data_prep.sources.food101 import ARCHIVE, food101
from data_prep.sources.source import InputError
from tests.helpers.image_files import save_bytes
from tests.helpers.published_data import food_files, write_tar
from tests.helpers.write_command import write_beton
from vit.data.dataset_manifest import read_dataset_manifest


@pytest.mark.parametrize(("split", "theirs"), [("train", "train"), ("val", "test")])
def test_food_has_torchvisions_classes_labels_and_pixels(split: str, theirs: str, tmp_path: Path) -> None:
    """The archive is unpacked once; class names come from labels.txt, whatever the order of its lines."""
    files = food_files()
    for name in ("classes", "labels"):
        lines = files[f"food-101/meta/{name}.txt"].split(b"\n")
        files[f"food-101/meta/{name}.txt"] = b"\n".join(lines[::-1])
    write_tar(tmp_path / "food-101.tar.gz", files, "w:gz")
    source = food101(split, tmp_path)
    (tmp_path / "food-101.tar.gz").unlink()
    dataset = Food101(str(tmp_path), theirs)
    assert list(source.classes) == dataset.classes == ["apple_pie", "baby_back_ribs", "waffles"]
    assert source.names == ("Apple pie", "Baby back ribs", "Waffles")
    ours = {source.describe(i): label for i, label in enumerate(source.labels.tolist())}
    assert ours == {str(path): label for path, label in zip(dataset._image_files, dataset._labels, strict=True)}
    for path in ours:
        expected = next(dataset[i][0] for i, each in enumerate(dataset._image_files) if str(each) == path)
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert food101(split, tmp_path / "food-101").images == source.images
    assert (ARCHIVE.url, ARCHIVE.md5) == (Food101._URL, Food101._MD5)


def test_food_is_written_with_readable_class_names(tmp_path: Path) -> None:
    """They are in the manifest."""
    write_tar(tmp_path / "food-101.tar.gz", food_files(), "w:gz")
    manifest = read_dataset_manifest(
        write_beton(tmp_path / "x.beton", "food101", "--split", "train", "--root", tmp_path)
    )
    assert manifest.classes == ["apple_pie", "baby_back_ribs", "waffles"]
    assert manifest.names == ["Apple pie", "Baby back ribs", "Waffles"]
    assert manifest.histogram == [2, 2, 2]


def test_damaged_or_missing_files_of_food_are_named(tmp_path: Path) -> None:
    """An archive that is cut or another one, missing pictures, and lists that do not fit together."""
    archive = write_tar(tmp_path / "food-101.tar.gz", food_files(), "w:gz")
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"food-101\.tar\.gz: is damaged"):
        food101("train", tmp_path)
    write_tar(archive, {"other/x": b""}, "w:gz")
    with pytest.raises(InputError, match="contains no folder food-101"):
        food101("train", tmp_path)
    assert not (tmp_path / "food-101").exists()
    for name, content in food_files().items():
        save_bytes(tmp_path / name, content)
    meta = tmp_path / "food-101" / "meta"
    for file, content, message in (
        ("train.txt", b"apple_pie/100\npizza/1", "line 2 is not CLASS/IMAGE"),
        ("train.txt", b"apple_pie/101", r"apple_pie/101\.jpg: is missing"),
        ("train.txt", b"", "is empty"),
        ("labels.txt", b"Apple pie", "has 1 names for the 3 classes"),
        ("classes.txt", None, "cannot be read"),
    ):
        before = (meta / file).read_bytes()
        (meta / file).unlink() if content is None else (meta / file).write_bytes(content)
        with pytest.raises(InputError, match=message):
            food101("train", tmp_path)
        (meta / file).write_bytes(before)
