"""A run that was submitted in several sizes: the first job to start trains it, and hands over to a larger one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.helpers.cluster_case import Case
from tests.helpers.waiting import wait_for
from vit.run.folder import Event


@contextmanager
def busy_nodes(case: Case, free_cores: int) -> Iterator[list[str]]:
    """Other jobs that leave so many cores of the first node, and none of the second one."""
    jobs = []
    for node, cores in (("n1", 16 - free_cores), ("n2", 16)):
        options = ("--nodelist", node, "--cpus-per-task", str(cores), "--output", "/dev/null", "--wrap", "sleep 1000")
        jobs.append(case.slurm.call("sbatch", "--parsable", "--partition", "low", *options).strip())
    wait_for(lambda: all(case.slurm.state(job) == "RUNNING" for job in jobs), "the nodes to be busy")
    try:
        yield jobs
    finally:
        case.slurm.call("scancel", *jobs, check=False)


def candidates(case: Case) -> dict[int, str]:
    """The jobs of the run, by their number of ranks."""
    return {each["gpus"]: each["job"] for each in case.events("submitted")[-1]["candidates"]}


def owners(case: Case) -> list[Event]:
    """The claims, oldest first."""
    return [json.loads(file.read_text()) for file in sorted(case.run.path.glob("owners/??????.json"))]


def test_the_run_starts_on_what_is_free_and_moves_to_more(case: Case, reference_weights: bytes) -> None:
    """One core is free, then all: the job of one rank hands over to that of four; bits are those of a fixed run."""
    with busy_nodes(case, free_cores=1) as others, case.slowed(1.0):
        case.start("--gpus", "1-4", "--min-gain", "0")
        jobs = candidates(case)
        assert list(jobs) == [1, 2, 4]
        assert [claim["size"]["job"] for claim in owners(case)] == [jobs[1]]
        case.slurm.call("scancel", *others)
        case.wait_until(lambda: case.events("handover"), "the handover")
        case.wait_until(lambda: case.events("started")[-1]["ranks"] == 4, "the start of four ranks")
    case.wait_until(case.run.finished, "the end of the run")
    assert [e["ranks"] for e in case.events("started")] in ([1, 4], [1, 2, 4])
    assert case.start_steps()[-1] == case.stop_step() > 0  # no step was lost
    wait_for(lambda: all(case.slurm.state(job) in ("COMPLETED", "CANCELLED") for job in jobs.values()), "the jobs' end")
    assert case.weights() == reference_weights


def test_of_jobs_that_start_together_the_largest_trains(case: Case, reference_weights: bytes) -> None:
    """On idle nodes: no start of a smaller one is lost, and the others go back to the queue until the end."""
    case.start("--gpus", "1-4")
    jobs = candidates(case)
    case.wait_until(case.run.finished, "the end of the run")
    assert [e["ranks"] for e in case.events("started")] == [4]
    assert [claim["size"]["job"] for claim in owners(case)] == [jobs[4]]
    wait_for(lambda: all(case.slurm.state(job) in ("COMPLETED", "CANCELLED") for job in jobs.values()), "the jobs' end")
    assert case.weights() == reference_weights


def test_one_cancel_ends_all(case: Case) -> None:
    """The run stops with its owner, and the jobs that wait are canceled too; the same command resumes it."""
    with busy_nodes(case, free_cores=2), case.slowed():
        case.start("--gpus", "1-4")
        jobs = candidates(case)
        case.slurm.call("scancel", owners(case)[-1]["size"]["job"])
        wait_for(lambda: all(case.slurm.state(job) == "CANCELLED" for job in jobs.values()), "the jobs' end", 60)
    assert len(case.events("stopped")) == 1
    done = case.submit("--gpus", "1-4")
    assert done.returncode == 0, done.stderr
    case.wait_until(case.run.finished, "the end of the run")
    assert case.start_steps()[-1] == case.stop_step()
