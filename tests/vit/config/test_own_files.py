"""The recipes of the project are found from any folder, and a file of the user comes first."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.login.cluster_config import read_file
from tests.helpers.paths import ROOT
from vit.config.own_files import find_config
from vit.config.parser import load_config
from vit.config.user_error import UserError

DEMO = Path("configs/demo.yaml")


def test_a_recipe_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the READMEs write it; other paths stay as they are."""
    monkeypatch.chdir(tmp_path)
    assert find_config(DEMO) == ROOT / DEMO
    assert load_config(DEMO).epochs == 6
    for other in (Path("configs/none.yaml"), Path("demo.yaml"), Path("configs"), tmp_path / DEMO):
        assert find_config(other) == other


def test_a_file_of_the_user_comes_before_the_projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe and a cluster of the same name in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "clusters").mkdir(parents=True)
    (tmp_path / DEMO).write_text("epochs: 7\n")
    (tmp_path / "configs" / "clusters" / "generic.yaml").write_text("partition: mine\n")
    assert load_config(DEMO).epochs == 7
    assert read_file("generic") == {"partition": "mine"}
    with pytest.raises(UserError, match="configs/clusters has apptainer, generic, university"):
        read_file("none")


def test_a_run_in_another_folder_needs_only_its_data(tmp_path: Path) -> None:
    """The message names the data set, not the recipe, and the command that it prints works there."""
    command = [sys.executable, str(ROOT / "jobs" / "submit.py"), "--config", str(DEMO)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{tmp_path}/data/fashion-mnist/train.beton does not exist; " in done.stderr
