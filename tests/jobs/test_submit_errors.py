"""What submit.py refuses, and how it reports a run that fails."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.local_runs import SUBMIT, settings, submit
from vit.checkpoint.format import find_checkpoints
from vit.run.folder import RunFolder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "3"], "3 ranks do not divide the 4 micro-batches"),
        (
            ["--micro_batch", "1", "--augment.mixup", "0.8"],
            "micro_batch 1 is too small for mixup and cutmix, which would",
        ),
        (["--gpus", "0"], "--gpus must be at least 1"),
        (["--nodes", "2"], "without Slurm there is only one node"),
        (["--time", "tomorrow"], "--time must be HH:MM:SS, D-HH:MM:SS or a number of minutes, not 'tomorrow'"),
        (["--name", "a/b"], "--name 'a/b'"),
        (["--extend", "9"], "--extend 9: runs/demo is not a run; use --epochs for a new run"),
        (["--extend", "9", "--restart"], "use only one of them"),
        (["--data.train", "nosuch.beton"], "nosuch.beton creates it from a folder of images"),
        (["--model.num_classes", "1000"], "model.num_classes is 1000, but"),
        (["--optim.learning_rate", "1"], "unknown setting 'optim.learning_rate'"),
    ],
)
def test_invalid_options_are_refused_in_one_line(
    options: list[str], message: str, betons: Path, tmp_path: Path
) -> None:
    """Before anything is written, with the invalid value and what to do."""
    refused = submit(tmp_path, *settings(betons), *options)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_writable_is_refused_with_a_hint(betons: Path, tmp_path: Path) -> None:
    """As root, setpriv drops the capabilities that ignore permissions."""
    (tmp_path / "runs").mkdir(mode=0o555)
    command = [*SUBMIT, "--cluster", "local", *settings(betons)]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *command]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 2
    assert re.fullmatch(
        r"submit.py: .*/runs/demo: Permission denied; use --runs-dir to choose a writable folder\n", refused.stderr
    )


def test_data_that_may_not_be_read_is_named_without_advice_about_the_run_folder(betons: Path, tmp_path: Path) -> None:
    """Of a colleague, for example; as root, setpriv drops the capabilities that ignore permissions."""
    data = tmp_path / "data"
    shutil.copytree(betons, data)
    data.chmod(0)
    command = [*SUBMIT, "--cluster", "local", *settings(data)]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *command]
    try:
        refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    finally:
        data.chmod(0o755)
    assert refused.returncode == 2
    assert re.fullmatch(
        r"submit.py: .*/data/.*: Permission denied; use another folder, or change its permissions\n", refused.stderr
    )


def test_different_settings_for_the_same_run_are_refused(finished: tuple[RunFolder, str], betons: Path) -> None:
    """The message names the settings that differ."""
    run, _ = finished
    refused = submit(run.path.parents[1], *settings(betons), "--optim.lr", "0.5")
    assert refused.returncode == 2
    assert "optim.lr: 0.003 in the run, 0.5 now" in refused.stderr
    assert "--name" in refused.stderr


def test_the_images_of_the_next_steps_cannot_change(finished: tuple[RunFolder, str], betons: Path) -> None:
    """At the same step, another batch size would be another epoch; --override-resume does not allow it."""
    run, _ = finished
    options = ["--global_batch", "32", "--override-resume", "global_batch"]
    refused = submit(run.path.parents[1], *settings(betons), *options)
    assert refused.returncode == 2
    assert "global_batch: 64 in the run, 32 now" in refused.stderr
    assert f"--init_from {run.path}" in refused.stderr


def test_a_run_whose_checkpoints_are_gone_is_refused(
    finished: tuple[RunFolder, str], betons: Path, tmp_path: Path
) -> None:
    """Before a job is submitted; nothing in the folder changes."""
    run = RunFolder(tmp_path / "runs" / "demo")
    shutil.copytree(finished[0].path, run.path, symlinks=True)
    shutil.rmtree(run.checkpoints)
    before = run.ledger.read_bytes(), run.metrics.read_bytes(), run.config.read_bytes()
    refused = submit(tmp_path, *settings(betons), "--extend", "9")
    assert refused.returncode == 2
    assert re.search(r"checkpoints has no intact checkpoint, but step \d+ .* was saved; .*--restart", refused.stderr)
    assert (run.ledger.read_bytes(), run.metrics.read_bytes(), run.config.read_bytes()) == before


def test_an_extended_run_that_cannot_be_read_fails_and_says_so(
    finished: tuple[RunFolder, str], betons: Path, tmp_path: Path
) -> None:
    """It was finished before; it is restarted, and when that does not help, the reason is printed."""
    run = RunFolder(tmp_path / "runs" / "demo")
    shutil.copytree(finished[0].path, run.path, symlinks=True)
    part = find_checkpoints(run.checkpoints)[0] / "part-000.bin"
    part.unlink()
    part.symlink_to(part.name)  # ELOOP
    failed = submit(tmp_path, *settings(betons), "--extend", "9", "--max-restarts", "1")
    assert failed.returncode == 1
    assert "may be intact" in failed.stderr
    assert str(part) in failed.stderr
    events = [event["event"] for event in run.events()]
    assert events[-1] == "gave up"
    assert events.count("restarting in place") == 1
    assert part.is_symlink()


def test_a_run_that_fails_prints_why(betons: Path, tmp_path: Path) -> None:
    """The last lines have the reason and the log to read; an error that a retry cannot fix is not retried."""
    failed = submit(tmp_path, "--gpus", "2", *settings(betons), "--optim.lr", "1e30", "--optim.clip_norm", "0")
    assert failed.returncode == 1
    assert "optim.max_skipped allows 10; a lower optim.lr may help" in failed.stderr
    assert "/logs/rank-" in failed.stderr
    run = RunFolder(tmp_path / "runs" / "demo")
    assert run.last("failed") is not None
    assert run.last("restarting in place") is None
