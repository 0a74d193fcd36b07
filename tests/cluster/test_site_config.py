"""SLURM_CONF is not set, or wrong: each command says so in one line, and nothing trains on the login node unasked."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cluster_case import SUBMIT, campaign
from tests.helpers.local_runs import settings
from tests.helpers.paths import CHECKOUT
from tests.helpers.slurm_cluster import missing
from tests.helpers.slurm_config import SEARCH_PATH

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
WRONG = {
    "missing": (None, "No such file or directory"),
    "empty": ("", "ClusterName needs to be specified"),
    "unfinished": ("ClusterName=x\n", "SlurmctldHost"),
    "misspelled": ("ClusterName=x\nSlurmctldHost=localhost\nBogus=1\n", "Bogus"),
}


def call(script: str, *words: str, conf: Path | None, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PATH": SEARCH_PATH} | ({"SLURM_CONF": str(conf)} if conf else {})
    return subprocess.run(
        [sys.executable, str(CHECKOUT / "jobs" / script), *words],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["misspelled", *(pytest.param(kind, marks=campaign) for kind in [*WRONG][:3])])
def test_a_wrong_configuration_is_named_in_one_line(kind: str, betons: Path, tmp_path: Path) -> None:
    """By `submit.py`, which does not train here instead, and `doctor.py`; status.py shows the run all the same."""
    text, reason = WRONG[kind]
    conf = tmp_path / "slurm.conf"
    if text is not None:
        conf.write_text(text)
    words = (*SUBMIT[2:], *settings(betons))
    done = call("submit.py", *words, "--cluster", "auto", conf=conf, cwd=tmp_path)
    assert done.returncode == 1, done
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("submit.py: ")]
    assert reason in line and f"SLURM_CONF is {conf}" in line and "--cluster local" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("ledger.jsonl"))

    doctor = call("doctor.py", *words, conf=conf, cwd=tmp_path)
    assert doctor.returncode == 2 and "Traceback" not in doctor.stderr
    assert re.search(rf"FAIL  Slurm +Slurm's commands fail on this machine \(.*{reason}", doctor.stdout), doctor.stdout


def test_status_shows_runs_although_slurm_is_not_configured(tmp_path: Path) -> None:
    """The state of their jobs is unknown, and one line says why."""
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "ledger.jsonl").write_text('{"event": "submitted", "time": 1, "job": "12"}\n')
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=x\n")
    for given, reason in ((conf, f"SLURM_CONF is {conf}"), (None, "SLURM_CONF is not set")):
        done = call("status.py", conf=given, cwd=tmp_path)
        assert "unknown (job 12)" in done.stdout
        (line,) = done.stderr.splitlines()
        assert line.startswith("status.py: the state of Slurm jobs is unknown: Slurm's commands") and reason in line


def test_without_any_configuration_a_run_says_that_it_trains_on_this_machine(betons: Path, tmp_path: Path) -> None:
    """`--cluster auto`: Slurm's commands are installed, as on the login node of a cluster."""
    words = (*SUBMIT[2:], *settings(betons), "--cluster", "auto", "--dry-run")
    done = call("submit.py", *words, conf=None, cwd=tmp_path)
    assert done.returncode == 0, done
    (line,) = [each for each in done.stderr.splitlines() if "warning" in each]
    assert "no cluster is configured (SLURM_CONF is not set): running on this machine" in line
    doctor = call("doctor.py", *words[:-3], conf=None, cwd=tmp_path)
    assert "WARN  Slurm           Slurm's commands are installed, but no cluster is configured" in doctor.stdout
