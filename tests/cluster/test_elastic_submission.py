"""A run that is submitted in several sizes, on a real Slurm: one job for each; none starts before all are recorded."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from jobs.node.candidates import candidates
from tests.helpers.cluster_case import Case
from tests.helpers.local_runs import STATUS
from tests.helpers.waiting import wait_for
from vit.run.folder import RunFolder

SIZES = ("--gpus", "1-4")


@pytest.fixture
def waiting(case: Case) -> Iterator[Case]:
    """A run whose jobs stay pending."""
    case.slurm.call("scontrol", "update", "partition=low", "state=down")
    yield case
    case.slurm.call("scontrol", "update", "partition=low", "state=up")


def queue(case: Case, form: str = "%i") -> list[str]:
    """A line about each job in the queue."""
    return case.slurm.call("squeue", "--noheader", "--array", "--sort=i", f"--format={form}").split()


def recorded(run: RunFolder) -> list[tuple[str, int]]:
    """The jobs of the newest submission, with their sizes."""
    return [(each.job, each.ranks) for each in candidates(run.events())]


def test_a_range_is_submitted_as_one_job_for_each_size(waiting: Case) -> None:
    """They are recorded and not held; the same command again names them, as do status.py and the line to stop them."""
    done = waiting.submit(*SIZES, "--min-gain", "7.5", "--exclude-slow")
    assert done.returncode == 0, done.stderr
    jobs = queue(waiting)
    assert recorded(waiting.run) == list(zip(jobs, [1, 2, 4], strict=True))
    assert f"stop    scancel {' '.join(jobs)}" in done.stdout
    assert queue(waiting, "%i:%C:%D") == [f"{job}:{gpus}:1" for job, gpus in zip(jobs, (1, 2, 4), strict=True)]
    assert not {"JobHeldUser", "JobHeldAdmin"} & {*queue(waiting, "%r")}
    again = waiting.submit(*SIZES)
    assert again.returncode == 1
    assert f"is already in the queue.\n  jobs    {' '.join(jobs)}" in again.stderr
    environment = os.environ | waiting.slurm.environment
    command = [*STATUS, str(waiting.run.path), "--json"]
    row = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert (row["state"], [each["job"] for each in row["candidates"]]) == ("queued", jobs)
    waiting.slurm.call("scancel", *jobs)
    assert waiting.submit(*SIZES).returncode == 0
    assert len(queue(waiting)) == 3 and not {*queue(waiting)} & {*jobs}


def test_the_dry_run_lists_all_sizes_and_what_differs_in_their_scripts(waiting: Case) -> None:
    """Those that the partition cannot run are left out, and named; nothing is submitted."""
    done = waiting.submit("--nodes", "1-2", "--gpus", "1-64", "--dry-run", "--global_batch", "1024")
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "# 6 jobs, one for each size" in out
    assert "not submitted for 64 GPUs: --cpus-per-gpu 1: needs 32 cores, nodes of partition low have at most 16" in out
    assert "#   1 node: 16 ranks, 4 micro-batches each; the bits of 1 rank" in out
    assert out.count("#!/bin/bash") == 1
    assert "# job script for 16 GPUs" in out
    assert queue(waiting) == []
    assert not waiting.run.path.exists()


def test_a_command_that_is_killed_between_the_calls_of_sbatch_leaves_only_jobs_that_cannot_start(
    case: Case, tmp_path: Path
) -> None:
    """Although the nodes are idle; the next command cancels them, and submits all sizes."""
    slow = tmp_path / "slow"
    slow.mkdir()
    real = case.slurm.call("sh", "-c", "command -v sbatch").strip()
    (slow / "sbatch").write_text(
        f'#!/bin/sh\n[ ! -e {slow}/first ] || exec sleep 600\ntouch {slow}/first\nexec {real} "$@"\n'
    )
    (slow / "sbatch").chmod(0o755)
    path = f"{slow}:{case.slurm.environment.get('PATH', os.environ['PATH'])}"
    killed = replace(case, command=("env", f"PATH={path}", *case.command)).popen(*SIZES)
    wait_for(
        lambda: [p for p in psutil.Process(killed.pid).children(recursive=True) if "sleep" in p.name()], "2nd sbatch"
    )
    (first,) = queue(case)
    processes = [*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)]
    for process in processes:
        process.kill()
    killed.communicate()
    time.sleep(3)  # the scheduler would start it within a second
    assert queue(case, "%i:%T:%r") == [f"{first}:PENDING:JobHeldUser"]
    assert not case.events("submitted")
    case.slurm.call("scontrol", "update", "partition=low", "state=down")
    try:
        done = case.submit(*SIZES)
        assert done.returncode == 0, done.stderr
        assert [job for job, _ in recorded(case.run)] == queue(case)
        assert first not in queue(case)
    finally:
        case.slurm.call("scontrol", "update", "partition=low", "state=up")


def test_a_sweep_is_one_array_for_each_size(waiting: Case) -> None:
    """One of its runs is stopped by its own line, and submitted again alone."""
    sweep = (*SIZES, "--sweep", "seed=0,1")
    done = waiting.submit(*sweep)
    assert done.returncode == 0, done.stderr
    runs = [RunFolder(waiting.run.path / f"seed={seed}") for seed in (0, 1)]
    arrays = [job.partition("_")[0] for job, _ in recorded(runs[0])]
    assert f"stop    scancel {' '.join(arrays)}; one of the runs: scancel " in done.stdout
    assert recorded(runs[1]) == [(f"{array}_1", ranks) for array, ranks in zip(arrays, (1, 2, 4), strict=True)]
    assert sorted(queue(waiting)) == sorted(job for run in runs for job, _ in recorded(run))
    assert "2 runs, 0 complete, 2 already in the queue" in waiting.submit(*sweep).stdout
    waiting.slurm.call("scancel", *(job for job, _ in recorded(runs[1])))
    assert "2 runs, 0 complete, 1 already in the queue" in waiting.submit(*sweep).stdout
    assert not {job.partition("_")[0] for job, _ in recorded(runs[1])} & {*arrays}


def test_all_sizes_wait_for_the_preparation(waiting: Case, jpegs: Path, tmp_path: Path) -> None:
    """Each has the dependency, and none is held."""
    file = tmp_path / "small.yaml"
    file.write_text(
        f"small: {{source: imagefolder, path: {jpegs.parent / 'images'}, out: {tmp_path}/data/small.beton}}\n"
    )
    done = waiting.submit(*SIZES, "--prep", str(file))
    assert done.returncode == 0, done.stderr
    preparation, *jobs = queue(waiting)
    assert [job for job, _ in recorded(waiting.run)] == jobs
    assert queue(waiting, "%E") == ["(null)", *[f"afterok:{preparation}(unfulfilled)"] * 3]
