"""What a job does when its folder cannot be read."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.node.slurm_job import REQUEUED
from tests.helpers.paths import ROOT

# The errors are raised by the supervisor's own reads; their errno cannot be had from a real disk here.
JOB = """
import sys
from pathlib import Path
import jobs.node.supervisor as supervisor
from jobs.node.train_job import TrainJob

def fail(*_):
    raise OSError({number}, "unreadable", "ledger.jsonl")

supervisor.supervise = fail
TrainJob(run=sys.argv[1], nodes=1, gpus=1, health=False)()
"""


@pytest.mark.parametrize(
    ("number", "executor", "code"),
    [(errno.ESTALE, "slurm", REQUEUED), (errno.ENOENT, "slurm", 1), (errno.ESTALE, "local", 1)],
)
def test_a_job_is_requeued_if_its_disk_stays_unreadable(tmp_path: Path, number: int, executor: str, code: int) -> None:
    """But not if a file is missing: a requeue would not help; and a run on this machine has no queue."""
    environment = os.environ | {"SUBMITIT_EXECUTOR": executor, "SLURM_JOB_ID": "4711", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", JOB.format(number=number), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr
    assert "unreadable: 'ledger.jsonl'" in done.stderr
