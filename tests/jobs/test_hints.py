"""What a command tells the user to type does what it says, whatever characters are in the path."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.login.local_run import summary
from jobs.login.sbatch import job_hints
from tests.helpers.paths import ROOT
from tests.helpers.records import evaluation_record, training_record
from vit.config.paths import user_path
from vit.config.recipe import check_recipe
from vit.config.user_error import UserError
from vit.run.folder import RunFolder
from vit.run.jsonl import append
from vit.run.wandb_log import SENDER, send_command

NAMES = ["~root", "~", "a$HOME", "${HOME}'$$ b", "-x"]
FINISHED = {"val_top1": 0.5, "val_top5": 0.9}


@pytest.fixture(params=NAMES)
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run in the working directory, whose name has a meaning for a shell and for commands that expand paths."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    run = RunFolder(tmp_path / request.param)
    run.path.mkdir()
    for record in (training_record(1), evaluation_record(1)):
        append(run.metrics, record)
    run.record("finished", step=1, **FINISHED)
    return run


def paste(command: str) -> "subprocess.CompletedProcess[str]":
    """Runs a line in a shell, with this Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["sh", "-c", command], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_command_for_the_status_finds_the_run(run: RunFolder) -> None:
    (line,) = [line for line in job_hints(run, "7").splitlines() if "jobs/status.py" in line]
    done = paste(line.partition("status  ")[2])
    assert done.returncode == 0, done.stderr
    assert ": finished\n" in done.stdout


def test_every_command_that_is_printed_names_the_run(run: RunFolder) -> None:
    """After the shell, and after the command has expanded its paths."""
    texts = [(summary(run, FINISHED), " jobs/report.py "), (send_command(run), f" -m {SENDER} ")]
    with pytest.raises(UserError) as refused:
        check_recipe(run.path, {"seed": 1}, {"seed": 2}, (), has_begun=True)
    for text, command in [*texts, (str(refused.value), "--init_from ")]:
        word = shlex.split(text.partition(command)[2].partition("\n")[0])[0]
        assert user_path(word).absolute() == run.path, command
