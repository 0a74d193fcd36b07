"""Folders of images: all pictures are taken, with the right labels, and what is left out is counted and named."""

import os
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from torchvision.datasets import ImageFolder

from data_prep.sources.folders import image_folder
from data_prep.sources.recognize import CAMERA_RAW
from data_prep.sources.source import InputError, read_image_file
from data_prep.write_beton import main
from tests.helpers.image_files import encode_image, noise, save_bytes, save_image
from tests.helpers.write_command import single_stderr_line

PICTURE = noise(4, 4)
OTHER_FILES = {"notes.txt": b"cat", "video.mpg": b"\0\0\1\xb3" + bytes(99), "data.bin": b"\x0c\0\0\0" + bytes(99)}
OTHER_FILES |= {"paper.pdf": b"%PDF-1.4", "empty": b""}


def paths_below(folder: Path) -> list[str]:
    """The images that a source of `folder` lists, relative to it."""
    return [os.path.relpath(str(image), folder) for image in image_folder(folder).images]


def test_the_order_is_torchvisions(tmp_path: Path) -> None:
    """For nested folders, upper case, names that are not UTF-8, and links to files and folders."""
    elsewhere = save_image(tmp_path / "elsewhere" / "1.png", PICTURE).parent
    root = tmp_path / "root"
    for name in ("b/x/1.PNG", "b/x-1/2.png", "b/x/y/3.jpg", "b/9.png", "a/ü.png", "a/z.jpeg", "Z/\udcff/\udcfe.png"):
        save_image(root / name, PICTURE)
    (root / "c").symlink_to(elsewhere)
    (root / "a" / "more").symlink_to(shutil.copytree(elsewhere, tmp_path / "other"))
    (root / "a" / "link.png").symlink_to(elsewhere / "1.png")
    source, expected = image_folder(root), ImageFolder(str(root))
    assert source.classes == tuple(expected.classes)
    assert list(zip(source.images, source.labels.tolist(), strict=True)) == expected.samples
    assert len(source.images) == 10 and source.ignored.counts == {}


def test_pictures_are_recognized_by_their_content(tmp_path: Path) -> None:
    """Whatever the name is; files of another kind are counted, and named."""
    kinds = {"x.jpg": "JPEG", "x.gif": "GIF", "x.avif": "AVIF", "x.jp2": "JPEG2000", "x.jfif": "JPEG", "x.jpe": "JPEG"}
    kinds |= {"x": "PNG", "x.jpg?w=9": "JPEG", "x.data": "TIFF", "x.tga": "TGA"}
    for name, kind in kinds.items():
        save_bytes(tmp_path / "cat" / name, encode_image(PICTURE, kind))
    for name, content in OTHER_FILES.items():
        save_bytes(tmp_path / "cat" / name, content)
    source = image_folder(tmp_path)
    assert paths_below(tmp_path) == [f"cat/{name}" for name in sorted(kinds)]
    assert source.ignored.counts == {"files that are not images": len(OTHER_FILES)}
    examples = source.ignored.examples["files that are not images"]
    assert len(set(examples)) == 3 and set(examples) <= {f"cat/{name}" for name in OTHER_FILES}
    assert source.random_subset(1, 2, 0).ignored is source.ignored


def test_a_damaged_image_is_not_taken_for_junk(tmp_path: Path) -> None:
    """A name that ends as an image's is listed, so that --on-bad decides, also for formats that Pillow lacks."""
    for name in ("empty.jpg", "phone.HEIC"):
        save_bytes(tmp_path / "cat" / name, b"")
    assert paths_below(tmp_path) == ["cat/empty.jpg", "cat/phone.HEIC"]


def test_the_preview_in_a_cameras_raw_file_is_not_taken_for_the_picture(tmp_path: Path) -> None:
    """A DNG is a TIFF by its content, whose first picture is a small preview."""
    save_image(tmp_path / "cat" / "1.png", noise(8, 8))
    save_image(tmp_path / "cat" / "2.tif", noise(8, 8)).rename(tmp_path / "cat" / "2.DNG")
    source = image_folder(tmp_path)
    assert len(source.images) == 1
    assert source.ignored.counts == {CAMERA_RAW: 1}


def test_hidden_and_system_files_are_not_trained_on(tmp_path: Path) -> None:
    """In the root, where they would shift the labels, and in the folders of classes, where they are duplicates."""
    names = (".ipynb_checkpoints", ".Trash-1000", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "Thumbs.db")
    for place in (tmp_path, tmp_path / "cat"):
        for name in names:
            save_image(place / name / "x.png", PICTURE)
        for name in ("._x.jpg", ".DS_Store", "desktop.ini"):
            save_bytes(place / name, encode_image(PICTURE))
    save_image(tmp_path / "cat" / "x.png", PICTURE)
    save_image(tmp_path / "lost.png", PICTURE)
    source = image_folder(tmp_path)
    assert source.classes == ("cat",) and paths_below(tmp_path) == ["cat/x.png"]
    assert source.ignored.counts == {
        "hidden or system files and folders": 20,
        "files that are not in the folder of a class": 1,
    }
    assert source.ignored.examples["files that are not in the folder of a class"] == ("lost.png",)
    assert len(source.ignored.examples["hidden or system files and folders"]) == 3


def test_each_real_folder_is_read_once(tmp_path: Path) -> None:
    """A folder that links to itself, to what contains it, or twice to another folder."""
    root = tmp_path / "root"
    for number in range(3):
        save_image(root / "cat" / "sub" / f"{number}.png", PICTURE)
    save_image(tmp_path / "outside" / "y.png", PICTURE)
    for name, target in {"self": "cat", "up": "", "out": "..", "a": "cat/sub", "b": "../outside", "c": "b"}.items():
        (root / "cat" / name).symlink_to(root / target if name != "c" else root / "cat" / "b")
    source = image_folder(root)
    assert sorted(map(os.path.realpath, map(str, source.images))) == [
        str(tmp_path / "outside" / "y.png"),
        *(str(root / "cat" / "sub" / f"{number}.png") for number in range(3)),
    ]
    assert source.ignored.counts == {"links to folders that are read already": 5}


@pytest.mark.parametrize("link", ["puppy", "cat/dogs"])
def test_a_folder_in_two_classes_is_refused(link: str, tmp_path: Path) -> None:
    """Its images would have two labels."""
    for name in ("cat", "dog"):
        save_image(tmp_path / name / "x.png", PICTURE)
    (tmp_path / link).symlink_to(tmp_path / "dog")
    with pytest.raises(InputError, match=r"is the same folder as .*; remove one"):
        image_folder(tmp_path)


@pytest.mark.parametrize("link", ["dog", "cat/more", "cat/x.png"])
def test_a_link_to_nothing_is_named(link: str, tmp_path: Path) -> None:
    """It may lead to images on a disk that is not mounted: without it, images would be missing, or labels shift."""
    save_image(tmp_path / "cat" / "y.png", PICTURE)
    (tmp_path / link).symlink_to("/nowhere/images")
    with pytest.raises(InputError, match=rf"{link}: is a link to /nowhere/images, which does not exist"):
        image_folder(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    """Its images would vanish from the data set, also with --on-bad skip."""
    for folder in (tmp_path, *tmp_path.parents):
        if (mode := folder.stat().st_mode) & 0o055 != 0o055:
            folder.chmod(mode | 0o055)
    for name in ("cat/x.png", "cat/secret/y.png"):
        save_image(tmp_path / name, PICTURE)
    (tmp_path / "cat" / "secret").chmod(0)
    child = os.fork()
    if not child:
        code = 8
        try:
            os.setuid(65534)
            image_folder(tmp_path)
        except InputError as error:
            code = 7 if "cat/secret: cannot be read (Permission denied)" in str(error) else 9
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_pipes_and_sockets_are_not_opened(tmp_path: Path) -> None:
    """Opening a pipe would wait forever."""
    save_image(tmp_path / "cat" / "x.png", PICTURE)
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    os.mkfifo(tmp_path / "cat" / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        source = image_folder(tmp_path)
    assert paths_below(tmp_path) == ["cat/x.png"]
    assert source.ignored.counts == {"pipes, sockets and devices": 3}


def test_a_pipe_in_place_of_a_listed_image_is_a_bad_image(tmp_path: Path) -> None:
    """It does not stop the worker that reads it."""
    os.mkfifo(tmp_path / "x.jpg")
    reasons: list[str] = []

    def read() -> None:
        with pytest.raises(InputError) as caught:
            read_image_file(str(tmp_path / "x.jpg"))
        reasons.append(str(caught.value))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(10)
    assert reasons == ["it is not a regular file"]


def test_a_class_of_junk_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also with --on-bad skip: the number of classes is part of the model."""
    save_image(tmp_path / "cat" / "x.png", PICTURE)
    save_bytes(tmp_path / "dog" / "notes.txt", b"dog")
    arguments = ["imagefolder", str(tmp_path), "--on-bad", "skip", "--out", str(tmp_path / "x.beton")]
    assert main(arguments) == 1
    assert "class dog has no images" in single_stderr_line(capsys)


def test_images_without_a_folder_of_their_class_are_no_classes(tmp_path: Path) -> None:
    """The message says which folder to give."""
    save_image(tmp_path / "x.png", PICTURE)
    with pytest.raises(InputError, match="has no subfolders; give the folder that has one subfolder per class"):
        image_folder(tmp_path)


def test_folders_are_told_apart_where_the_file_system_has_no_numbers_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems in user space give every folder the number 0."""
    for name in ("cat/a/x.png", "cat/b/x.png", "dog/x.png"):
        save_image(tmp_path / name, PICTURE)
    real = os.stat

    def unnumbered(path: str, **options: Any) -> os.stat_result:
        status = list(real(path, **options))
        status[1] = 0
        return os.stat_result(status)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", unnumbered)
        found = paths_below(tmp_path)
    assert found == ["cat/a/x.png", "cat/b/x.png", "dog/x.png"]
