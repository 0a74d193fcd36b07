"""What status.py says of a run that was submitted in several sizes."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from jobs.slurm.tables import QueuedJob
from jobs.watch.colors import plain
from jobs.watch.details import with_history
from jobs.watch.run_page import run_page
from jobs.watch.run_status import Status, newest_jobs, status
from jobs.watch.table import state
from jobs.watch.words import NONE
from vit.run.folder import RunFolder

SIZES = [{"job": job, "nodes": 1, "gpus": gpus, "gpu_type": ""} for job, gpus in (("12", 4), ("13", 2), ("14", 1))]
LATER = "2026-11-28T05:43:05"


def pending(reason: str = "Resources", starts: str = "N/A") -> QueuedJob:
    return QueuedJob("PENDING", reason, "", starts)


def running(nodes: str, state: str = "RUNNING") -> QueuedJob:
    return QueuedJob(state, "None", nodes, "2026-11-28T05:00:00")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that was submitted in three sizes."""
    run = RunFolder(tmp_path / "runs" / "run")
    run.path.mkdir(parents=True)
    run.record("submitted", job="12", candidates=SIZES)
    return run


def page(run: RunFolder, row: Status) -> str:
    return plain("\n".join(run_page(*with_history(row, run), 120)))


def test_while_all_jobs_are_pending_the_run_is_queued(run: RunFolder) -> None:
    """With the reasons of all of them, once each."""
    row = status(run, {"12": pending(), "13": pending(), "14": pending("Priority")})
    assert state(row) == "queued (1-4 GPUs: Resources, Priority)"
    assert newest_jobs(run) == ["12", "13", "14"]


def test_a_run_is_running_if_any_of_its_jobs_runs(run: RunFolder) -> None:
    """The state has its size, and the larger ones that would take over; smaller and deferred ones are left out."""
    run.record("supervising", life="13.0", node="n1")
    row = status(run, {"12": pending(), "13": running("n1"), "14": pending("BeginTime", LATER)})
    assert state(row) == "running (n1, 2 of 1-4 GPUs; 4 pending (Resources))"
    assert row.job == "13"
    deferred = status(run, {"12": pending("BeginTime", LATER), "13": running("n1"), "14": pending()})
    assert state(deferred) == "running (n1, 2 of 1-4 GPUs)"


def test_a_larger_job_that_has_started_takes_over(run: RunFolder) -> None:
    """Until it trains, the smaller one is the one that is told first."""
    run.record("supervising", life="13.0", node="n1")
    both = {"12": running("n2"), "13": running("n1", "COMPLETING"), "14": pending()}
    assert state(status(run, both)) == "running (n1, completing, 2 of 1-4 GPUs; 4 takes over)"
    run.record("supervising", life="12.0", node="n2")
    assert state(status(run, both)) == "running (n2, 4 of 1-4 GPUs; 2 starting)"


def test_a_run_between_two_jobs_is_requeued_and_a_finished_one_is_finished(run: RunFolder) -> None:
    """Although its other jobs are still in the queue for a moment, until they are canceled."""
    run.record("supervising", life="13.0", node="n1")
    jobs = {"12": pending(), "13": pending("BeginTime", LATER)}
    assert status(run, jobs).state == "requeued"
    run.record("finished", step=1, val_top1=0.5, val_top5=0.9)
    assert status(run, jobs).state == "finished"
    assert status(run, {}).state == "finished"


def test_a_run_whose_jobs_were_canceled_before_any_trained_is_stopped(run: RunFolder) -> None:
    """The job that found it out has recorded it."""
    run.record("canceled", job="13", life="12.0")
    run.record("withdrawn", jobs=["13", "14"], why="job 13 was canceled")
    row = status(run, {})
    assert (row.state, row.why) == ("stopped", "job 13 was canceled")


def test_the_page_of_the_run_lists_all_jobs(run: RunFolder) -> None:
    """With size, state, reason, and when a deferred one may start."""
    run.record("supervising", life="13.0", node="n1")
    row = status(run, {"12": pending("BeginTime", LATER), "13": running("n1")})
    lines = page(run, row).split("candidates\n")[1].split("\n\n")[0].splitlines()
    assert [line.split() for line in lines] == [
        ["job", "size", "state", "where", "or", "why", "may", "start"],
        ["12", "4", "GPUs", "pending", "BeginTime", "2026-11-28", "05:43:05"],
        ["13", "2", "GPUs", "running,", "trains", "n1", NONE],
        ["14", "1", "GPU", "ended", NONE, NONE],
    ]
    values = json.loads(json.dumps(asdict(row)))["candidates"]
    assert [(each["job"], each["state"], each["owns"]) for each in values] == [
        *(("12", "pending", False), ("13", "running", True), ("14", "ended", False))
    ]


def test_if_slurm_does_not_answer_the_states_are_unknown(run: RunFolder) -> None:
    """All jobs are named."""
    row = status(run, None)
    assert (row.state, row.detail) == ("unknown", "job 12 13 14")
    assert {each.state for each in row.candidates} == {"unknown"}


@pytest.mark.parametrize(
    ("sizes", "detail"),
    [
        ([(1, 4, "a100"), (1, 2, "v100")], "n1, 4 a100 GPUs; 2 v100 starting"),
        ([(2, 4, ""), (1, 4, "")], "n1, 8 of 4-8 GPUs on 1-2 nodes; 4 starting"),
        ([(1, 4, ""), (2, 4, "")], "n1, 4 of 4-8 GPUs on 1-2 nodes; 2 x 4 takes over"),
    ],
)
def test_nodes_and_types_of_gpus_are_told(run: RunFolder, sizes: list[tuple[int, int, str]], detail: str) -> None:
    """Where they differ."""
    names = ("nodes", "gpus", "gpu_type")
    jobs = [{"job": str(20 + i), **dict(zip(names, size, strict=True))} for i, size in enumerate(sizes)]
    run.record("submitted", job="20", candidates=jobs)
    run.record("supervising", life="20.0")
    assert status(run, {"20": running("n1"), "21": running("n2")}).detail == detail


@pytest.mark.parametrize("damaged", ["x", [1, "2"], [{"job": "12"}], [{"gpus": 4, "nodes": 1}], {"job": 3}])
def test_a_damaged_submission_is_shown_as_far_as_it_is_known(run: RunFolder, damaged: object) -> None:
    """By its first job."""
    run.record("submitted", job="12", candidates=damaged)
    assert state(status(run, {"12": pending()})) == "queued (Resources)"
