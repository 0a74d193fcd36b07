"""Data sets that are symbolic links: a small disk may hold links to files on a large one."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep import check_beton, describe_beton
from data_prep.publish import link_target, lock_unfinished_file
from data_prep.write_beton import main
from tests.helpers.image_files import image_folder
from tests.helpers.write_command import file_names, single_stderr_line
from vit.data.beton import open_beton
from vit.data.dataset_manifest import check_data_sets, manifest_path, read_dataset_manifest


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Three folders: of images, and the empty folders `near` and `far`."""
    for name in ("near", "far"):
        (tmp_path / name).mkdir()
    return image_folder(tmp_path / "images"), tmp_path / "near", tmp_path / "far"


def test_the_manifest_is_found_beside_the_file_that_a_link_points_to(folders: tuple[Path, Path, Path]) -> None:
    """By training, by submissions and by check_beton; also through a chain of links."""
    images, near, far = folders
    assert main(["imagefolder", str(images), "--out", str(far / "r.beton")]) == 0
    (near / "l.beton").symlink_to("../far/r.beton")
    (near / "again.beton").symlink_to("l.beton")
    for link in (near / "l.beton", near / "again.beton"):
        assert manifest_path(link).resolve() == far / "r.beton.json"
        assert len(open_beton(link)) == 6
        check_data_sets(2, link, far / "r.beton")
        assert check_beton.main([str(link)]) == 0
        assert main(["imagefolder", str(images), "--out", str(link)]) == 0  # it is written already
    assert file_names(near) == {"l.beton", "again.beton"}


def test_a_manifest_beside_the_link_comes_first(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody put it there for the link; the target is not written then, because its manifest would not be read."""
    images, near, far = folders
    assert main(["imagefolder", str(images), "--out", str(far / "r.beton")]) == 0
    link = near / "l.beton"
    link.symlink_to("../far/r.beton")
    shutil.copy(far / "r.beton.json", near / "l.beton.json")
    text = (near / "l.beton.json").read_text().replace('"cat"', '"lynx"')
    (near / "l.beton.json").write_text(text)
    assert read_dataset_manifest(link).classes == ["lynx", "dog"]
    capsys.readouterr()
    assert main(["imagefolder", str(images), "--out", str(link), "--force"]) == 1
    line = single_stderr_line(capsys)
    assert "l.beton.json would be taken for the manifest" in line
    assert f"--out {far}/r.beton" in line
    (near / "l.beton.json").unlink()
    (near / "l.beton.json").symlink_to("../far/r.beton.json")
    assert main(["imagefolder", str(images), "--out", str(link), "--force"]) == 0
    assert (near / "l.beton.json").is_symlink()


@pytest.mark.parametrize("dangling", [False, True])
def test_a_file_is_written_where_a_link_points_to(folders: tuple[Path, Path, Path], dangling: bool) -> None:
    """With its manifest and its unfinished file, so that nothing is on the disk of the link; the link is kept."""
    images, near, far = folders
    link, target = near / "l.beton", far / "new" / "r.beton"
    link.symlink_to("../far/new/r.beton")
    arguments = ["imagefolder", str(images), "--out", str(link)]
    if not dangling:
        target.parent.mkdir()
        assert main([*arguments[:-1], str(target), "--quality", "50"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        replace = Path.replace
        patch.setattr(Path, "replace", lambda self, to: seen.append((self, to)) or replace(self, to))  # type: ignore[func-returns-value]
        assert main([*arguments, "--force"]) == 0
    assert {path.parent for pair in seen for path in pair} == {target.parent}
    assert os.readlink(link) == "../far/new/r.beton"
    assert file_names(near) == {"l.beton"}
    assert file_names(target.parent) == {"r.beton", "r.beton.json"}
    assert len(open_beton(link)) == len(open_beton(target)) == 6
    assert read_dataset_manifest(target).image.quality == 90


def test_a_manifest_that_is_a_link_is_written_where_it_points_to(folders: tuple[Path, Path, Path]) -> None:
    """The link is kept."""
    images, near, far = folders
    (near / "a.beton.json").symlink_to("../far/manifest.json")
    assert main(["imagefolder", str(images), "--out", str(near / "a.beton")]) == 0
    assert (near / "a.beton.json").is_symlink()
    assert file_names(far) == {"manifest.json"}
    assert file_names(near) == {"a.beton", "a.beton.json"}
    assert len(open_beton(near / "a.beton")) == 6


def test_two_commands_cannot_write_the_same_file_through_different_links(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """They lock the file that both links point to."""
    images, near, far = folders
    (near / "l.beton").symlink_to("../far/r.beton")
    with lock_unfinished_file(far / "r.beton"):
        assert main(["imagefolder", str(images), "--out", str(near / "l.beton")]) == 1
    assert "another command is writing it" in single_stderr_line(capsys)


def test_a_link_to_itself_is_refused(folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, before any image is encoded."""
    images, near, _ = folders
    (near / "l.beton").symlink_to("l.beton")
    assert main(["imagefolder", str(images), "--out", str(near / "l.beton")]) == 1
    assert "leads to itself" in single_stderr_line(capsys)


def test_a_link_to_a_file_of_ffcv_is_described_beside_the_file(folders: tuple[Path, Path, Path]) -> None:
    """Other links to it find the manifest too."""
    images, near, far = folders
    assert main(["imagefolder", str(images), "--out", str(far / "r.beton")]) == 0
    (far / "r.beton.json").unlink()
    (near / "l.beton").symlink_to("../far/r.beton")
    assert describe_beton.main([str(near / "l.beton")]) == 0
    assert file_names(near) == {"l.beton"}
    assert file_names(far) == {"r.beton", "r.beton.json"}
    assert np.array_equal(open_beton(near / "l.beton").labels, open_beton(far / "r.beton").labels)
    assert link_target(near / "l.beton") == far / "r.beton"
