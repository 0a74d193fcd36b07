"""NCCL's record of its last operations is written when a rank stalls, wherever the run folder is."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jobs.node.flight_recorder import pipes
from tests.helpers.disks import tmpfs_mounted
from tests.helpers.paths import ROOT
from vit.config.schema import Config, to_yaml
from vit.run.dump_pipe import PIPE_VARIABLE, request_dump
from vit.run.folder import RunFolder

SUPERVISOR = """
import sys
from jobs.node import elastic_agent
from jobs.node.job_spec import JobSpec
from jobs.node.supervisor import supervise
elastic_agent.MODULE = "stalled_rank"
supervise(JobSpec(run=sys.argv[1], nodes=1, gpus=1, stall_seconds=1, restarts=0))
"""
# Does what torch does in a rank on a GPU that hangs: it waits at its pipe, and writes the record on request.
RANK = """
import os, time
from pathlib import Path
from vit.run.heartbeat import Heartbeat

def main(arguments):
    rank, logs = os.environ["RANK"], Path(arguments[-1]) / "logs"
    pipe = os.environ["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"] + rank + ".pipe"
    os.mkfifo(pipe)
    file = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    heartbeat = Heartbeat(logs)
    for _ in range(3):
        heartbeat.beat("step")
    while not os.read(file, 1):
        time.sleep(0.05)
    Path(os.environ["TORCH_FR_DUMP_TEMP_FILE"] + rank).write_text(pipe)
    time.sleep(100)
"""


def test_a_stalled_rank_writes_its_record_although_the_run_folder_takes_no_pipe(tmp_path: Path) -> None:
    """It may be on a file system that has none: the pipe through which a rank is asked is on a disk of the node."""
    run = RunFolder(tmp_path / "run")
    (run.logs / "flight-0.pipe").mkdir(parents=True)  # no pipe can have this name
    run.config.write_text(to_yaml(Config(device="cpu")))
    (tmp_path / "stalled_rank.py").write_text(RANK)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-c", SUPERVISOR, str(run.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert "rank 0 on" in done.stderr, done.stderr
    assert "stalled for" in done.stderr, done.stderr
    pipe = Path((run.logs / "flight-0").read_text())
    assert not pipe.is_relative_to(run.path)
    assert not pipe.parent.exists(), "it is removed at the end of the attempt"


def test_a_full_disk_for_temporary_files_is_not_used_for_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one of the node is."""
    monkeypatch.delenv(PIPE_VARIABLE, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with tmpfs_mounted(tmp_path, "1m,nr_inodes=2"), pipes():  # of the mounted folder itself, and of one more
        folder = Path(os.environ[PIPE_VARIABLE]).parent
        assert not folder.is_relative_to(tmp_path)
        os.mkfifo(f"{os.environ[PIPE_VARIABLE]}3.pipe")
    assert not folder.exists()
    assert PIPE_VARIABLE not in os.environ


def test_ranks_have_no_pipe_where_no_disk_takes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run all the same, and nobody asks them."""
    monkeypatch.delenv(PIPE_VARIABLE, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("jobs.node.flight_recorder.PARENTS", (str(tmp_path / "missing"),))
    with tmpfs_mounted(tmp_path, "1m,nr_inodes=1"), pipes():
        assert PIPE_VARIABLE not in os.environ
        assert not request_dump(0)


def test_ranks_have_no_pipe_on_a_node_without_a_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python raises an error where it can write to none."""
    monkeypatch.delenv(PIPE_VARIABLE, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    monkeypatch.setattr("jobs.node.flight_recorder.PARENTS", (str(tmp_path / "missing"),))
    with pipes():
        assert PIPE_VARIABLE not in os.environ


KILLED = """
import os, signal
from jobs.node.flight_recorder import pipes
with pipes():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_folder_of_a_killed_supervisor_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not the folder of one that lives."""
    monkeypatch.delenv(PIPE_VARIABLE, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False).returncode == -9
    (abandoned,) = tmp_path.iterdir()
    with pipes():
        assert not abandoned.exists()
        (first,) = tmp_path.iterdir()
        monkeypatch.delenv(PIPE_VARIABLE)
        with pipes():
            assert len([*tmp_path.iterdir()]) == 2
            assert first.exists()
    assert [*tmp_path.iterdir()] == []
