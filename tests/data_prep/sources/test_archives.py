"""Archives of published data sets: missing ones, and unpacking that was killed or runs twice at once."""

import multiprocessing
import os
import shutil
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from torchvision.datasets import utils

from data_prep.sources.archives import find_folders
from data_prep.sources.food101 import ARCHIVE, food101
from data_prep.write_beton import main
from tests.helpers.image_files import encode_image, smooth
from tests.helpers.published_data import cifar_files, food_files, pets_files, write_pets_archives, write_tar
from tests.helpers.write_command import single_stderr_line


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests to other machines go to a port that nobody serves."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of the first request


@pytest.mark.parametrize(
    ("source", "archive"),
    [
        ("oxford-pets", "images.tar.gz"),
        ("food101", "food-101.tar.gz"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
    ],
)
def test_without_a_network_one_line_says_which_file_to_put_where(
    source: str, archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the address from which it can be downloaded elsewhere."""
    assert main([source, "--split", "val", "--root", str(tmp_path), "--out", str(tmp_path / "x.beton")]) == 1
    message = single_stderr_line(capsys)
    assert f"error: {tmp_path}: {archive} " in message and " missing, and the download failed (" in message
    assert "refused" in message and f"/{archive} " in message
    assert (
        f" elsewhere, copy {'them' if source == 'oxford-pets' else 'it'} into {tmp_path}, and run the same" in message
    )


class CountingHandler(SimpleHTTPRequestHandler):
    """Counts the downloads that it serves."""

    downloads = 0

    def do_GET(self) -> None:
        CountingHandler.downloads += 1
        super().do_GET()


def test_a_missing_archive_is_downloaded_once(tmp_path: Path) -> None:
    """Also by commands for both splits at a time; an archive with another digest is an error."""
    here = write_tar(tmp_path / "web" / ARCHIVE.name, food_files(), "w:gz")
    handler = partial(CountingHandler, directory=str(here.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        local = ARCHIVE._replace(
            url=f"http://127.0.0.1:{server.server_port}/{here.name}", md5=utils.calculate_md5(str(here))
        )
        with ThreadPoolExecutor(4) as commands:
            bases = list(commands.map(find_folders, [tmp_path / "data"] * 4, [""] * 4, [[local]] * 4, [True] * 4))
        assert (bases[0] / "food-101" / "meta" / "train.txt").is_file()
        assert CountingHandler.downloads == 1
        with pytest.raises(
            ValueError, match=r"the download failed \(the file has the MD5 checksum \w+, not 0+, and was"
        ):
            find_folders(tmp_path / "other", "", [local._replace(md5="0" * 32)], True)
        assert not list((tmp_path / "other").iterdir())
        server.shutdown()


def test_unpacking_that_was_killed_is_repeated(tmp_path: Path) -> None:
    """Its folder appears only when it is complete, and what it left behind is removed."""
    write_tar(tmp_path / "food-101.tar.gz", food_files(), "w:gz")
    left = tmp_path / ".food-101.tar.gz.unpacking" / "food-101" / "images"
    left.mkdir(parents=True)
    assert len(food101("train", tmp_path).labels) == 6
    assert not left.parent.parent.exists()


def test_two_commands_can_unpack_the_same_archive(tmp_path: Path) -> None:
    """Those for the training and the validation set, started at once: both succeed."""
    write_pets_archives(tmp_path, pets_files())
    context = multiprocessing.get_context("fork")

    def run(split: str) -> None:
        os._exit(
            main(["oxford-pets", "--split", split, "--root", str(tmp_path), "--out", str(tmp_path / f"{split}.beton")])
        )

    processes = [context.Process(target=run, args=(split,)) for split in ("train", "val")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_finished_file_does_not_need_its_source_any_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command again neither downloads nor unpacks a data set that was deleted, only to compare it."""
    write_tar(tmp_path / "food-101.tar.gz", food_files(), "w:gz")
    write_tar(tmp_path / "cifar-10-python.tar.gz", cifar_files("cifar10"), "w:gz")
    write_tar(tmp_path / "shards" / "a.tar", {"x.jpg": encode_image(smooth(9, 9)), "x.cls": b"0"})
    food = ["food101", "--split", "val", "--root", str(tmp_path), "--out", str(tmp_path / "food.beton")]
    cifar = ["cifar10", "--split", "val", "--root", str(tmp_path), "--out", str(tmp_path / "cifar.beton")]
    shards = ["webdataset", str(tmp_path / "shards"), "--out", str(tmp_path / "shards.beton")]
    for arguments in (food, cifar, shards):
        assert main(arguments) == 0
        assert main(arguments) == 0
        assert capsys.readouterr().out.endswith(f"already written: {arguments[-1]}\n")
    shutil.rmtree(tmp_path / "food-101")
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    (tmp_path / "shards" / "a.tar").unlink()
    for arguments in (food, cifar, shards):
        assert main(arguments) == 0
        assert "its images were not compared" in capsys.readouterr().out
    assert not (tmp_path / "food-101").exists()
