"""Tar files that are read in place: every format, and every kind of damage."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.sources.imagenet import ilsvrc
from data_prep.sources.source import read_image_file
from data_prep.write_beton import main
from tests.helpers.imagenet import WNIDS, add_member
from tests.helpers.write_command import single_stderr_line


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_format_can_be_read(format: int, tmp_path: Path) -> None:
    """Folders are ignored; names may be long, and not ASCII where the format allows it."""
    folder = "x" * 90
    name = f"{folder}/{'y' * 90}.JPEG" if format == tarfile.USTAR_FORMAT else f"{folder}/{'ü' * 150}.JPEG"
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w", format=format) as archive:
        directory = tarfile.TarInfo(folder)
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        add_member(archive, name, b"one")
        add_member(archive, "short.JPEG", b"two" * 1000)
    tar = tmp_path / "train.tar"
    with tarfile.open(tar, "w", format=format) as archive:
        add_member(archive, "n1.tar", inner.getvalue())
    source = ilsvrc(tar)
    images = {source.describe(i): read_image_file(source.images[i]) for i in range(2)}  # type: ignore[arg-type]
    assert images == {f"{tar}: {name}": b"one", f"{tar}: short.JPEG": b"two" * 1000}


# Each function damages train.tar, and returns the file and the reason that the message must name.


def truncated(imagenet: Path) -> tuple[str, str]:
    os.truncate(imagenet / "train.tar", (imagenet / "train.tar").stat().st_size // 2)
    return "train.tar", "is truncated"


def without_end_marker(imagenet: Path) -> tuple[str, str]:
    content = (imagenet / "train.tar").read_bytes().rstrip(b"\0")
    (imagenet / "train.tar").write_bytes(content + bytes(-len(content) % 512))
    return "train.tar", "is truncated"


def flipped_bit(imagenet: Path) -> tuple[str, str]:
    content = bytearray((imagenet / "train.tar").read_bytes())
    content[512 + 3] ^= 1  # in the first header of the first class's tar
    (imagenet / "train.tar").write_bytes(content)
    return f"{WNIDS[2]}.tar", "is not a tar file"


def not_a_tar(imagenet: Path) -> tuple[str, str]:
    (imagenet / "train.tar").write_bytes(b"<html>" * 200)
    return "train.tar", "is not a tar file"


def missing(imagenet: Path) -> tuple[str, str]:
    (imagenet / "train.tar").unlink()
    return "train.tar", "No such file"


def other_files(imagenet: Path) -> tuple[str, str]:
    with tarfile.open(imagenet / "train.tar", "w") as archive:
        add_member(archive, "readme.txt", b"hello")
    return "readme.txt", "neither the tar of a class nor a validation image"


def link(imagenet: Path) -> tuple[str, str]:
    with tarfile.open(imagenet / "train.tar", "w") as archive:
        info = tarfile.TarInfo("n1.tar")
        info.type, info.linkname = tarfile.SYMTYPE, "elsewhere"
        archive.addfile(info)
    return "n1.tar", "is a link"


def pipe(imagenet: Path) -> tuple[str, str]:
    (imagenet / "train.tar").unlink()
    os.mkfifo(imagenet / "train.tar")
    return "train.tar", "is not a regular file"


def empty_class(imagenet: Path) -> tuple[str, str]:
    with tarfile.open(imagenet / "train.tar", "w") as archive:
        add_member(archive, "n1.tar", bytes(10240))
    return "n1.tar", "contains no images"


@pytest.mark.parametrize(
    "damage",
    [truncated, without_end_marker, flipped_bit, not_a_tar, missing, other_files, link, pipe, empty_class],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_tar_is_named_in_one_line(
    damage: Callable[[Path], tuple[str, str]], imagenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    name, reason = damage(imagenet)
    assert main(["ilsvrc", str(imagenet / "train.tar"), "--out", str(imagenet / "out" / "x.beton")]) == 1
    message = single_stderr_line(capsys)
    assert name in message and reason in message
    assert not (imagenet / "out").exists()
