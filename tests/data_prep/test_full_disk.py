"""A disk that fills up while a .beton is written."""

import os
import subprocess
from pathlib import Path

import pytest

from data_prep import journal
from data_prep.write_beton import main
from tests.helpers.image_files import image_folder, noise, save_bytes, save_image
from tests.helpers.write_command import are_same_files, file_names, single_stderr_line


def test_a_full_disk_is_reported_and_the_space_is_released(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no space for the first page: one line on stderr, exit code 1, and nothing is left."""
    folder = image_folder(small_disk.parent / "images")
    free = os.statvfs(small_disk).f_bfree
    assert main(["imagefolder", str(folder), "--out", str(small_disk / "train.beton")]) == 1
    assert "No space left on device" in single_stderr_line(capsys)
    assert file_names(small_disk) == set()
    assert os.statvfs(small_disk).f_bfree == free


def test_a_command_resumes_after_space_is_freed(
    small_disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether images, a journal line or the final table did not fit, the finished file has the same bytes."""
    monkeypatch.setattr(journal, "INTERVAL", 0)
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    folder = small_disk.parent / "images"
    expected, out = small_disk.parent / "a.beton", small_disk / "data" / "a.beton"
    image = save_image(small_disk.parent / "noise.png", noise(190, 180)).read_bytes()
    for i in range(200):
        save_bytes(folder / "ab"[i % 2] / f"{i:03}.png", image)
    arguments = ["imagefolder", str(folder), "--mode", "raw", "--workers", "2", "--out"]
    assert main([*arguments, str(expected)]) == 0
    ballast = small_disk / "ballast"
    for megabytes in (20, 18, 16.1, 15, 14, 12.5, 11.7, 9, 8.5):  # with the last two, the table does not fit
        ballast.write_bytes(bytes(int(megabytes * 2**20)))
        capsys.readouterr()
        assert main([*arguments, str(out)]) == 1
        message = capsys.readouterr().err.splitlines()[-1]
        assert "No space left on device" in message
        assert "to resume, run the same command again" in message
        assert not out.exists()
        ballast.unlink()
    assert "; 100% of the images are done" in message
    assert main([*arguments, str(out)]) == 0
    assert are_same_files(out, expected)
