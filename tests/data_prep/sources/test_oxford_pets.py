"""The Oxford-IIIT Pet data set, from its archives or unpacked."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from data_prep.sources.oxford_pets import ARCHIVES, oxford_pets
from data_prep.sources.source import InputError, read_image_file
from tests.helpers.image_files import save_bytes
from tests.helpers.published_data import pets_files, write_pets_archives
from tests.helpers.write_command import write_beton
from vit.data.dataset_manifest import read_dataset_manifest


@pytest.mark.parametrize(("split", "theirs"), [("train", "trainval"), ("val", "test")])
@pytest.mark.parametrize("where", ["root", "torchvision's folder", "unpacked"])
def test_pets_have_torchvisions_classes_labels_and_pixels(split: str, theirs: str, where: str, tmp_path: Path) -> None:
    """Wherever the archives are, and with a .jpg that is a PNG or a GIF; breeds, and cats against dogs."""
    if where == "unpacked":
        for name, content in pets_files().items():
            save_bytes(tmp_path / "oxford-iiit-pet" / name, content)
    else:
        write_pets_archives(tmp_path if where == "root" else tmp_path / "oxford-iiit-pet", pets_files())
    source = oxford_pets(split, tmp_path)
    breeds = OxfordIIITPet(str(tmp_path), theirs)
    assert list(source.classes) == breeds.classes == ["Abyssinian", "American Bulldog", "Bengal"]
    assert source.labels.tolist() == [breeds[i][1] for i in range(len(breeds))]
    for image, (expected, _) in zip(source.images, breeds, strict=True):
        assert isinstance(image, str)
        with Image.open(io.BytesIO(read_image_file(image))) as opened:
            np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), np.asarray(expected))
    species = oxford_pets(split, tmp_path / "oxford-iiit-pet", "species")  # the folder itself is found too
    binary = OxfordIIITPet(str(tmp_path), theirs, target_types="binary-category")
    assert list(species.classes) == binary.bin_classes == ["Cat", "Dog"]
    assert species.labels.tolist() == [binary[i][1] for i in range(len(binary))]
    assert not list(tmp_path.rglob(".*unpacking*"))
    assert {(each.url, each.md5) for each in ARCHIVES} == set(OxfordIIITPet._RESOURCES)


def test_pets_are_written_with_the_same_classes_in_both_splits(tmp_path: Path) -> None:
    """Also if the test list lacks a breed; the target is in the manifest."""
    files = pets_files()
    files["annotations/test.txt"] = files["annotations/test.txt"].splitlines(keepends=True)[2]
    write_pets_archives(tmp_path, files)
    train = write_beton(tmp_path / "t.beton", "oxford-pets", "--split", "train", "--root", tmp_path)
    val = write_beton(tmp_path / "v.beton", "oxford-pets", "--split", "val", "--root", tmp_path)
    assert read_dataset_manifest(train).classes == read_dataset_manifest(val).classes
    assert read_dataset_manifest(train).histogram == [2, 2, 2]
    assert read_dataset_manifest(val, training=False).histogram == [0, 0, 1]
    assert read_dataset_manifest(train).source == "oxford-pets train, breed"


def test_damaged_or_missing_files_of_pets_are_named(tmp_path: Path) -> None:
    """An archive that is cut, a picture that is missing, and lists that are not the original ones."""
    files = pets_files()
    write_pets_archives(tmp_path / "cut", files)
    for name in ("images", "annotations"):
        path = tmp_path / "cut" / f"{name}.tar.gz"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=rf"{name}\.tar\.gz: is damaged .*; download it again"):
            oxford_pets("train", tmp_path / "cut")
        path.write_bytes(b"<html>")
        with pytest.raises(InputError, match=rf"{name}\.tar\.gz: is damaged .*; download it again"):
            oxford_pets("train", tmp_path / "cut")
        path.write_bytes(whole)
    assert len(oxford_pets("train", tmp_path / "cut").labels) == 6
    folder = tmp_path / "oxford-iiit-pet"
    for name, content in files.items():
        save_bytes(folder / name, content)
    (folder / "images" / "Bengal_2.jpg").unlink()
    with pytest.raises(InputError, match=r"images/Bengal_2\.jpg: is missing"):
        oxford_pets("train", tmp_path)
    (folder / "images" / "Bengal_2.jpg").write_bytes(b"")
    path = folder / "annotations" / "trainval.txt"
    for content, message in (
        (b"Abyssinian_1 0 1 1\n", "line 1 is not"),
        (b"Abyssinian_1 1 3 1\n", "line 1 is not"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "is empty"),
        (b"Abyssinian_1 1 1 1\nAbyssinian_2 2 1 1\n", "Abyssinian_2 has number 2|has number 2, which is"),
        (b"Abyssinian_1 5 1 1\n", "has number|are not 1 to"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            oxford_pets("train", tmp_path)
