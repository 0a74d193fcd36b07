"""Every setting times every wrong kind of value: one line with its name, what it takes, the value and the place."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.vit.config.test_help import every_setting
from vit.config.parser import config_parser, load_config, parse_config
from vit.config.settings import kinds
from vit.config.values import is_rows

SETTINGS = [(name, comment) for name, comment, _ in every_setting()]
JARGON = re.compile(r"<class|typing\.|Traceback|Parser key|Namespace|Expected a|Got value|NoneType|tuple|\bdict\b")
# What a setting of each type takes, and texts that it does not take.
WRONG: dict[str, tuple[str, list[str]]] = {
    "int": ("a whole number", ["abc", "1.5", "1e3x", "true", "1,000", "3 epochs", "10:30", "[1]", "{a: 1}", "''"]),
    "float": ("a number", ["abc", "0.3.", "1e-3x", "yes", "1,000", "5min", "10:30", "[0.1]", "{a: 1}", "2026-01-01"]),
    "bool": ("true or false", ["maybe", "2", "1.0", "[true]", "{a: 1}", "flase"]),
    "text": ("text", ["[a]", "{a: 1}"]),
    "path": ("a path", ["[a]", "{a: 1}"]),
    "choice": (" or ", ["nothing", "3", "true", "[cls]", "{a: 1}"]),
    "list": ("a list of [23] numbers such as ", ["0.5", "abc", "[0.5]", "[1, 2, 3, 4]", "[a, b, c]", "{a: 1}", "true"]),
    "rows": ("a list of rows of numbers such as ", ["0.5", "abc", "[0.5]", "[[a]]", "{a: 1}", "[[[1]]]", "[{a: 1}]"]),
}


def kind_of(name: str) -> str:
    """The name of the setting's type in WRONG."""
    kind = kinds()[name]
    words = {int: "int", float: "float", bool: "bool", str: "text", Path: "path"}
    if is_rows(kind):
        return "rows"
    return words.get(kind) or ("list" if str(kind).startswith("tuple") else "choice")


def yaml_with(name: str, value: str) -> str:
    """A config in which a setting has this value."""
    section, _, leaf = name.rpartition(".")
    return f"# a comment\n{section}:\n  {leaf}: {value}\n" if section else f"# a comment\n\n{leaf}: {value}\n"


def message_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr with which these arguments are refused."""
    with pytest.raises(SystemExit) as exited:
        parse_config(config_parser("vit"), list(arguments))
    out, err = capsys.readouterr()
    assert (exited.value.code, out) == (2, "")
    assert re.fullmatch(r"vit: .+\n", err), err
    assert not JARGON.search(err), err
    return err


@pytest.mark.parametrize(("name", "comment"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_a_wrong_value_of_any_setting_is_explained_where_it_stands(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, comment: str
) -> None:
    """In a file, with its line, and on the command line; with the setting's help text."""
    takes, values = WRONG[kind_of(name)]
    path = tmp_path / "a.yaml"
    for value in values:
        path.write_text(yaml_with(name, value))
        messages = {f"{path}, line 3: {name} must be ": message_of(capsys, "--config", str(path))}
        if kind_of(name) not in ("text", "path"):  # on the command line they take any text
            path.write_text("seed: 0\n")
            messages[f"vit: --{name} must be "] = message_of(capsys, "--config", str(path), f"--{name}={value}")
        for beginning, message in messages.items():
            assert beginning in message
            assert re.search(takes, message), message
            assert comment in message
            shown = value.strip("[]{}'").partition(":")[0]
            assert shown in message.partition(" not ")[2], message


@pytest.mark.parametrize(("name", "comment"), SETTINGS, ids=[name for name, _ in SETTINGS])
@pytest.mark.parametrize("nothing", ["", "null", "~"])
def test_a_setting_without_a_value_is_explained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, comment: str, nothing: str
) -> None:
    """In a file, and on the command line at its end or before another option."""
    path = tmp_path / "a.yaml"
    path.write_text(yaml_with(name, nothing))
    message = message_of(capsys, "--config", str(path))
    assert f"{path}, line 3: {name} has no value; give " in message and comment in message
    path.write_text("seed: 0\n")
    for arguments in ([f"--{name}"], [f"--{name}", "--epochs", "3"]):
        message = message_of(capsys, "--config", str(path), *arguments)
        assert f"vit: --{name} has no value; give " in message and comment in message


@pytest.mark.parametrize(
    ("setting", "value", "advice"),
    [
        ("epochs", "1,000", "write 1000, without commas"),
        ("epochs", "30 epochs", "write 30, without a unit"),
        ("epochs", "1e3", "write 1000"),
        ("epochs", "90.0", "write 90"),
        ("optim.lr", "0,001", "write 0.001"),
        ("optim.weight_decay", "5%", "write 0.05"),
        ("timeout_minutes", "10min", "write 10, without a unit"),
        ("compile", "1", "write true"),
        ("compile", "flase", "did you mean 'false'?"),
        ("log.wandb", "ofline", "did you mean 'offline'?"),
        ("data.crop_scale", "0.5, 1", "write [0.5, 1]"),
        ("model.pool", "[cls]", "write one value, without brackets"),
    ],
)
def test_the_message_says_how_to_write_what_was_probably_meant(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, setting: str, value: str, advice: str
) -> None:
    """For the usual slips: units, commas, brackets, misspelled words."""
    path = tmp_path / "a.yaml"
    path.write_text(yaml_with(setting, value))
    assert f"not {value!r}; {advice}" in message_of(capsys, "--config", str(path))


@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [
        ("optim.lr", "1e-3", 1e-3),  # text in YAML 1.1
        ("optim.lr", "'1e-3'", 1e-3),
        ("optim.lr", "1E-3", 1e-3),
        ("optim.lr", ".5", 0.5),
        ("optim.lr", "5.", 5.0),
        ("optim.lr", "1", 1.0),
        ("optim.lr", "1_000.5", 1000.5),
        ("optim.final_lr", "+1e-5", 1e-5),
        ("epochs", "1_000", 1000),
        ("epochs", "0x10", 16),
        ("seed", "9007199254740993", 9007199254740993),  # is not a float
        *(("compile", text, True) for text in ("true", "True", "yes", "on", "ON")),
        *(("compile", text, False) for text in ("false", "FALSE", "no", "off")),
        ("log.wandb", "off", "off"),  # false in YAML 1.1
        ("log.wandb_project", "2026", "2026"),
        ("log.wandb_project", "yes", "yes"),
        ("log.wandb_project", "null0", "null0"),
        ("data.train", "2026", Path("2026")),
        ("data.crop_scale", "[0.25, 1]", (0.25, 1.0)),
        ("data.crop_scale", "[1e-1, 1_0e-1]", (0.1, 1.0)),
    ],
)
def test_a_value_means_the_same_in_a_file_and_on_the_command_line(
    tmp_path: Path, setting: str, text: str, value: Any
) -> None:
    """Numbers in every usual notation; words of YAML 1.1 for settings that are text stay text."""
    path = tmp_path / "a.yaml"
    path.write_text("seed: 0\n")
    section, _, leaf = setting.rpartition(".")
    read = []
    if "'" not in text:
        read.append(load_config(path, f"--{setting}", text))
        read.append(load_config(path, f"--{setting}={text}"))
    path.write_text(yaml_with(setting, text))
    read.append(load_config(path))
    for config in read:
        found = getattr(getattr(config, section) if section else config, leaf)
        assert (found, type(found)) == (value, type(value))


def test_the_command_line_overrides_the_file_wherever_it_stands(tmp_path: Path) -> None:
    """Also before --config."""
    (tmp_path / "a.yaml").write_text("epochs: 7\n")
    parsed, _ = parse_config(config_parser("vit"), ["--epochs", "3", "--config", str(tmp_path / "a.yaml")])
    assert parsed.epochs == 3


def test_a_value_out_of_range_is_reported_with_its_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With several places, if the error is in how settings fit together."""
    path = tmp_path / "a.yaml"
    path.write_text("optim:\n  lr: -1\nglobal_batch: 100\n")
    assert f"vit: {path}, line 2: optim.lr must be positive" in message_of(capsys, "--config", str(path))
    message = message_of(capsys, "--config", str(path), "--optim.lr=1", "--micro_batch=64")
    assert f"(micro_batch: --micro_batch, global_batch: {path}, line 3)" in message
    message = message_of(capsys, "--config", str(path), "--optim.lr=1")
    assert f"global_batch: {path}, line 3" in message and "micro_batch: the default" in message


def test_of_several_files_the_place_is_in_the_one_that_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The last one that has the setting."""
    first, last = tmp_path / "first.yaml", tmp_path / "last.yaml"
    first.write_text("optim:\n  lr: 1\n")
    last.write_text("epochs: 3\noptim:\n  lr: -1\n")
    message = message_of(capsys, "--config", str(first), "--config", str(last))
    assert message.startswith(f"vit: {last}, line 3: optim.lr must be positive")
