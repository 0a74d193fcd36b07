"""What rank 0 does for a long time without a step is shown: on its terminal, in its log, and from outside."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.paths import CHECKOUT
from tests.helpers.waiting import wait_for
from vit.run import activity as activities
from vit.run.activity import activity, activity_file, publish_activity, read_activity


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder, in which this process tells what it does."""
    monkeypatch.setattr(activities, "_files", [])
    monkeypatch.setattr(activities, "SHOW_AFTER_SECONDS", 0.05)
    monkeypatch.setattr(activities, "FILE_SECONDS", 0.0)
    monkeypatch.setattr(activities, "TERMINAL_SECONDS", 0.05)
    publish_activity(tmp_path)
    return tmp_path


def test_other_commands_see_how_far_a_copy_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While it lasts.  A log gets a line at its beginning, and not one each second."""
    with activity("copying data sets to /tmp", total=8_000_000_000) as show_progress:
        show_progress(2_000_000_000)
        line = "copying data sets to /tmp: 2.0 of 8.0 GB, "
        wait_for(lambda: read_activity(folder).startswith(line), "the file says it")
        assert " left" in read_activity(folder)
        assert read_activity(folder, since=time.time() + 1) == "", "of an earlier attempt"
        time.sleep(0.2)
    assert read_activity(folder) == ""
    assert list(folder.iterdir()) == []
    assert capsys.readouterr().out.count(line) == 1


def test_what_a_killed_attempt_did_is_forgotten(folder: Path) -> None:
    """After some time, and as soon as the next attempt begins."""
    with activity("compiling"):
        wait_for(lambda: read_activity(folder), "the file says it")
        told = activity_file(folder).read_text()
    now = f'"time": {time.time()}'
    long_ago = f'"time": {time.time() - 1000}'
    activity_file(folder).write_text(f'{{"what": "compiling", "since": 0, "done": 0, "total": 0, {long_ago}}}')
    assert read_activity(folder) == ""
    activity_file(folder).write_text(f'{{"what": "compiling", "since": 0, "done": 0, "total": 0, {now}}}')
    assert read_activity(folder).startswith("compiling: ")
    publish_activity(folder)
    assert read_activity(folder) == ""
    assert '"compiling"' in told


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"what": 1, "time": "x", "since": 0}', "\xff"])
def test_a_file_that_another_version_wrote_is_ignored(folder: Path, content: str) -> None:
    activity_file(folder).write_text(content, encoding="latin-1")
    assert read_activity(folder) == ""


def test_a_full_disk_ends_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does a folder that was removed: the progress is still printed."""
    folder.rmdir()
    with activity("compiling"):
        time.sleep(0.1)
    assert capsys.readouterr().out == "compiling\n"


PROGRAM = """
import sys, time
from pathlib import Path
from vit.run import activity
activity.publish_activity(Path(sys.argv[1]))
activity.SHOW_AFTER_SECONDS, activity.TERMINAL_SECONDS = 0.01, 0.1
with activity.activity("compiling"):
    time.sleep(1.2)
"""


def test_the_line_on_a_terminal_counts_the_seconds_and_disappears(tmp_path: Path) -> None:
    """It is replaced each second, and nothing of it is left at the end."""
    reader, writer = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=CHECKOUT, stdout=writer, stderr=writer):
        os.close(writer)
        shown = b""
        try:
            while chunk := os.read(reader, 1000):
                shown += chunk
        except OSError:  # the program has ended
            pass
    os.close(reader)
    lines = shown.decode().split("\r\x1b[K")
    assert lines[0] == lines[-1] == ""
    assert {"compiling", "compiling: 1 s"} == set(lines[1:-1])


def test_commands_that_print_results_for_programs_show_no_activity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as `vit.evaluate --json`, which may read its data into memory too."""
    monkeypatch.setattr(activities, "_files", [])
    monkeypatch.setattr(activities, "SHOW_AFTER_SECONDS", 0.01)
    with activity("reading val.beton into memory", total=10):
        time.sleep(0.1)
    assert capsys.readouterr().out == ""
