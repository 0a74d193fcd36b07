"""What the commands of the READMEs write by default lands in folders that git ignores."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from jobs import report
from tests.helpers.data_sets import small_config
from tests.helpers.finished_runs import save_state
from tests.helpers.paths import ROOT
from tests.test_readmes import READMES, commands, split_code
from vit import evaluate, export
from vit.augment import __main__ as augment
from vit.checkpoint.train_state import TrainState
from vit.config.schema import to_yaml

# Options with a file or folder to write.
OPTIONS = ("--out", "--attention", "--picture", "--save", "--run-dir", "--runs-dir", "--pictures", "--dump")
IGNORED = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]


def is_ignored(path: str) -> bool:
    """Whether git ignores a file that a command run in the project's folder writes."""
    first, *_ = Path(path).parts
    return path.startswith(("/", "~", "$", "..")) or first in IGNORED


def written_paths(command: str) -> list[str]:
    """The paths that a command names to be written: `--out x` and `--out=x`."""
    words = re.sub(r"\s--(\w[\w-]*)=", r" --\1 ", command).split()
    return [path.strip("'\"`") for option, path in pairwise(words) if option in OPTIONS]


@pytest.mark.parametrize("readme", [*READMES, ROOT / "Makefile"], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_of_a_readme_leaves_nothing_that_git_would_add(readme: Path) -> None:
    """In the project's folder, where the READMEs say to run all commands."""
    text = readme.read_text()
    lines = commands(split_code(text)[0]) if readme.suffix == ".md" else text.splitlines()
    found = [path for command in lines for path in written_paths(command)]
    placeholders = re.compile(r"\[?[A-Z_./]+\]?|-.*|\$\(?[A-Za-z@]+\)?.*|…|benchmarks/results.*")
    assert [path for path in found if not placeholders.fullmatch(path) and not is_ignored(path)] == []


def test_the_examples_in_help_texts_leave_nothing_that_git_would_add() -> None:
    """The docstrings of the commands."""
    commands_of = [path for package in ("jobs", "vit", "data_prep") for path in (ROOT / package).rglob("*.py")]
    for path in commands_of:
        for line in path.read_text().splitlines():
            if re.match(r"\s*python (-m|jobs/)", line):
                wrong = [name for name in written_paths(line) if re.match(r"[a-z]", name) and not is_ignored(name)]
                assert wrong == [], f"{path}: {line}"


def test_commands_that_are_not_told_where_to_write_write_into_runs(
    jpegs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures of augmentation, reports of one run and of several, exported weights, evaluations."""
    cfg = small_config(jpegs)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        state = TrainState.fresh(cfg, torch.device("cpu"))
        state.step = 12
        save_state(Path("runs", name), state, cfg)
        Path("runs", name, "config.yaml").write_text(to_yaml(cfg))
    config = Path("runs", "mine.yaml")
    config.write_text(to_yaml(cfg))
    assert augment.main(["--config", str(config), "--draws", "1", "--images", "2"]) == 0
    assert export.main(["runs/a", "--to", "torchvision"]) == 0
    assert evaluate.main(["runs/a", "--save", "--device", "cpu"]) == 0
    assert report.main(["runs/a"]) == 0
    assert report.main(["runs/a", "runs/b"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], capsys.readouterr()
    for path in ("mine-augmented.png", "a/report.html", "report.html", "a/evaluation"):
        assert Path("runs", path).exists(), path
