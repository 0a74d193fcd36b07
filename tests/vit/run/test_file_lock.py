"""File locks: who holds one is said even if its owner has not written its name yet."""

import threading
import time
from pathlib import Path

import pytest

from vit.run.file_lock import try_lock
from vit.run.folder import InUseError, RunFolder


@pytest.mark.parametrize("before", ["", "process 1 on the-last-owner\n"])
def test_a_refused_command_names_the_owner_that_has_just_taken_the_lock(tmp_path: Path, before: str) -> None:
    """Between taking the lock and writing the name, the file is empty or holds the name of an earlier owner."""
    (tmp_path / "owner").write_text(before)
    with (tmp_path / "owner").open("a+") as file:
        assert try_lock(file.fileno())

        def write_name() -> None:
            time.sleep(0.05)
            file.truncate(0)
            file.write("process 2 on here\n")
            file.flush()

        owner = threading.Thread(target=write_name)
        owner.start()
        with pytest.raises(InUseError, match=r"in use by process 2 on here$"), RunFolder(tmp_path).owned():
            pass
        owner.join()


def test_an_owner_without_a_name_is_another_process(tmp_path: Path) -> None:
    with (tmp_path / "owner").open("a+") as file:
        assert try_lock(file.fileno())
        with pytest.raises(InUseError, match=r"in use by another process$"), RunFolder(tmp_path).owned():
            pass
