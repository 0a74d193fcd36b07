"""Sources with many images in a file: a command that is killed resumes to the same bytes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from data_prep.recipe import Recipe
from data_prep.sources.parquet import parquet
from data_prep.sources.source import Source
from data_prep.sources.webdataset import webdataset
from data_prep.write_beton import write
from tests.helpers.image_files import encode_image, noise
from tests.helpers.published_data import hub_file, write_tar
from tests.helpers.unfinished_file import Unfinished
from tests.helpers.write_command import are_same_files

IMAGES = [encode_image(noise(9, 9, i), "PNG") for i in range(90)]


def write_parquet(folder: Path, images: Sequence[bytes]) -> Source:
    """Row groups of 40: the kill is in the middle of one."""
    return parquet([str(hub_file(folder / "a.parquet", images, [i % 3 for i in range(90)], row_group_size=40))])


def write_shards(folder: Path, images: Sequence[bytes]) -> Source:
    for shard in range(2):
        rows = range(45 * shard, 45 * shard + 45)
        files = {f"{i}.{end}": data for i in rows for end, data in (("png", images[i]), ("cls", b"%d" % (i % 3)))}
        write_tar(folder / f"s-{shard}.tar", files)
    return webdataset([str(folder / "s-{0..1}.tar")])


@pytest.mark.parametrize(("make", "shuffle"), [(write_parquet, False), (write_shards, True)])
def test_a_killed_command_resumes_and_writes_the_same_bytes(
    make: Callable[[Path, Sequence[bytes]], Source], shuffle: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless a file of the source was replaced in between: then it starts over."""
    for name in ("finished", "killed"):
        (tmp_path / name).mkdir()
    recipe = Recipe(source="here", mode="raw", shuffle=shuffle)
    source = make(tmp_path, IMAGES)
    write(source, tmp_path / "finished" / "a.beton", recipe, 2)
    unfinished = Unfinished(tmp_path / "killed", tmp_path / "finished" / "a.beton", source, recipe)
    unfinished.write_and_kill(tmp_path / "killed", 44)
    unfinished.copy_to(tmp_path / "changed")
    capsys.readouterr()
    assert are_same_files(unfinished.resume_in(tmp_path / "killed"), unfinished.finished)
    assert "resuming after " in capsys.readouterr().err
    make(tmp_path, IMAGES[::-1])
    unfinished.resume_in(tmp_path / "changed")
    assert "starting over" in capsys.readouterr().err
