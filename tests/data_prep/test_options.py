"""The help texts of write_beton."""

import re

import pytest

from data_prep.options import parse_arguments

SOURCES = {
    "imagefolder": ["PATH"],
    "ilsvrc": ["TAR"],
    "kaggle": ["PATH", "--split", "train"],
    "fashion-mnist": ["--split", "train"],
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
    for name in ("mode", "max_resolution", "quality", "compress_probability", "seed", "on_bad"):
        stated = re.search(rf"--{name.replace('_', '-')} [^(]*\(default: ([^)]*)\)", options)
        assert stated and stated[1] == str(getattr(args, name)), name


def test_the_help_lists_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    """And how to get the options of a source."""
    text = read_help([], capsys)
    assert "SOURCE --help" in text
    assert all(f" {source} " in text for source in SOURCES)
