"""ImageNet's files as users repack them: the labels are right, or the command says what is wrong."""

import gzip
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.sources.imagenet import ilsvrc, kaggle
from data_prep.sources.source import InputError
from tests.helpers.image_files import encode_image, noise, save_bytes
from tests.helpers.imagenet import WNIDS, add_member
from tests.helpers.write_command import write_beton

PICTURE = encode_image(noise(4, 4))
JUNK = ("._n01440764.tar", ".DS_Store", "__MACOSX/._x.JPEG")


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08}.JPEG"


def wnid_of(number: int) -> str:
    """The class of a validation image of the miniature."""
    return WNIDS[(number - 1) % 3]


def repack_val(imagenet: Path, names: list[str]) -> Path:
    """Writes val.tar anew, with the content of each image under another name; of unknown images, a picture."""
    with tarfile.open(imagenet / "val.tar") as old:
        contents = {member.name: old.extractfile(member).read() for member in old}  # type: ignore[union-attr]
    with tarfile.open(imagenet / "val.tar", "w") as new:
        for name in names:
            add_member(new, name, contents.get(Path(name).name, PICTURE))
    return imagenet / "val.tar"


def in_class_folders(number: int) -> str:
    return f"./val/{wnid_of(number)}/{val_name(number)}"


def in_numbered_folders(number: int) -> str:
    return f"{9 - number}/{val_name(number)}"


@pytest.mark.parametrize("place", [in_class_folders, in_numbered_folders])
def test_a_repacked_validation_tar_gives_the_same_beton(place: Callable[[int], str], imagenet: Path) -> None:
    """Labels go by the number in the name, wherever the file lies; hidden files are left out, and counted."""
    options = ["--devkit", imagenet / "devkit.tar.gz"]
    before = write_beton(imagenet / "before.beton", "ilsvrc", imagenet / "val.tar", *options)
    tar = repack_val(imagenet, [*JUNK, *map(place, range(1, 7))])
    after = write_beton(imagenet / "after.beton", "ilsvrc", tar, *options)
    assert before.read_bytes() == after.read_bytes()
    assert ilsvrc(tar, imagenet / "devkit.tar.gz").ignored.counts == {"hidden or system files and folders": 3}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([*map(val_name, (1, 2, 3, 4, 5, 8))], "val_00000008.JPEG has no label"),
        ([*map(val_name, (1, 2, 3, 4, 6))], "val_00000005 is missing"),
        ([*map(val_name, (1, 2, 3, 4))], "val_00000005 and 1 others are missing"),
        ([*map(val_name, (1, 2, 3, 4, 5, 5))], "val_00000005 twice"),
        ([*map(val_name, (1, 2, 3, 4, 5, 6)), "more/" + val_name(5)], "val_00000005 twice, as .* and"),
        ([*map(in_class_folders, (1, 2, 3, 4, 5)), f"{WNIDS[0]}/{val_name(6)}"], f"{WNIDS[0]}/.*6.JPEG is in the fold"),
        ([*map(val_name, (1, 2, 3, 4, 5)), "6.JPEG"], "6.JPEG is neither the tar of a class nor a validation"),
    ],
)
def test_validation_images_that_are_not_1_to_n_once_each_are_refused(
    names: list[str], message: str, imagenet: Path
) -> None:
    """The first that is missing, doubled, unknown or in the folder of another class is named."""
    with pytest.raises(InputError, match=message):
        ilsvrc(repack_val(imagenet, names), imagenet / "devkit.tar.gz")


def test_kaggles_validation_images_may_lie_in_class_folders(imagenet: Path) -> None:
    """As scripts in wide use move them.  The samples are the same, and a wrong folder is named."""
    folder = imagenet / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    before = write_beton(imagenet / "before.beton", "kaggle", imagenet / "kaggle", "--split", "val")
    save_bytes(folder / ".ipynb_checkpoints" / val_name(1), PICTURE)
    for number in range(1, 7):
        (folder / wnid_of(number)).mkdir(exist_ok=True)
        (folder / val_name(number)).rename(folder / wnid_of(number) / val_name(number))
    after = write_beton(imagenet / "after.beton", "kaggle", imagenet / "kaggle", "--split", "val")
    assert before.read_bytes() == after.read_bytes()
    assert kaggle(imagenet / "kaggle", "val").ignored.counts == {"hidden or system files and folders": 1}
    (folder / WNIDS[0] / val_name(1)).rename(folder / WNIDS[1] / val_name(1))
    with pytest.raises(InputError, match=f"is in the folder of class {WNIDS[1]}, but by .*LOC_val_solution"):
        kaggle(imagenet / "kaggle", "val")


def missing_image(folder: Path, table: Path) -> str:
    (folder / val_name(3)).unlink()
    return "val_00000003 is missing"


def image_in_another_place_too(folder: Path, table: Path) -> str:
    save_bytes(folder / "copy" / val_name(3), PICTURE)
    return "val_00000003 twice"


def truncated_table(folder: Path, table: Path) -> str:
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    return "has no label in .*LOC_val_solution.csv, which has labels for 5"


def doubled_line(folder: Path, table: Path) -> str:
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[1]]))
    return "line 8 has .* a second time"


@pytest.mark.parametrize("damage", [missing_image, image_in_another_place_too, truncated_table, doubled_line])
def test_kaggles_validation_images_must_be_those_of_the_table(
    damage: Callable[[Path, Path], str], imagenet: Path
) -> None:
    """None is missing, none is there twice, and each has a label."""
    folder = imagenet / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    message = damage(folder, imagenet / "kaggle" / "LOC_val_solution.csv")
    with pytest.raises(InputError, match=message):
        kaggle(imagenet / "kaggle", "val")


def make_train_tar(path: Path, files: list[str]) -> Path:
    """A training tar with one class, and with hidden files."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        for name in files:
            add_member(archive, name, b"text" if name.endswith(".txt") else PICTURE)
    with tarfile.open(path, "w") as archive:
        for name in JUNK:
            add_member(archive, name, b"junk")
        add_member(archive, f"{WNIDS[0]}.tar", inner.getvalue())
    return path


def test_hidden_files_in_a_training_tar_are_left_out(tmp_path: Path) -> None:
    """In the tar and in the tars of the classes; so are files that are not images."""
    source = ilsvrc(make_train_tar(tmp_path / "train.tar", ["a.JPEG", "._a.JPEG", "picture", "notes.txt"]))
    assert [source.describe(i).rpartition(" ")[2] for i in range(len(source.images))] == ["a.JPEG", "picture"]
    assert source.ignored.counts == {"hidden or system files and folders": 4, "files that are not images": 1}


def test_an_image_that_is_twice_in_the_tar_of_a_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{WNIDS[0]}\.tar contains a\.JPEG twice"):
        ilsvrc(make_train_tar(tmp_path / "train.tar", ["a.JPEG", "b.JPEG", "a.JPEG"]))


def test_a_compressed_tar_is_called_compressed(imagenet: Path) -> None:
    """It cannot be read in place."""
    content = (imagenet / "train.tar").read_bytes()
    (imagenet / "train.tar").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"train\.tar: is compressed with gzip, .*; decompress it first"):
        ilsvrc(imagenet / "train.tar")


@pytest.mark.parametrize("devkit", [False, True])
def test_a_tar_of_class_folders_is_told_how_to_be_written(devkit: bool, imagenet: Path) -> None:
    """It is not mistaken for the validation images."""
    folder = imagenet / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / "train"
    shutil.make_archive(str(imagenet / "flat"), "tar", folder)
    with pytest.raises(
        InputError, match=r"nor a validation image .* or unpack a tar of class folders and write it as imagefolder"
    ):
        ilsvrc(imagenet / "flat.tar", imagenet / "devkit.tar.gz" if devkit else None)
