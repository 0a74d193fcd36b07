"""What doctor.py says about the disk of the runs folder: full, slow, read-only, local, with a wrong clock."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.login.slurm_queries import SlurmSettings
from jobs.readiness import disk
from jobs.readiness.disk import check_runs_folder, measure, needed
from tests.helpers.disks import tmpfs_mounted
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.readiness import demo, findings, request
from vit.config.parser import load_config
from vit.model.weight_fit import state_bytes


def test_a_good_disk_is_measured_and_left_as_it_was(betons: Path, tmp_path: Path) -> None:
    """A folder that does not exist yet is not created."""
    of = demo(betons, "--runs-dir", tmp_path / "some" / "runs")
    found = findings(check_runs_folder, of)
    assert {finding.level for finding in found.values()} == {"OK"}, found
    assert found["runs folder"].text.endswith("; will be created")
    assert "2.5 MB; saving it takes about 0." in found["save"].text
    assert of.save_seconds is not None and 0 < of.save_seconds < 10
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_or_too_small_is_a_failure(betons: Path, tmp_path: Path) -> None:
    """Filled to the last byte, nothing can be written; else there is too little space for the checkpoints."""
    with tmpfs_mounted(tmp_path, "40m"):
        small = findings(check_runs_folder, demo(betons, "--runs-dir", tmp_path))
        assert small["writing"].level == "OK"
        assert small["free space"].level == "FAIL"
        assert small["free space"].text == (
            "41.9 MB of 41.9 MB are free, but this run writes up to 110 MB (4 checkpoints, logs)"
        )
        subprocess.run(["dd", "if=/dev/zero", f"of={tmp_path / 'fill'}", "bs=4k"], capture_output=True, check=False)
        full = findings(check_runs_folder, demo(betons, "--runs-dir", tmp_path))
        assert full["writing"].level == full["free space"].level == "FAIL"
        assert "No space left on device" in full["writing"].text
        assert findings(check_runs_folder, request("--runs-dir", tmp_path))["free space"].level == "FAIL"
        assert os.listdir(tmp_path) == ["fill"]


def test_a_disk_that_another_run_would_fill_is_a_warning(betons: Path, tmp_path: Path) -> None:
    """There is space for this run, but not for two."""
    with tmpfs_mounted(tmp_path, "150m"):
        found = findings(check_runs_folder, demo(betons, "--runs-dir", tmp_path))
        assert found["free space"].level == "WARN"
        assert "another run here may fill the disk" in found["free space"].text


def test_a_disk_without_inodes_is_a_failure(betons: Path, tmp_path: Path) -> None:
    """It has space, but not for as many files as a run has."""
    with tmpfs_mounted(tmp_path, "600m,nr_inodes=100"):
        found = findings(check_runs_folder, demo(betons, "--runs-dir", tmp_path))
        assert found["free space"].level == "OK"
        assert found["files"].level == "FAIL"
        assert found["files"].text.startswith("99 more files can be created, but a run needs about ")


def test_a_read_only_disk_is_a_failure(betons: Path, tmp_path: Path) -> None:
    """The message has the system's reason."""
    with tmpfs_mounted(tmp_path, "600m"):
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        found = findings(check_runs_folder, demo(betons, "--runs-dir", tmp_path / "runs"))
        assert found["writing"].level == "FAIL"
        assert found["writing"].text.endswith("Read-only file system")
        assert "save" not in found, "nothing was measured"


def test_a_folder_without_permission_or_that_is_a_file_is_a_failure(tmp_path: Path) -> None:
    """As root, setpriv drops the capabilities that ignore permissions."""
    (tmp_path / "file").touch()
    found = findings(check_runs_folder, request("--runs-dir", tmp_path / "file" / "runs"))
    assert found["runs folder"].text == f"{tmp_path / 'file'} is not a folder"
    (tmp_path / "theirs").mkdir(mode=0o555)
    command = [sys.executable, str(ROOT / "jobs" / "doctor.py"), "--runs-dir", str(tmp_path / "theirs")]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *command]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "FAIL  writing         cannot write to theirs: Permission denied\n" in done.stdout
    assert done.stdout.endswith("mend first: writing: cannot write to theirs: Permission denied\n")


def test_a_local_disk_is_a_warning_where_jobs_run_on_other_nodes(tmp_path: Path) -> None:
    """Without Slurm, a run is executed here, and a local disk is right."""
    of = request("--runs-dir", tmp_path)
    assert findings(check_runs_folder, of)["runs folder"].level == "OK"
    of.slurm = SlurmSettings({}, {}, [])
    found = findings(check_runs_folder, of)["runs folder"]
    assert found.level == "WARN"
    assert "a job fails unless its nodes mount it too" in found.text
    assert found.advice == "use a --runs-dir that all nodes share"


def test_a_save_that_takes_longer_than_a_stop_allows_is_a_failure(
    betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Estimated for ever larger models; ranks are killed 90 s after a stop signal."""
    levels = []
    for width, depth in ((768, 12), (16384, 16), (32768, 96)):
        model = ("--model.width", width, "--model.depth", depth, "--model.mlp_dim", 4 * width)
        monkeypatch.setattr(disk, "measure", lambda *_: disk.Speed(10e9, 10e9, 0.001, 0.0))  # the same on any machine
        levels.append(findings(check_runs_folder, demo(betons, *model, "--runs-dir", tmp_path))["save"])
    assert [finding.level for finding in levels] == ["OK", "WARN", "FAIL"], levels
    assert levels[2].text.endswith("each preemption would lose the steps since the last checkpoint")


def test_a_clock_that_differs_from_the_file_servers_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both directions."""
    real = time.time
    for ahead, word in ((100, "ahead of"), (-100, "behind")):
        monkeypatch.setattr(time, "time", lambda ahead=ahead: real() + ahead)
        found = findings(check_runs_folder, request("--runs-dir", tmp_path))["clock"]
        assert found.level == "WARN"
        assert f"this machine is 100 s {word} the clock of the file system" in found.text


def test_the_speed_is_that_of_the_disk(tmp_path: Path) -> None:
    """Within a second; a little disk is not filled."""
    begun = time.perf_counter()
    speed = measure(tmp_path, 10**9)
    assert time.perf_counter() - begun < 30, "a few times 0.4 s, also on a busy machine"
    assert speed.write is not None and speed.write > 1e5 and speed.read > 1e5 and speed.latency < 10
    assert abs(speed.skew) < 1
    assert measure(tmp_path, 100_000).write is None


def test_the_size_of_a_checkpoint_is_that_of_the_files() -> None:
    """Weights, two moments and the average; what is kept: the newest, the best, and one that is being written."""
    cfg = load_config(CONFIGS / "vit_b16.yaml")
    assert state_bytes(cfg) == 4 * 86_567_656 * (4 if cfg.optim.ema_decay else 3)
    need = needed(replace(cfg, epochs=300, checkpoint=replace(cfg.checkpoint, keep_every_epochs=100)), 1, 1)
    assert need.checkpoints == 2 + 2 + 3
