"""Fixtures of the tests of `data_prep`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import write_beton
from tests.helpers.disks import tmpfs_mounted
from tests.helpers.image_files import noise, save_image
from tests.helpers.imagenet import make_imagenet
from tests.helpers.stock_ffcv import StockFfcv
from tests.helpers.unfinished_file import Unfinished, make_unfinished_file


@pytest.fixture(scope="session")
def stock_ffcv() -> Iterator[StockFfcv]:
    """A process that reads files with FFCV's own Loader."""
    with StockFfcv() as process:
        yield process


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """A folder with a miniature of ILSVRC2012: train.tar, val.tar, devkit.tar.gz, and kaggle/."""
    make_imagenet(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Unfinished:
    """A file whose writing was killed after 308 of 400 images; its journal has a line for every 22."""
    return make_unfinished_file(tmp_path_factory.mktemp("unfinished"), tmp_path_factory.mktemp("finished"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 6 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with tmpfs_mounted(disk, "6m"):
        yield disk


@pytest.fixture(scope="session")
def intact_betons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with jpg.beton and raw.beton: 12 images in three classes, in pages of 16 KiB.

    Small pages make them a thousand times smaller than real files, so that checking one takes milliseconds.
    """
    folder = tmp_path_factory.mktemp("intact")
    for i in range(12):
        save_image(folder / "images" / "abc"[i % 3] / f"{i}.png", noise(50, 36 + i, i))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_beton, "MIB", 1024)
        for mode in ("jpg", "raw"):
            arguments = ["imagefolder", str(folder / "images"), "--max-resolution", "50", "--mode", mode]
            assert write_beton.main([*arguments, "--out", str(folder / f"{mode}.beton")]) == 0
    return folder


@pytest.fixture
def betons_to_damage(intact_betons: Path, tmp_path: Path) -> Path:
    """A folder with copies of jpg.beton and raw.beton, and of their manifests."""
    for path in intact_betons.glob("*.beton*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path
