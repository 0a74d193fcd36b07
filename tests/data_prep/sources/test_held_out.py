"""One folder of pictures becomes a training set and a validation set that share no picture."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from data_prep.sources.folders import held_out, image_folder
from data_prep.sources.source import InputError
from data_prep.write_beton import main
from tests.helpers.image_files import noise, save_image
from tests.helpers.write_command import single_stderr_line, write_beton
from vit.data.dataset_manifest import read_dataset_manifest


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    """A folder with this many pictures in each subfolder, some of them with names that are not UTF-8."""
    for name, count in counts.items():
        for i in range(count):
            save_image(root / name / (f"{i}.png" if i % 3 else f"{i}\udcff.png"), noise(4, 4, i))
    return root


def names(root: Path, split: str, percent: float = 20) -> list[str]:
    """The images of a split, relative to the folder."""
    return [os.path.relpath(str(image), root) for image in held_out(image_folder(root), root, split, percent).images]


def test_each_picture_is_in_one_of_the_two_sets(tmp_path: Path) -> None:
    """A fifth of each class is held out, at least one picture and never all of them."""
    root = make_folder(tmp_path / "photos", {"ant": 50, "bee": 7, "cat": 2})
    train, val = names(root, "train"), names(root, "val")
    assert sorted(train + val) == sorted(os.path.relpath(str(image), root) for image in image_folder(root).images)
    assert Counter(name.partition("/")[0] for name in val) == {"ant": 10, "bee": 1, "cat": 1}
    assert Counter(name.partition("/")[0] for name in names(root, "val", 99)) == {"ant": 49, "bee": 6, "cat": 1}
    assert set(names(root, "val", 10)) < set(val)
    source = held_out(image_folder(root), root, "train", 20)
    classes = [source.classes[label] for label in source.labels.tolist()]
    assert classes == [name.partition("/")[0] for name in train]


def test_the_choice_depends_on_the_names_alone(tmp_path: Path) -> None:
    """Not on the place of the folder or the order of its files; few pictures move when one is added."""
    root = make_folder(tmp_path / "photos", {"ant": 50, "bee": 50})
    val = names(root, "val")
    moved = Path(shutil.copytree(root, tmp_path / "elsewhere" / "copy"))
    assert names(moved, "val") == val
    save_image(moved / "ant" / "new.png", noise(4, 4))
    assert len(set(val) - set(names(moved, "val"))) <= 1


def test_a_class_with_a_single_picture_cannot_be_split(tmp_path: Path) -> None:
    """The message names it."""
    root = make_folder(tmp_path / "photos", {"ant": 3, "bee": 1})
    with pytest.raises(InputError, match="class bee has a single image, which cannot be in both sets; add images"):
        names(root, "val")


def test_both_sets_are_written_with_the_same_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest says which part it is; a file with another part is not taken for the same."""
    root = make_folder(tmp_path / "photos", {"ant": 10, "bee": 10})
    train = read_dataset_manifest(write_beton(tmp_path / "train.beton", "imagefolder", root, "--split", "train"))
    val = read_dataset_manifest(write_beton(tmp_path / "val.beton", "imagefolder", root, "--split", "val"))
    assert (train.classes, train.histogram, val.classes, val.histogram) == (
        ["ant", "bee"],
        [8, 8],
        ["ant", "bee"],
        [2, 2],
    )
    assert train.source == f"imagefolder {root}, train, 20 % held out"
    capsys.readouterr()
    words = ["imagefolder", str(root), "--out", str(tmp_path / "val.beton")]
    assert main([*words, "--split", "val"]) == 0 and "already written" in capsys.readouterr().out
    assert main([*words, "--split", "val", "--held-out", "30"]) == 1
    assert "val.beton: " in single_stderr_line(capsys)
    for percent in ("0", "100", "-3"):
        with pytest.raises(SystemExit):
            main([*words, "--split", "val", f"--held-out={percent}"])
        message = f"--held-out must be more than 0 and less than 100 percent, not {percent}"
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):  # not a file with all images, of which the user believes some are held out
        main([*words, "--held-out", "30"])
    assert "--held-out requires --split" in single_stderr_line(capsys)
