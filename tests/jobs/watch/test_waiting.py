"""What status.py advises if a job waits for something that does not come by itself."""

import json
import time
from pathlib import Path

import pytest

from jobs.slurm.tables import QueuedJob
from jobs.watch.run_status import status
from vit.run.folder import RunFolder


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("PartitionTimeLimit", "scancel 12, and submit again with a shorter --time"),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", "`sinfo -R`"),
        ("ReqNodeNotAvail, UnavailableNodes:n2", "--nodes 1-2"),
        ("PartitionDown", "another --partition"),
        ("JobHeldUser", "scontrol release 12"),
        ("job requeued in held state", "scontrol release 12"),  # as squeue prints it
        ("job_requeued_in_held_state", "scontrol release 12"),
    ],
)
def test_a_run_that_will_not_start_by_itself_says_what_to_do(reason: str, expected: str, tmp_path: Path) -> None:
    """The state keeps Slurm's words; the advice names the job."""
    run = RunFolder(tmp_path)
    run.record("submitted", job="12")
    row = status(run, {"12": QueuedJob("PENDING", reason, "", "N/A")})
    assert (row.state, row.detail) == ("queued", reason)
    assert expected in row.why


@pytest.mark.parametrize("reason", ["Resources", "Priority", "BeginTime", "Dependency", "QOSMaxGRESPerUser"])
def test_a_run_that_need_only_wait_has_no_advice(reason: str, tmp_path: Path) -> None:
    """Most runs wait for others to end."""
    run = RunFolder(tmp_path)
    run.record("submitted", job="12")
    assert status(run, {"12": QueuedJob("PENDING", reason, "", "N/A")}).why == ""


def test_a_suspended_run_has_no_time_left(tmp_path: Path) -> None:
    """Nobody knows when it goes on."""
    run = RunFolder(tmp_path)
    run.record("submitted", job="12")
    run.record("supervising", life="12.0")
    run.record("started", step=0)
    record = {"time": time.time(), "step": 8, "steps": 48, "epoch": 1.0, "epochs": 6.0, "seconds": {"step": 9.0}}
    run.metrics.write_text(json.dumps(record | {"loss": 2.0, "seconds_left": 99.0}) + "\n")
    rows = [status(run, {"12": QueuedJob(state, "None", "n1", "")}) for state in ("RUNNING", "SUSPENDED")]
    assert [row.detail for row in rows] == ["n1", "n1, suspended"]
    assert [row.ends is None for row in rows] == [False, True]
