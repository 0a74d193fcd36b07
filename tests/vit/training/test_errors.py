"""What a training prints and records when it fails: one line for what the user can fix, else a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.data_sets import small_config
from tests.helpers.paths import CHECKOUT
from vit.config.schema import to_yaml
from vit.run.folder import RunFolder

FAIL = """
import sys
from vit import train
from vit.config.user_error import UserError
from vit.training import trainer

def fail(*_):
    raise {error}

trainer.{function} = fail
train.main(sys.argv[1:])
"""


def failed(run: RunFolder, betons: Path, function: str, error: str) -> "subprocess.CompletedProcess[str]":
    """Runs a training in which a function of the trainer raises an error."""
    run.config.write_text(to_yaml(small_config(betons)))
    command = [sys.executable, "-c", FAIL.format(function=function, error=error)]
    options = ["--config", str(run.config), "--run-dir", str(run.path), "--epochs", "1"]
    return subprocess.run([*command, *options], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("function", ["evaluate", "resume"])
def test_a_bug_is_not_taken_for_an_error_of_the_user(run: RunFolder, betons: Path, function: str) -> None:
    """A ValueError that is not a UserError has its traceback, and exit code 1: the job tries again."""
    done = failed(run, betons, function, "ValueError('no such thing')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("ValueError: no such thing\n")
    event = run.last("failed")
    assert event is not None
    assert event["error"] == "ValueError: no such thing"


def test_an_error_that_the_user_can_fix_is_one_line(run: RunFolder, betons: Path) -> None:
    """Exit code 2: the job does not try again."""
    done = failed(run, betons, "resume", "UserError('set this to that')")
    assert done.returncode == 2
    assert done.stderr == "vit.train: set this to that\n"


@pytest.mark.parametrize("local_rank", [0, 1])
def test_what_is_missing_on_one_node_is_printed_there_once(run: RunFolder, betons: Path, local_rank: int) -> None:
    """Rank 0 may be on another node, which has a GPU."""
    run.config.write_text(to_yaml(small_config(betons)))
    place = {"RANK": 2 + local_rank, "WORLD_SIZE": 4, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": 2}
    variables = {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    environment = os.environ | variables | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "vit.train", "--config", str(run.config), "--run-dir", str(run.path)]
    command += ["--device", "cuda"]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    message = "vit.train: device: cuda, but no GPU is visible"
    assert done.stderr.startswith(message) if local_rank == 0 else done.stderr == ""


def test_the_first_error_is_reported_also_if_it_cannot_be_recorded(run: RunFolder, betons: Path) -> None:
    """The ledger cannot be written either; the note says so."""
    run.ledger.symlink_to(run.ledger.name)  # ELOOP
    done = failed(run, betons, "resume", "ValueError('no such thing')")
    assert done.returncode == 1
    assert "ValueError: no such thing\n" in done.stderr
    assert "This failure could not be recorded: " in done.stderr
    assert str(run.ledger) in done.stderr


@pytest.mark.parametrize("place", ["a file", "a file/below", "locked"])
def test_a_run_folder_that_cannot_be_made_is_one_line(place: str, betons: Path, tmp_path: Path) -> None:
    """With the option, what is wrong, and what to do; as root, setpriv drops the capability to write anywhere."""
    (tmp_path / "a file").touch()
    (tmp_path / "locked").mkdir(mode=0o555)
    (tmp_path / "config.yaml").write_text(to_yaml(small_config(betons)))
    command = [sys.executable, "-m", "vit.train", "--config", str(tmp_path / "config.yaml")]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *command]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path / place)], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"vit.train: --run-dir {tmp_path}/{place}: ")
    assert line.endswith("; choose a folder in which you can write")
