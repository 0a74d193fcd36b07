"""One rule for every path that a user types: `~` and variables are expanded, on the command line and in YAML files."""

import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from tests.helpers.paths import ROOT
from tests.test_structure import MODULES
from vit.config import paths
from vit.config.parser import config_parser, load_config, parse_config
from vit.config.schema import PATHS, Config, to_yaml
from vit.config.sections import DataConfig
from vit.config.user_error import UserError

SUBMIT = [sys.executable, str(ROOT / "jobs" / "submit.py"), "--cluster", "local", "--dry-run"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": "/home/me", "SCRATCH": "/scratch", "NAME": "x$y"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~/runs", "/home/me/runs"),
        ("~", "/home/me"),
        ("~root/runs", "/root/runs"),
        ("$SCRATCH/${NAME}s", "/scratch/x$ys"),
        ("/a/$$SCRATCH/b~/~", "/a/$SCRATCH/b~/~"),
        ("price $5, 3 $", "price $5, 3 $"),
        ("", ""),
        ("plain/ä b", "plain/ä b"),
    ],
)
def test_a_path_is_expanded_as_a_shell_does_it(text: str, expanded: str) -> None:
    """The value of a variable is not expanded again, and `escape` is the inverse."""
    assert paths.expand(text) == expanded
    assert paths.expand(paths.escape(expanded)) == expanded


def test_a_name_that_begins_with_a_tilde_can_be_escaped() -> None:
    """It is not the home of a user, also where a config is written and read again."""
    assert Path(paths.expand(paths.escape("~me/x"))) == Path("~me/x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$SCRATCH/$UNSET/a", "the variable UNSET is not set"),
        ("${UNSET}", "the variable UNSET is not set"),
        ("~no-such-user/a", "there is no user 'no-such-user'"),
    ],
)
def test_what_cannot_be_expanded_is_an_error_that_names_it(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        paths.expand(text)


def test_a_file_whose_name_has_a_dollar_sign_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell inserts it for `*.jpg`."""
    monkeypatch.chdir(tmp_path)
    Path("US$a.jpg").touch()
    assert paths.expand("US$a.jpg") == "US$a.jpg"


def test_every_path_of_a_config_is_expanded_when_it_is_read_and_escaped_when_it_is_written(tmp_path: Path) -> None:
    """`data.stage` is kept as it is, because each node expands it."""
    hints = {f"data.{name}": kind for name, kind in get_type_hints(DataConfig).items()} | get_type_hints(Config)
    assert {name for name, kind in hints.items() if kind is Path} | {"init_from"} == set(PATHS)
    file = tmp_path / "a$b.yaml"
    file.write_text("init_from: ~/$NAME\ndata: {train: $SCRATCH/t.beton, val: ~/v.beton, stage: $TMPDIR}\n")
    cfg = load_config(file)
    assert cfg.init_from == "/home/me/x$y"
    assert (cfg.data.train, cfg.data.val) == (Path("/scratch/t.beton"), Path("/home/me/v.beton"))
    assert cfg.data.stage == "$TMPDIR"
    file.write_text(to_yaml(cfg))
    assert load_config(file) == cfg
    assert parse_config(config_parser("vit"), ["--config", to_yaml(cfg)])[0] == cfg


def test_every_option_that_is_a_path_is_expanded() -> None:
    """No command has an option of type Path, which is not."""
    for module, file in MODULES.items():
        assert "type=Path" not in file.read_text(), module


def test_submit_expands_all_of_its_paths(tmp_path: Path) -> None:
    """A shell does not expand `--runs-dir=~/runs`."""
    (tmp_path / "demo.yaml").write_text((ROOT / "configs" / "demo.yaml").read_text())
    (tmp_path / "cluster.yaml").write_text(
        "container: ~/vit.sif\npython: $SCRATCH/python\ncontainer_exec: apptainer exec --bind $SCRATCH\n"
    )
    (tmp_path / "prep.yaml").write_text(
        "train: {source: imagefolder, path: $IMAGES, out: ~/train.beton}\njob: {python: ~/bin/python}\n"
    )
    options = ["--config=$FILES/demo.yaml", "--runs-dir=~/runs", "--cluster-config=$FILES/cluster.yaml"]
    options += ["--prep=$FILES/prep.yaml", "--init_from=~/weights.pth", "--data.train=~/train.beton"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/home/me", "SCRATCH": "/scratch", "FILES": str(tmp_path)}
    (tmp_path / "my images").mkdir()
    dry = subprocess.run(
        [*SUBMIT, "--cluster=slurm", *options], cwd=tmp_path, env=environment | {"IMAGES": str(tmp_path / "my images")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert dry.returncode == 0, dry.stderr
    for text in (
        "# /home/me/runs/demo/config.yaml",
        "train: /home/me/train.beton",
        "init_from: /home/me/weights.pth",
        f"write_beton imagefolder '{tmp_path}/my images' --out /home/me/train.beton",
        "apptainer exec --bind /scratch --bind",
        "/home/me/vit.sif /scratch/python -u -m submitit",
        "/home/me/vit.sif /home/me/bin/python -u -m submitit",
    ):
        assert text in dry.stdout, text
    assert "~" not in dry.stdout
    refused = subprocess.run(
        [*SUBMIT, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert refused.stderr == (
        f"submit.py: {tmp_path}/prep.yaml: train: path: $IMAGES: the variable IMAGES is not set; "
        "set it, or write $$ for a dollar sign\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cluster.yaml", "demo.yaml", "my images", "prep.yaml"]
