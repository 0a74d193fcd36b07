"""A run that was submitted in several sizes: the first job to start trains it, and hands over to a larger one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.waiting import wait_for
from vit.run.folder import Event, RunFolder


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


@campaign
def test_the_run_moves_to_more_nodes(case: Case, reference_weights: bytes) -> None:
    """From one core of one node to a core on each of two: only the first node of the larger job claims the run."""
    with busy_nodes(case, free_cores=1) as others, case.slowed(1.0):
        case.start("--nodes", "1-2", "--gpus", "1", "--min-gain", "0")
        jobs = [each["job"] for each in case.events("submitted")[-1]["candidates"]]
        case.slurm.call("scancel", *others)
        case.wait_until(lambda: case.events("started")[-1]["ranks"] == 2, "the start on two nodes")
    case.wait_until(case.run.finished, "the end of the run")
    assert [claim["size"]["nodes"] for claim in owners(case)] == [1, 2]
    assert case.start_steps()[-1] == case.stop_step() > 0
    wait_for(lambda: all(case.slurm.state(job) in ("COMPLETED", "CANCELLED") for job in jobs), "the jobs' end")
    assert case.weights() == reference_weights


@campaign
def test_each_run_of_a_sweep_has_jobs_of_its_own(case: Case, reference_weights: bytes) -> None:
    """Two arrays, of one and of four ranks: each run is trained by one of its jobs at a time, and none is left over."""
    with busy_nodes(case, free_cores=2) as others:
        done = case.submit("--sweep", "data.prefetch=2,3", "--gpus", "1,4", "--min-gain", "0")
        assert done.returncode == 0, done.stderr
        runs = [replace(case, run=RunFolder(case.run.path / f"prefetch={i}")) for i in (2, 3)]
        jobs = [each["job"] for run in runs for each in run.events("submitted")[-1]["candidates"]]
        assert len({job.partition("_")[0] for job in jobs}) == 2 and len(set(jobs)) == 4
        with runs[0].slowed(2.0), runs[1].slowed(2.0):  # else a move takes longer than it gains
            for run in runs:
                run.wait_until(lambda: run.steps_done() >= 3, "step 3")  # noqa: B023
                assert [claim["size"]["gpus"] for claim in owners(run)] == [1]
            case.slurm.call("scancel", *others)
            for run in runs:
                run.wait_until(lambda: run.events("started")[-1]["ranks"] == 4, "the start of four ranks")  # noqa: B023
    for run in runs:
        run.wait_until(run.run.finished, "the end of the run")
        assert run.weights() == reference_weights
    wait_for(lambda: all(case.slurm.state(job) in ("COMPLETED", "CANCELLED") for job in jobs), "the jobs' end")


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
