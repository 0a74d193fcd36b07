"""Resuming an unfinished file: the result has the same bytes as if the command had never been killed."""

import dataclasses
import re
import shutil
import time
from pathlib import Path

import pytest

from data_prep import journal
from data_prep.sources import progress
from data_prep.sources.source import InputError
from data_prep.write_beton import main
from tests.helpers.image_files import image_folder
from tests.helpers.unfinished_file import Unfinished
from tests.helpers.write_command import are_same_files, file_names, single_stderr_line
from vit.data.dataset_manifest import read_dataset_manifest


def test_progress_counts_earlier_images_but_not_their_speed(
    unfinished: Unfinished, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that were done before count toward the total, but not toward images/s and the remaining time."""
    unfinished.copy_to(tmp_path)
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0)
    assert are_same_files(unfinished.resume_in(tmp_path), unfinished.finished)
    first, *_, last = [line for line in capsys.readouterr().err.splitlines() if "images" in line]
    assert first == "resuming after 308 of 400 images"
    assert last.startswith("400 of 400 images, ")
    assert last.endswith(", 0 s left")
    with progress.progress(1_000_000, initial=900_000) as advance:
        time.sleep(0.1)
        advance(100)
    done, rate, left = capsys.readouterr().err.split(", ")
    assert done == "900,100 of 1,000,000 images"
    speed = float(rate.removesuffix(" images/s").replace(",", ""))
    assert 0 < speed <= 1000
    assert float(left.removesuffix(" s left\n").replace(",", "")) == pytest.approx(99_900 / speed, rel=0.01)


def test_another_recipe_or_other_images_start_over(
    unfinished: Unfinished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says why, and nothing of the earlier file is used."""
    for name, changed, message in (
        ("seed", {"shuffle": True}, "the unfinished file has seed None, not 0"),
        ("mode", {"mode": "jpg"}, "the unfinished file has mode raw, not jpg"),
    ):
        unfinished.copy_to(tmp_path / name)
        resumed = unfinished.resume_in(tmp_path / name, **changed)
        assert f"starting over: {message}\n" in capsys.readouterr().err
        assert are_same_files(resumed, unfinished.resume_in(tmp_path / f"{name}-new", **changed))
        capsys.readouterr()
    unfinished.copy_to(tmp_path / "images")
    labels = unfinished.source.labels[::-1].copy()
    other = dataclasses.replace(unfinished, source=dataclasses.replace(unfinished.source, labels=labels))
    assert not are_same_files(other.resume_in(tmp_path / "images"), unfinished.finished)
    assert "starting over: the images have changed\n" in capsys.readouterr().err


def test_a_left_out_image_is_tried_again_without_on_bad_skip(unfinished: Unfinished, tmp_path: Path) -> None:
    """A file that was started with --on-bad skip and is resumed without it must not miss images silently."""
    unfinished.copy_to(tmp_path)
    with pytest.raises(InputError, match=r"/nowhere\.png") as error_info:
        unfinished.resume_in(tmp_path, on_bad="fail")
    assert error_info.value.__notes__ == ["60% of the images are done; to resume, run the same command again"]
    assert are_same_files(unfinished.resume_in(tmp_path, on_bad="skip"), unfinished.finished)


def test_a_left_out_image_is_recorded_once_after_several_kills(unfinished: Unfinished, tmp_path: Path) -> None:
    """The command is killed before that image, resumed, killed after it, and resumed."""
    unfinished.write_and_kill(tmp_path, 230)
    unfinished.write_and_kill(tmp_path, 300)
    assert are_same_files(unfinished.resume_in(tmp_path), unfinished.finished)
    assert [each["image"] for each in read_dataset_manifest(unfinished.finished).left_out] == ["/nowhere.png"]


def test_after_a_bad_image_is_replaced_the_others_are_not_encoded_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one of a million images cannot be decoded, the hour before it is not lost."""
    monkeypatch.setattr(journal, "INTERVAL", 0)
    folder, out = image_folder(tmp_path / "images", images=100), tmp_path / "train.beton"
    bad = folder / "dog" / "199.png"
    good_content = bad.read_bytes()
    bad.write_bytes(b"")
    arguments = ["imagefolder", str(folder), "--no-shuffle", "--workers", "1", "--out", str(out)]
    assert main(arguments) == 1
    message = single_stderr_line(capsys)
    assert "dog/199.png" in message
    assert message.endswith("% of the images are done; to resume, run the same command again\n")
    assert file_names(tmp_path) == {"images", ".train.beton.tmp", ".train.beton.tmp.journal"}
    bad.write_bytes(good_content)
    assert main(arguments) == 0
    assert re.match(r"resuming after [1-9]\d+ of 200 images\n", capsys.readouterr().err)
    assert read_dataset_manifest(out).samples == 200
    content = out.read_bytes()
    assert main([*arguments, "--force"]) == 0
    assert out.read_bytes() == content


def test_force_starts_over(unfinished: Unfinished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The unfinished file of an earlier command is deleted, without a check and without a message."""
    _, journal_file = unfinished.copy_to(tmp_path)
    shutil.copy(journal_file, tmp_path / ".train.beton.tmp.journal")
    folder = image_folder(tmp_path / "images")
    assert main(["imagefolder", str(folder), "--out", str(tmp_path / "train.beton"), "--force"]) == 0
    assert "starting over" not in capsys.readouterr().err
    assert not list(tmp_path.glob(".train*"))
