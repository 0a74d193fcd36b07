"""ImageNet from its tar files, its devkit, and Kaggle's files."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from data_prep.sources.imagenet import ilsvrc, kaggle, read_devkit
from data_prep.sources.matlab import read_struct_array
from data_prep.sources.source import InputError, read_image_file
from tests.helpers.imagenet import META, NAMES, NUMBERS, WNIDS, write_devkit
from tests.helpers.write_command import write_beton
from vit.data.dataset_manifest import read_dataset_manifest


def test_tars_kaggles_files_and_folders_give_the_same_beton(imagenet: Path) -> None:
    """Byte for byte; the tar is read in place, and the manifests contain readable class names."""
    folder = imagenet / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / "train"
    before = sorted(imagenet.rglob("*"))
    options = ["--devkit", imagenet / "devkit.tar.gz"]
    from_tar = write_beton(imagenet / "out" / "tar.beton", "ilsvrc", imagenet / "train.tar", *options)
    new = [from_tar.parent, from_tar, from_tar.with_name("tar.beton.json")]
    assert sorted(imagenet.rglob("*")) == sorted([*before, *new])
    from_kaggle = write_beton(imagenet / "kaggle.beton", "kaggle", imagenet / "kaggle", "--split", "train")
    from_folder = write_beton(imagenet / "folder.beton", "imagefolder", folder)
    assert from_tar.read_bytes() == from_kaggle.read_bytes() == from_folder.read_bytes()
    assert read_dataset_manifest(from_tar).classes == list(WNIDS)
    assert read_dataset_manifest(from_tar).names == read_dataset_manifest(from_kaggle).names == list(NAMES)
    assert read_dataset_manifest(from_folder).names is None


def test_validation_labels_come_from_the_devkit(imagenet: Path) -> None:
    """They are assigned by image name, whatever the order in the tar, and agree with Kaggle's table."""
    source = ilsvrc(imagenet / "val.tar", imagenet / "devkit.tar.gz")
    other = kaggle(imagenet / "kaggle", "val")
    assert source.classes == other.classes == WNIDS
    assert source.names == other.names == NAMES
    assert source.labels.tolist() == other.labels.tolist() == [0, 0, 1, 1, 2, 2]
    names = [source.describe(i).rpartition("_")[2] for i in range(6)]
    assert names == [f"{number:08}.JPEG" for number in (1, 4, 2, 5, 3, 6)]
    for one, two in zip(source.images, other.images, strict=True):
        assert not isinstance(one, np.ndarray) and not isinstance(two, np.ndarray)
        assert read_image_file(one) == read_image_file(two)
    assert list(source.images[1:3]) == [source.images[1], source.images[2]]


def test_the_devkits_classes_are_the_synsets_without_children(imagenet: Path) -> None:
    """As scipy.io.loadmat and torchvision read them."""
    ids, ground_truth = read_devkit(imagenet / "devkit.tar.gz")
    assert ids == {number: (wnid, name) for number, wnid, name in zip(NUMBERS, WNIDS, NAMES, strict=True)}
    assert ground_truth == [2, 3, 1, 2, 3, 1]
    synsets = read_struct_array(META, "synsets")
    assert synsets["words"][3] == "entité"
    assert [values.tolist() for values in synsets["children"]] == [[], [], [], [1, 2]]


def test_a_damaged_mat_file_raises_only_value_errors() -> None:
    """Each byte wrong, or the file truncated there: a ValueError or a value, but no other exception."""
    rng = np.random.default_rng(0)
    for position in range(126, len(META)):
        for content in (META[:position], META[:position] + rng.bytes(1) + META[position + 1 :]):
            with contextlib.suppress(ValueError):
                read_struct_array(content, "synsets")
    with pytest.raises(ValueError, match="no struct array other"):
        read_struct_array(META, "other")


def test_validation_images_without_matching_labels_are_refused(imagenet: Path) -> None:
    """The devkit is not given, damaged, or for other images."""
    val, devkit = imagenet / "val.tar", imagenet / "devkit.tar.gz"
    with pytest.raises(InputError, match="add --devkit"):
        ilsvrc(val)
    for content in (b"no gzip", devkit.read_bytes()[:-40]):
        (imagenet / "other.tar.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"other\.tar\.gz: cannot be read"):
            ilsvrc(val, imagenet / "other.tar.gz")
    for ground_truth, message in (
        (b"1\n2\n", "has labels for 2"),
        (b"1\n2\n3\n1\n2\n9\n", "class 9"),
        (b"1\ncat\n", "'cat'"),
    ):
        write_devkit(devkit, META, ground_truth)
        with pytest.raises(InputError, match=message):
            ilsvrc(val, devkit)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("LOC_synset_mapping.txt", "n01440764\n", "line 1"),
        ("LOC_synset_mapping.txt", "", "is empty"),
        ("LOC_synset_mapping.txt", "n01440764 tench\n", "class n02012849 is missing in .*LOC_synset_mapping.txt"),
        ("LOC_synset_mapping.txt", None, "No such file"),
    ],
)
def test_kaggles_list_of_classes_must_match_its_folders(
    file: str, content: str | None, message: str, imagenet: Path
) -> None:
    """Otherwise training and validation could number the classes differently."""
    path = imagenet / "kaggle" / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=message):
        kaggle(imagenet / "kaggle", "train")


def test_a_class_without_a_folder_is_named(imagenet: Path) -> None:
    """LOC_synset_mapping.txt lists a class whose training images are missing."""
    with (imagenet / "kaggle" / "LOC_synset_mapping.txt").open("a") as file:
        file.write("n09999999 unknown\n")
    with pytest.raises(InputError, match=r"LOC_synset_mapping\.txt: class n09999999 is missing in .*train"):
        kaggle(imagenet / "kaggle", "train")


def test_a_damaged_table_of_kaggles_labels_is_refused(imagenet: Path) -> None:
    """It contains an unknown class, or is another file."""
    path = imagenet / "kaggle" / "LOC_val_solution.csv"
    for content, message in (
        ("ImageId,PredictionString\na,n9 1 2 3 4\n", "line 2"),
        ("hello\n", "does not start with"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            kaggle(imagenet / "kaggle", "val")
