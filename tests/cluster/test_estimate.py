"""`submit.py --estimate` on a real Slurm: when each size could start, and what a preemption leaves."""

import re
import time

from tests.helpers.cluster_case import Case
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.waiting import wait_for


def test_the_queue_is_asked_for_each_size_and_nothing_is_submitted(case: Case, slurm: Cluster) -> None:
    """While other jobs use all GPUs but two of one node, larger sizes must wait until these jobs end."""
    hold = ("--parsable", "--partition", "low", "--ntasks", "1", "--time", "30", "--wrap", "sleep 600")
    jobs = [slurm.call("sbatch", *hold, "--nodelist", "n1", "--gpus-per-node", "4")]
    jobs += [slurm.call("sbatch", *hold, "--nodelist", "n2", "--gpus-per-node", "2")]
    wait_for(lambda: all(slurm.state(job) == "RUNNING" for job in jobs), "the other jobs to run")
    begun = time.monotonic()
    done = case.submit("--gpus", "4", "--device", "auto", "--estimate")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert time.monotonic() - begun < 30, "a second or two on a machine that is not busy"
    rows = {row[1]: row for row in re.findall(r"^(>| ) +(\d x \d+) +([\d,.]+) +.*  (\S.*)$", done.stdout, re.MULTILINE)}
    assert list(rows) == ["1 x 1", "1 x 2", "1 x 4"] and rows["1 x 4"][0] == ">", done.stdout
    assert rows["1 x 1"][3] == rows["1 x 2"][3] == "now"
    wait = re.match(r"in (\d+) min, \w{3} \d\d:\d\d", rows["1 x 4"][3])
    assert wait and 20 <= int(wait[1]) <= 31, "as long as the time limit of the others"
    assert "GraceTime 20 s + KillWait 10 s" in done.stdout and "enough" in done.stdout
    assert sorted(slurm.call("squeue", "--noheader", "--format=%i").split()) == sorted(jobs)
    assert not case.run.path.parent.exists() or not any(case.run.path.parent.iterdir())


def test_a_submission_on_slurm_stores_its_estimate_before_the_job(case: Case) -> None:
    """And a request that Slurm refuses leaves no estimate behind."""
    refused = case.submit("--gpus", "2", "--sbatch", "dependency-of-nothing=1")
    assert refused.returncode != 0 and not case.run.ledger.exists()
    done = case.submit("--gpus", "2", "--sbatch", "hold")
    assert done.returncode == 0, done.stderr
    estimated, submitted = (event for event in case.run.events() if event["event"] != "accepted")
    assert (estimated["event"], submitted["event"]) == ("estimated", "submitted")
    assert (estimated["steps"], estimated["nodes"], estimated["gpus"]) == (48, 1, 2)


def test_all_sizes_that_are_submitted_are_estimated_and_stored(case: Case) -> None:
    """Only these, each with its time in the queue; the ledger has one estimate for each job."""
    done = case.submit("--gpus", "1-4", "--device", "auto", "--estimate")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^ +(\d x \d+) .* now$", done.stdout, re.MULTILINE) == ["1 x 1", "1 x 2", "1 x 4"]
    done = case.submit("--gpus", "1-2", "--sbatch", "begin=now+1hour")
    assert done.returncode == 0, done.stderr
    estimated, submitted = (event for event in case.run.events() if event["event"] != "accepted")
    assert [size["gpus"] for size in estimated["sizes"]] == [2, 1] and estimated["gpus"] == 2
    assert len(submitted["candidates"]) == 2
