"""What the command does if the images have changed since its file was written, or since it was killed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep import journal
from data_prep.journal import resumable_fraction
from data_prep.publish import temporary_path
from data_prep.sources.fingerprint import take_fingerprint
from data_prep.sources.source import Source
from data_prep.write_beton import main
from tests.helpers.image_files import image_folder, save_image, smooth
from tests.helpers.imagenet import make_imagenet
from tests.helpers.write_command import single_stderr_line
from vit.data.dataset_manifest import manifest_path, read_dataset_manifest


def added(folder: Path) -> str:
    save_image(folder / "cat" / "new.png", smooth(20, 20))
    return f"class cat has 4 images instead of 3 ({folder}/cat/new.png is new)"


def several_added(folder: Path) -> str:
    for i in range(3):
        save_image(folder / "dog" / f"new{i}.png", smooth(20, 20))
    return "its images have changed: class dog has 6 images instead of 3"


def removed(folder: Path) -> str:
    (folder / "dog" / "3.png").unlink()
    return "class dog has 2 images instead of 3"


def moved_to_another_class(folder: Path) -> str:
    (folder / "cat" / "2.png").rename(folder / "dog" / "2.png")
    return f"class cat has 2 images instead of 3, class dog has 4 images instead of 3 ({folder}/dog/2.png is new)"


def exchanged_between_classes(folder: Path) -> str:
    for old, new in (("cat/2.png", "x.png"), ("dog/3.png", "cat/2.png"), ("x.png", "dog/3.png")):
        (folder / old).rename(folder / new)
    return "class cat has images of other names or sizes, class dog has images of other names or sizes"


def renamed(folder: Path) -> str:
    (folder / "cat" / "2.png").rename(folder / "cat" / "two.png")
    return "class cat has images of other names"


def replaced_by_one_of_the_same_size(folder: Path) -> str:
    stat = (folder / "cat" / "2.png").stat()
    os.utime(folder / "cat" / "2.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    return "other modification times, with the same names and sizes, in 1 of 2 classes, the first is cat"


def class_added(folder: Path) -> str:
    save_image(folder / "bee" / "new.png", smooth(20, 20))
    return "its classes have changed: bee is new"


def class_renamed(folder: Path) -> str:
    (folder / "dog").rename(folder / "wolf")
    return "its classes have changed: wolf is new"


CHANGES = [
    *(added, several_added, removed, moved_to_another_class, exchanged_between_classes, renamed),
    *(replaced_by_one_of_the_same_size, class_added, class_renamed),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_complete_file_of_other_images_is_not_taken_for_written(
    change: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what has changed and what to do; --force writes the images as they are now."""
    folder, out = image_folder(tmp_path / "images"), tmp_path / "train.beton"
    arguments = ["imagefolder", str(folder), "--out", str(out), "--workers", "1"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert capsys.readouterr().out.endswith(f"already written: {out}\n")
    message = change(folder)
    assert main(arguments) == 1
    line = single_stderr_line(capsys)
    assert message in line
    assert line.endswith("; replace it with --force, or give another --out\n")
    assert main([*arguments, "--force"]) == 0
    assert main(arguments) == 0


def test_a_copy_of_the_images_without_their_times_can_be_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --ignore-times, names and sizes decide; other changes are still found."""
    folder, out = image_folder(tmp_path / "images"), tmp_path / "train.beton"
    arguments = ["imagefolder", str(folder), "--out", str(out), "--workers", "1"]
    assert main(arguments) == 0
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    assert main(arguments) == 1
    assert "if they are the same images, for example a copy of them, add --ignore-times" in capsys.readouterr().err
    assert main([*arguments, "--ignore-times"]) == 0
    message = added(folder)
    capsys.readouterr()
    assert main([*arguments, "--ignore-times"]) == 1
    assert message in single_stderr_line(capsys)


def test_another_tar_of_the_same_name_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its images, or only its time."""
    make_imagenet(tmp_path)
    tar, out = tmp_path / "train.tar", tmp_path / "train.beton"
    arguments = ["ilsvrc", str(tar), "--out", str(out), "--workers", "1"]
    assert main(arguments) == 0
    os.utime(tar)
    assert main(arguments) == 1
    assert "in 3 of 3 classes" in single_stderr_line(capsys)
    assert main([*arguments, "--ignore-times"]) == 0
    tar.unlink()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "(its images were not compared: " in capsys.readouterr().out


def test_a_class_that_has_lost_its_images_is_not_taken_for_a_source_that_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command fails and names the class; if the whole folder is gone, the complete file is accepted."""
    folder, out = image_folder(tmp_path / "images"), tmp_path / "train.beton"
    arguments = ["imagefolder", str(folder), "--out", str(out), "--workers", "1"]
    assert main(arguments) == 0
    for path in (folder / "dog").iterdir():
        path.unlink()
    capsys.readouterr()
    assert main(arguments) == 1
    assert "dog" in single_stderr_line(capsys)
    shutil.rmtree(folder)
    assert main(arguments) == 0
    assert f"already written: {out} (its images were not compared: {folder}: no such" in capsys.readouterr().out


def test_a_manifest_without_a_fingerprint_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An older version wrote it: the images cannot be compared, and a line says so."""
    folder, out = image_folder(tmp_path / "images"), tmp_path / "train.beton"
    arguments = ["imagefolder", str(folder), "--out", str(out), "--workers", "1"]
    assert main(arguments) == 0
    path = manifest_path(out)
    lines = path.read_text()
    start = lines.index(',\n "fingerprint"')
    end = lines.index("\n }", start) + 3
    path.write_text(lines[:start] + lines[end:])
    assert read_dataset_manifest(out, training=False).fingerprint is None
    added(folder)
    assert main(arguments) == 0
    assert "were not compared: an older version wrote it" in capsys.readouterr().out


@pytest.mark.parametrize("replaced", ["first", "last done", "not done"])
def test_images_replaced_after_a_kill_are_read_again(
    replaced: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command resumes before the first of them, and the file is the same as without the kill."""
    monkeypatch.setattr(journal, "INTERVAL", 0)
    folder, out = image_folder(tmp_path / "images", images=100), tmp_path / "train.beton"
    bad = folder / "dog" / "199.png"
    good_content = bad.read_bytes()
    bad.write_bytes(b"")
    arguments = ["imagefolder", str(folder), "--no-shuffle", "--workers", "1", "--out", str(out)]
    assert main(arguments) == 1  # as if it was killed just before this image
    bad.write_bytes(good_content)
    images = sorted(folder.rglob("*.png"))
    done = round(200 * (resumable_fraction(temporary_path(out)) or 0))
    changed = images[{"first": 0, "last done": done - 1, "not done": 199}[replaced]]
    save_image(changed, 255 - np.asarray(smooth(20, 20)))
    capsys.readouterr()
    assert main(arguments) == 0
    message = capsys.readouterr().err
    assert ("the images have changed" in message) == (replaced != "not done")
    assert message.startswith("starting over") or replaced != "first"
    assert f"resuming after {done} of 200 images\n" in message or replaced != "not done"
    content = out.read_bytes()
    assert main([*arguments, "--force"]) == 0
    assert out.read_bytes() == content


def test_the_fingerprint_of_a_million_images_is_small_and_does_not_depend_on_how_the_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has four numbers for each class; `images`, `./images` and `/data/images` are the same."""
    folder = image_folder(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    found = []
    for root in (str(folder), "images", "./images"):
        images = [f"{root}/{path.relative_to(folder)}" for path in sorted(folder.rglob("*.png"))]
        found.append(take_fingerprint(Source(("cat", "dog"), images, np.array([0, 0, 0, 1, 1, 1]))))
    assert found[0].by_class == found[1].by_class == found[2].by_class
    assert found[0].list_digest == found[1].list_digest == found[2].list_digest
    assert all(len(column) == 2 for column in found[0].by_class.values())
    assert found[0].by_class["images"] == [3, 3]
