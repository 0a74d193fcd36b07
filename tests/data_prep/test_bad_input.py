"""Images, labels and options that cannot be used: what the command says, and what it leaves on disk."""

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.beton_reader import read_beton_index
from data_prep.encode import is_bad_image
from data_prep.recipe import Recipe
from data_prep.sources.source import InputError, Source
from data_prep.write_beton import main, write
from tests.helpers.image_files import encode_image, image_folder, noise, save_image, smooth
from tests.helpers.imagenet import WNIDS
from tests.helpers.write_command import file_names, single_stderr_line
from vit.data.dataset_manifest import read_dataset_manifest


def not_an_image(folder: Path) -> str:
    (folder / "cat" / "notes.jpg").write_text("meow")
    return "cat/notes.jpg"


def truncated(folder: Path) -> str:
    path = save_image(folder / "dog" / "half.jpg", noise(64, 64))
    path.write_bytes(path.read_bytes()[:2000])
    return "dog/half.jpg"


def empty_file(folder: Path) -> str:
    (folder / "dog" / "empty.png").touch()
    return "dog/empty.png"


def dangling_link(folder: Path) -> str:
    (folder / "dog" / "gone.png").symlink_to(folder / "nowhere")
    return "dog/gone.png"


def thirty_two_bits(folder: Path) -> str:
    save_image(folder / "dog" / "deep.tif", np.zeros((8, 8), np.int32))
    return "dog/deep.tif"


def empty_class(folder: Path) -> str:
    (folder / "zebra").mkdir()
    return "zebra"


def no_classes(folder: Path) -> str:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    return str(folder)


def no_folder(folder: Path) -> str:
    folder.rename(folder.with_name("moved"))
    return f"{folder}: no such folder"


@pytest.mark.parametrize(
    "damage",
    [not_an_image, truncated, empty_file, dangling_link, thirty_two_bits, empty_class, no_classes, no_folder],
    ids=lambda damage: damage.__name__,
)
def test_an_unreadable_image_or_class_is_named_in_one_line(
    damage: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 1, there is no traceback, and no partial file is left."""
    folder = image_folder(tmp_path / "images")
    name = damage(folder)
    out = tmp_path / "out" / "train.beton"
    out.parent.mkdir()
    assert main(["imagefolder", str(folder), "--out", str(out), "--workers", "2"]) == 1
    assert name in single_stderr_line(capsys)
    assert file_names(out.parent) == set()


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_class_is_refused(label: int, tmp_path: Path) -> None:
    """FFCV would train with it."""
    source = Source(("a", "b"), [noise(4, 4)] * 4, np.array([0, 1, label, 0]))
    with pytest.raises(InputError, match=f"sample 2 has label {label}, which is not in 0 to 1"):
        write(source, tmp_path / "out.beton", Recipe(source="here"), 1)
    assert file_names(tmp_path) == set()


@pytest.mark.parametrize(
    "options",
    [
        ["--max-resolution", "0"],
        ["--max-resolution", "5000"],
        ["--quality", "0"],
        ["--quality", "101"],
        ["--workers", "0"],
        ["--limit", "0"],
        ["--seed", "-1"],
        ["--mode", "smart"],
        ["--compress-probability", "1.5"],
        ["--subset", "0"],
        ["--per-class", "0"],
        ["--on-bad", "ignore"],
    ],
    ids="=".join,
)
def test_an_option_out_of_range_is_a_usage_error(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2, before anything is read; the message names the option and the value."""
    with pytest.raises(SystemExit) as exit_info:
        main(["imagefolder", str(tmp_path), "--out", str(tmp_path / "out.beton"), *options])
    assert exit_info.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert options[0].removeprefix("--") in message
    assert options[1] in message


def test_bad_images_are_left_out_and_listed_with_on_bad_skip(
    imagenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Empty, truncated, text: the file contains the other images with their labels, and the manifest lists the bad."""
    folder = imagenet / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / "train"
    bad = {"a-empty": b"", "b-truncated": encode_image(smooth(60, 60))[:-300], "c-text": b"hello"}
    for name, content in bad.items():
        (folder / WNIDS[1] / f"{name}.JPEG").write_bytes(content)
    out = imagenet / "x.beton"
    arguments = ["imagefolder", str(folder), "--out", str(out)]
    assert main(arguments) == 1
    assert "--on-bad skip" in capsys.readouterr().err
    digests = set()
    for workers in (1, 3):
        assert main([*arguments, "--on-bad", "skip", "--workers", str(workers), "--force"]) == 0
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1
    assert "3 images left out" in capsys.readouterr().out
    manifest = read_dataset_manifest(out)
    assert {Path(each["image"]).stem: each["why"] for each in manifest.left_out}.keys() == bad.keys()
    assert "the file is empty" in {each["why"] for each in manifest.left_out}
    assert manifest.histogram == [8, 8, 8]
    index = read_beton_index(out, 3)
    assert len(index) == manifest.samples == 24
    assert np.bincount(index.labels).tolist() == [8, 8, 8]
    assert main(arguments) == 1  # without --on-bad skip, a file without these images is not the one asked for
    assert "without 3 bad images" in capsys.readouterr().err
    for path in folder.rglob("*.JPEG"):
        path.write_bytes(b"")
    assert main([*arguments, "--on-bad", "skip", "--force"]) == 1
    assert "none of the images can be used" in capsys.readouterr().err
    assert read_dataset_manifest(out) == manifest


@pytest.mark.parametrize("unreadable", ["/proc/self/mem", "/proc/self"])
@pytest.mark.parametrize("on_bad", ["fail", "skip"])
def test_no_message_about_a_disk_advises_to_leave_the_image_out(unreadable: str, on_bad: str, tmp_path: Path) -> None:
    """The image may be good, and --on-bad skip does not leave it out.  These give an I/O error, and are a folder."""
    source = Source(("a",), [noise(4, 4), unreadable], np.zeros(2, np.int64))
    with pytest.raises(InputError, match=f"{unreadable}: cannot be used: .*; the image may be good: ") as caught:
        write(source, tmp_path / "out.beton", Recipe(source="here", on_bad=on_bad, shuffle=False), 1)
    assert "--on-bad" not in str(caught.value)


def test_a_class_emptied_by_skip_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the summary and in the manifest; the other classes keep their labels."""
    folder, out = image_folder(tmp_path / "images"), tmp_path / "out.beton"
    for path in (folder / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    assert main(["imagefolder", str(folder), "--out", str(out), "--on-bad", "skip", "--workers", "1"]) == 0
    assert "no samples in 1 of the classes, which training never sees: cat\n" in capsys.readouterr().out
    manifest = read_dataset_manifest(out)
    assert (manifest.classes, manifest.histogram, manifest.empty_classes) == (["cat", "dog"], [0, 3], ["cat"])
    assert read_beton_index(out, 2).labels.tolist() == [1, 1, 1]


def test_an_io_error_does_not_count_as_a_bad_image() -> None:
    """--on-bad skip must not leave out images because a network file system or memory failed."""
    for error in (OSError(errno.EIO, "x"), OSError(errno.ESTALE, "x"), OSError(errno.EACCES, "x"), MemoryError()):
        assert not is_bad_image(error)
    for bad in (
        OSError("image file is truncated"),
        FileNotFoundError(errno.ENOENT, "x"),
        InputError("x"),
        ValueError(),
    ):
        assert is_bad_image(bad)
