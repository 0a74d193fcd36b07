"""A download continues where it was interrupted, and a file with its final name is complete and has its checksum."""

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from data_prep.sources import archives
from data_prep.sources.download import DownloadError, download, unfinished_file
from data_prep.sources.oxford_pets import ARCHIVES, FOLDER
from data_prep.sources.source import InputError
from tests.helpers.broken_server import BrokenServer, broken_server
from tests.helpers.paths import CHECKOUT
from tests.helpers.photographs import write_pets
from tests.helpers.waiting import wait_for

CONTENT = os.urandom(1_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrokenServer]:
    """A server of a file of a megabyte."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.tar.gz").write_bytes(CONTENT)
    with broken_server(tmp_path / "web") as running:
        yield running


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_made_again_for_the_rest(
    ranges: bool, server: BrokenServer, tmp_path: Path
) -> None:
    """The bytes that came are kept; from a server that cannot send the rest, the next connection starts over."""
    server.limit, server.ranges = 400_000, ranges
    path = tmp_path / "a.tar.gz"
    fetch = partial(download, f"{server.url}/a.tar.gz", path, MD5, pause_seconds=0.0)
    if not ranges:
        with pytest.raises(DownloadError, match=r"the connection ended after 400,000 of 1,000,000 bytes"):
            fetch()
        assert not path.exists() and unfinished_file(path).stat().st_size == 400_000
        server.limit = None
    fetch()
    assert path.read_bytes() == CONTENT and not unfinished_file(path).exists()
    starts = [start for _, start in server.requests]
    assert starts == [0, 400_000, 800_000] if ranges else set(starts) == {0}


@pytest.mark.parametrize("done", [0, 1, 999_999, 1_000_000])
def test_what_a_killed_command_has_left_is_completed(done: int, server: BrokenServer, tmp_path: Path) -> None:
    """Also if only the renaming is missing."""
    path = tmp_path / "a.tar.gz"
    unfinished_file(path).write_bytes(CONTENT[:done])
    download(f"{server.url}/a.tar.gz", path, MD5)
    assert path.read_bytes() == CONTENT and server.requests == [("a.tar.gz", done)]


def test_a_command_that_was_killed_in_the_middle_of_a_download_continues(server: BrokenServer, tmp_path: Path) -> None:
    """By SIGKILL, as soon as half of the file has come."""
    path = tmp_path / "a.tar.gz"
    server.pause_at = 500_000
    call = f"download({f'{server.url}/a.tar.gz'!r}, Path({str(path)!r}), {MD5!r})"
    script = f"from pathlib import Path; from data_prep.sources.download import download; {call}"
    with subprocess.Popen([sys.executable, "-c", script], cwd=CHECKOUT, stderr=subprocess.DEVNULL) as process:
        left = unfinished_file(path)
        wait_for(lambda: left.exists() and left.stat().st_size >= 500_000, "half of the file")
        process.kill()
    assert left.stat().st_size == 500_000 and not path.exists()
    server.pause_at = None
    server.go_on.set()
    download(f"{server.url}/a.tar.gz", path, MD5)
    assert path.read_bytes() == CONTENT and server.requests[-1] == ("a.tar.gz", 500_000)


@pytest.mark.parametrize("left", [b"another file", CONTENT + b"more"], ids=["another file", "more"])
def test_a_file_with_another_checksum_is_removed(left: bytes, server: BrokenServer, tmp_path: Path) -> None:
    """So that the next command starts over."""
    path = tmp_path / "a.tar.gz"
    unfinished_file(path).write_bytes(left)
    with pytest.raises(DownloadError, match=rf"has the MD5 checksum \w+, not {MD5}, and was removed"):
        download(f"{server.url}/a.tar.gz", path, MD5)
    assert not path.exists() and not unfinished_file(path).exists()
    download(f"{server.url}/a.tar.gz", path, MD5)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 1)])
def test_a_server_that_refuses_is_reported_at_once(
    status: int, requests: int, server: BrokenServer, tmp_path: Path
) -> None:
    """With its answer, and nothing is left behind."""
    server.status = status
    with pytest.raises(DownloadError, match=rf"^the server answers {status} "):
        download(f"{server.url}/a.tar.gz", tmp_path / "a.tar.gz", MD5, pause_seconds=0.0)
    assert len(server.requests) == requests and [path.name for path in tmp_path.iterdir()] == ["web"]


def test_the_message_names_all_files_their_addresses_and_the_folder(server: BrokenServer, tmp_path: Path) -> None:
    """And says what the same command continues with; those that are there already are not named."""
    write_pets(tmp_path / "web")
    local = [
        each._replace(
            url=f"{server.url}/{each.name}", md5=hashlib.md5((tmp_path / "web" / each.name).read_bytes()).hexdigest()
        )
        for each in ARCHIVES
    ]
    server.status = 503
    root = tmp_path / "data"
    with pytest.raises(InputError) as caught:
        archives.find_folders(root, FOLDER, local, fetch=True)
    assert str(caught.value) == (
        f"{root}: images.tar.gz and annotations.tar.gz are missing, and the download failed (the server answers 503 "
        "Service Unavailable); run the same command again; without a network, download "
        f"{server.url}/images.tar.gz and {server.url}/annotations.tar.gz elsewhere, copy them into {root}, and run the "
        "same command again; if you have them already, give the --root that contains them"
    )
    (root / "annotations.tar.gz").write_bytes((tmp_path / "web" / "annotations.tar.gz").read_bytes())
    unfinished_file(root / "images.tar.gz").write_bytes(b"x" * 3_000_000)
    server.status = 404
    with pytest.raises(InputError, match=r": images\.tar\.gz is missing, .* which continues after the 3 MB in .* it "):
        archives.find_folders(root, FOLDER, local, fetch=True)
    unfinished_file(root / "images.tar.gz").unlink()
    server.status = 200
    assert (archives.find_folders(root, FOLDER, local, fetch=True) / "images" / "Abyssinian_1.jpg").is_file()


def test_a_disk_that_is_full_is_named_and_the_download_continues(
    server: BrokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for a network that is missing."""
    archive = ARCHIVES[0]._replace(url=f"{server.url}/a.tar.gz", md5=MD5)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("data_prep.sources.download._copy", full)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); make .* free disk space"):
            archives.find_archive(tmp_path, archive, fetch=True)
    assert archives.find_archive(tmp_path, archive, fetch=True).read_bytes() == CONTENT
