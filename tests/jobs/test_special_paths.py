"""Folders whose names have characters with a meaning for shells, Python, submitit or Slurm."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.local_runs import run_status, settings, submit
from vit.run.folder import RunFolder

EVERYTHING = "-a b'c\"d$e$$`f`#g;h&i*j(100%)\\k,l=m~ä€[n]{o}|<p>!?"


def test_a_run_in_a_folder_with_special_characters_trains(
    betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a file system allows, except for what is refused; with the source in the run folder."""
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):
        monkeypatch.delenv(name, raising=False)
    cwd = tmp_path / EVERYTHING
    cwd.mkdir()
    (cwd / "data").mkdir()
    for file in betons.glob("*.beton*"):
        (cwd / "data" / file.name).symlink_to(file)
    short = [*settings(cwd / "data", epochs=2), "--optim.warmup_epochs", "0"]
    short = [word.replace("$", "$$") for word in short]
    done = submit(cwd, *short, "--gpus", "2", "--runs-dir=-runs")
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder(cwd / "-runs" / "demo")
    assert [event["event"] for event in run.events()][-1] == "finished"
    assert (run.source / "vit" / "__pycache__").exists(), "the run imported its own copy of the source"
    (command,) = [line for line in done.stdout.splitlines() if "jobs/report.py" in line]
    assert command.endswith(" ./-runs/demo")
    again = submit(cwd, *short, "--gpus", "2", "--runs-dir=-runs")
    assert "is complete" in again.stdout, again.stderr
    assert "100.0" in run_status(cwd, "./-runs/demo").stdout


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("a:b", "contains ':': Python takes ':' for the end of a folder in PYTHONPATH"),
        ("a%jb", "contains '%j': Slurm and submitit replace it by the job's id or name"),
        ("a%4tb", "contains '%4t': Slurm and submitit replace it"),
        ("a%%b", "contains '%%': Slurm and submitit replace it"),
        ("a\nb", "contains '\\n': a job script cannot contain it"),
        (b"a\xffb", "contains '\\udcff': it is not valid UTF-8"),
    ],
)
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_folder_that_cannot_work_is_refused(
    cluster: str, folder: str | bytes, message: str, betons: Path, tmp_path: Path
) -> None:
    """Before anything is written, also if it is only the working directory."""
    name = folder if isinstance(folder, str) else folder.decode(errors="surrogateescape")
    refused = submit(tmp_path, *settings(betons), "--runs-dir", name, "--dry-run", cluster=cluster)
    assert refused.returncode == 2, refused.stdout
    assert message in refused.stderr
    assert refused.stderr.endswith("choose another --runs-dir\n")
    assert list(tmp_path.iterdir()) == []


def test_a_backslash_is_refused_on_slurm_only(betons: Path, tmp_path: Path) -> None:
    (tmp_path / "a\\b").mkdir()
    assert submit(tmp_path / "a\\b", *settings(betons), "--dry-run").returncode == 0
    refused = submit(tmp_path / "a\\b", *settings(betons), "--dry-run", cluster="slurm")
    assert "Slurm treats it as special in names of output files" in refused.stderr


def test_a_folder_that_a_container_cannot_mount_is_refused(betons: Path, tmp_path: Path) -> None:
    """Apptainer separates folders by commas, and their two names by colons."""
    container = ("--container", "vit.sif", "--dry-run")
    for options in (["--runs-dir", "a,b"], ["--data.train", "c:d/train.beton"]):
        refused = submit(tmp_path, *settings(betons), *options, *container, cluster="slurm")
        assert refused.returncode == 2
        assert "which separates folders in --bind of the container" in refused.stderr
    assert submit(tmp_path, *settings(betons), "--data.train", "c:d", "--dry-run").returncode == 0


@pytest.mark.parametrize("name", ["-x", "..", ".", "a/b", "a b", "a:b", "a%jb", ""])
def test_a_name_that_is_not_a_plain_one_is_refused(name: str, betons: Path, tmp_path: Path) -> None:
    refused = submit(tmp_path, *settings(betons), f"--name={name}", "--dry-run")
    assert (refused.returncode, refused.stderr[:18]) == ((2, "submit.py: --name ") if name else (0, ""))


def test_job_scripts_are_valid_shell(betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Special characters are quoted."""
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the job would keep it, after the source
    cwd = tmp_path / EVERYTHING.replace("\\", "")
    cwd.mkdir()
    options = ("--nodes", "2", "--gpus", "2", "--dry-run")
    script = submit(cwd, *settings(betons), *options, cluster="slurm").stdout.partition("# job script\n")[2]
    assert script.startswith("#!/bin/bash")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    program = script.partition("# setup\n")[2].partition("blind=")[0] + 'printf %s "$PYTHONPATH"'
    environment = os.environ | {"PYTHONPATH": ""}
    shown = subprocess.run(["bash", "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout == str(cwd / "runs" / "demo" / "source")
