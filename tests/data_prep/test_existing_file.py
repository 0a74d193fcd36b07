"""What the command does if its file exists already, or another command is writing it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import publish
from data_prep.publish import lock_unfinished_file
from data_prep.write_beton import main
from tests.helpers.image_files import image_folder
from tests.helpers.paths import CHECKOUT
from tests.helpers.write_command import single_stderr_line
from vit.data.dataset_manifest import read_dataset_manifest


def test_repeating_a_command_changes_nothing(tmp_path: Path) -> None:
    """A complete file of the same recipe is kept, with exit code 0, even if its images are gone."""
    out = tmp_path / "train.beton"
    arguments = ["imagefolder", str(image_folder(tmp_path / "images")), "--out", str(out)]
    assert main(arguments) == 0
    before = out.stat()
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    command = [sys.executable, "-m", "data_prep.write_beton", *arguments]
    again = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout, again.stderr) == (
        0,
        f"already written: {out} (its images were not compared: {tmp_path / 'images'}: no such folder)\n",
        "",
    )
    assert out.stat() == before


@pytest.mark.parametrize("damage", ["truncated", "manifest of another format", "another recipe"])
def test_a_different_file_is_replaced_only_with_force(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --force, it is kept and the message says why."""
    out, manifest = tmp_path / "train.beton", tmp_path / "train.beton.json"
    arguments = ["imagefolder", str(image_folder(tmp_path / "images")), "--out", str(out)]
    assert main(arguments) == 0
    if damage == "truncated":
        reason = "bytes instead of"
        os.truncate(out, out.stat().st_size - 24)
    elif damage == "manifest of another format":
        reason = "format 'vit-beton-0'"
        manifest.write_text('{"format": "vit-beton-0"}')
    else:
        reason = "quality 90, not 50"
        arguments += ["--quality", "50"]
    content = out.read_bytes()
    capsys.readouterr()
    assert main(arguments) == 1
    message = single_stderr_line(capsys)
    assert reason in message
    assert "--force" in message
    assert out.read_bytes() == content
    assert main([*arguments, "--force"]) == 0
    assert read_dataset_manifest(out).sha256 == hashlib.sha256(out.read_bytes()).hexdigest()


def test_two_commands_cannot_write_the_same_file_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one is refused, and the file of the first is unchanged."""
    out = tmp_path / "train.beton"
    folder = image_folder(tmp_path / "images")
    monkeypatch.setattr(publish, "_LOCK_TIMEOUT", 0.1)
    with lock_unfinished_file(out) as temporary:
        temporary.write_text("of the first command")
        assert main(["imagefolder", str(folder), "--out", str(out)]) == 1
        assert "another command is writing it" in single_stderr_line(capsys)
        assert temporary.read_text() == "of the first command"


def test_a_folder_as_output_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not after an hour of encoding."""
    assert main(["imagefolder", str(image_folder(tmp_path / "images")), "--out", str(tmp_path), "--force"]) == 1
    assert "is a folder" in single_stderr_line(capsys)
