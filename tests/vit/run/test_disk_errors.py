"""Reads that fail for a while, and what ENOENT means."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.waiting import wait_for
from vit.run.disk_errors import explained, is_missing, naming, read_if_exists, retry_reads
from vit.run.folder import RunFolder


def test_a_supervisor_waits_until_the_ledger_can_be_read_again(run: RunFolder) -> None:
    """A file server that does not respond for a moment does not end the job."""
    run.record("started", step=0)
    aside = run.path / "aside"
    run.ledger.rename(aside)
    run.ledger.symlink_to(run.ledger.name)  # ELOOP
    found: list[object] = []
    patient = RunFolder(run.path, patience=60)
    reader = threading.Thread(target=lambda: found.append(patient.last("started")))
    reader.start()
    with pytest.raises(OSError, match="ledger"):
        run.events()
    run.ledger.unlink()
    aside.rename(run.ledger)
    reader.join(30)
    wait_for(lambda: found, "the event", 1)


def test_a_read_that_keeps_failing_raises_its_error(tmp_path: Path) -> None:
    """After the time that was given."""
    tries = []

    def read() -> None:
        tries.append(time.monotonic())
        raise TimeoutError(110, "Connection timed out", "data")

    with pytest.raises(TimeoutError, match="'data'"):
        retry_reads(read, 0.6)
    assert len(tries) > 1


def test_a_file_is_missing_only_if_its_folder_does_not_list_it(tmp_path: Path) -> None:
    """Also if several of its folders are absent."""
    (tmp_path / "a").touch()
    assert not is_missing(tmp_path / "a")
    assert is_missing(tmp_path / "b")
    assert is_missing(tmp_path / "b" / "c" / "d")


def test_a_file_in_a_folder_that_was_just_created_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As checkpoints/ of a run whose folder appears while somebody looks for it."""
    file, listdir = tmp_path / "run" / "checkpoints", os.listdir

    def create_then_list(folder: Path) -> list[str]:
        try:
            return listdir(folder)
        except FileNotFoundError:
            folder.mkdir()
            raise

    monkeypatch.setattr(os, "listdir", create_then_list)
    assert read_if_exists(file, lambda: listdir(file)) is None and file.parent.is_dir()


def test_a_file_that_is_created_while_it_is_read_is_no_error(tmp_path: Path) -> None:
    """As a ledger that another process begins; a file that stays unreadable although it is listed is one."""
    file = tmp_path / "ledger"

    def read_while_it_is_created() -> str:
        if not file.exists():
            file.write_text("first line")
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return file.read_text()

    def never() -> str:
        raise FileNotFoundError(2, "No such file or directory", str(file))

    assert read_if_exists(file, file.read_text) is None
    assert read_if_exists(file, read_while_it_is_created) == "first line"
    with pytest.raises(FileNotFoundError, match="ledger"):
        read_if_exists(file, never)


def test_an_error_gets_the_name_of_its_file_if_it_has_none(tmp_path: Path) -> None:
    """As those of read and flock."""
    with pytest.raises(OSError, match=r"Errno 116\] Stale file handle: '.*/a'"), naming(tmp_path / "a"):
        raise OSError(116, "Stale file handle")
    with pytest.raises(OSError, match=r"No such device: '.*/a'"), naming(tmp_path / "a"):
        raise OSError("No such device")  # as a library in Rust, without a number
    with pytest.raises(FileNotFoundError, match="'b'"), naming(tmp_path / "a"):
        raise FileNotFoundError(2, "No such file or directory", "b")


def test_an_error_is_explained_in_one_line_with_what_to_do(tmp_path: Path) -> None:
    """The file, what happened, and an advice, which may be the command's own."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory") as caught:
        (tmp_path / "file" / "below").mkdir()
    assert (
        explained(caught.value) == f"{tmp_path}/file/below: Not a directory; a part of the path is a file, not a folder"
    )
    assert explained(caught.value, "use --out") == f"{tmp_path}/file/below: Not a directory; use --out"
    full = OSError(errno.ENOSPC, "No space left on device")
    assert explained(full) == "No space left on device; the disk is full: remove files, or use another one"
    assert explained(OSError("text alone")) == "text alone"
    assert explained(ValueError("another error")) == "another error"
