"""The help texts of write_beton."""

import re
import shlex

import pytest

from data_prep.options import parse_arguments
from data_prep.source_options import SOURCES as ALL_SOURCES
from tests.helpers.paths import ROOT
from tests.test_readmes import commands, split_code

SOURCES = {
    "imagefolder": ["PATH"],
    "ilsvrc": ["TAR"],
    "kaggle": ["PATH", "--split", "train"],
    "fashion-mnist": ["--split", "train"],
    "oxford-pets": ["--split", "train"],
    "food101": ["--split", "val"],
    "cifar10": ["--split", "val"],
    "cifar100": ["--split", "train", "--target", "coarse"],
    "parquet": ["a.parquet", "b"],
    "webdataset": ["a-{000..146}.tar"],
}


def read_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments([*arguments, "--help"])
    assert exit_info.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("source", SOURCES)
def test_the_help_states_the_defaults(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The values that are used without the options."""
    args = parse_arguments([source, *SOURCES[source], "--out", "a.beton"])
    options = read_help([source], capsys).partition(" output: ")[2]
    order = "--shuffle" if args.shuffle else "--no-shuffle"
    assert f"(default: {order})" in options
    for name in ("mode", "max_resolution", "quality", "compress_probability", "seed", "on_bad"):
        stated = re.search(rf"--{name.replace('_', '-')} [^(]*\(default: ([^)]*)\)", options)
        assert stated and stated[1] == str(getattr(args, name)), name


def test_the_help_lists_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    """And how to get the options of a source."""
    text = read_help([], capsys)
    assert "SOURCE --help" in text
    assert all(f" {source} " in text for source in SOURCES)
    assert [source.name for source in ALL_SOURCES] == list(SOURCES)


def test_every_command_of_the_readme_is_accepted_and_every_source_has_one() -> None:
    """A source that is renamed, or an option that is misspelled, would be noticed only by a reader."""
    lines, _ = split_code((ROOT / "data_prep" / "README.md").read_text())
    prefix = "python -m data_prep.write_beton "
    found = [shlex.split(line.removeprefix(prefix)) for line in commands(lines) if line.startswith(prefix)]
    assert {arguments[0] for arguments in found} == set(SOURCES)
    for arguments in found:
        assert parse_arguments(arguments).out.suffix == ".beton"


def test_a_subset_of_the_options_that_name_a_source_is_recorded() -> None:
    """Another target, column or list of classes is another data set; a long list of files is shortened."""
    for arguments, name in (
        (["oxford-pets", "--split", "val", "--target", "species"], "oxford-pets val, species"),
        (["cifar10", "--split", "val"], "cifar10 val"),
        (["cifar100", "--split", "val", "--target", "coarse"], "cifar100 val, coarse"),
        (["parquet", "/a", "/b", "/c", "/d", "--label-column", "x"], "parquet /a /b /c and 1 more, label_column x"),
        (["webdataset", "/a", "--label-key", "k", "--classes", "/c"], "webdataset /a, label_key k, classes /c"),
    ):
        assert parse_arguments([*arguments, "--out", "a.beton"]).recipe.source == name


def test_a_folder_as_output_is_refused_though_it_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """`--out data/photos/` would be a file of this name, in the way of the folder."""
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(["imagefolder", "photos", "--out", "data/photos/"])
    assert exit_info.value.code == 2
    assert "data/photos/ is a folder; give the name of the file to write" in capsys.readouterr().err
