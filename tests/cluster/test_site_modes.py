"""Clusters that are set up in other ways: what their users are told, and whether their runs end with the same bits."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.slurm.scontrol import config_of, has_accounting, largest_array
from tests.helpers.cluster_case import Case, campaign, new_case, own_cluster
from tests.helpers.paths import ROOT
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.slurm_config import NO_ACCOUNTING
from tests.helpers.waiting import wait_for
from vit.run.folder import RunFolder

NODES = "Nodes=n[1-2] PriorityTier=1 MaxTime=INFINITE State=UP"
SETTINGS = {**NO_ACCOUNTING, "KillWait": "5", "JobRequeue": "0", "SlurmctldParameters": None, "MaxArraySize": "3"}
PARTITIONS = (
    f"low {NODES} Default=YES PreemptMode=REQUEUE GraceTime=5",
    f"canceled {NODES} PreemptMode=CANCEL GraceTime=0",
    f"patient {NODES} PreemptMode=CANCEL GraceTime=5",
)
ENDED = {"PREEMPTED", "CANCELLED", "COMPLETED", "FAILED"}


@pytest.fixture(scope="module")
def strict() -> Iterator[Cluster]:
    """No accounting, no USR2 at a preemption, five seconds from TERM to KILL, no requeue by default, small arrays."""
    with own_cluster(SETTINGS, PARTITIONS) as cluster:
        yield cluster


@pytest.fixture
def site(strict: Cluster, betons: Path, tmp_path: Path) -> Iterator[Case]:
    """A new run on this cluster."""
    with new_case(strict, betons, tmp_path) as case:
        yield case


def doctor(case: Case, *options: str) -> str:
    """What doctor.py says about a run."""
    return case.says("doctor.py", "--config", str(ROOT / "configs" / "demo.yaml"), *case.options, *options)


@campaign
@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        ("low", "preempted by TERM, killed 10 s later (GraceTime 5 s + KillWait 5 s), and requeued by Slurm"),
        ("hasty", "preempted by TERM, killed 5 s later (only KillWait: GraceTime is 0), and requeued by Slurm"),
        ("patient", "and not requeued by Slurm (CANCEL): a run requeues itself within 5 s"),
    ],
)
def test_without_usr2_and_with_five_seconds_a_preempted_run_saves_and_goes_on(
    partition: str, expected: str, site: Case, reference_weights: bytes
) -> None:
    """The doctor names the time that is left; the same job goes on, although the site requeues none by default."""
    options = ("--gpus", "1", "--nodes", "2", "--partition", partition)
    found = doctor(site, *options)
    assert expected in found
    assert "jobs ask for it themselves" in found  # JobRequeue=0
    site.start(*options)
    site.preempt_and_finish()
    assert site.weights() == reference_weights


@campaign
def test_where_jobs_are_not_requeued_by_default_a_run_is(site: Case, reference_weights: bytes) -> None:
    """JobRequeue=0 is only a default: the job asks for requeues, by Slurm, by itself and by its user."""
    job = site.start("--gpus", "2")
    assert site.slurm.job(job)["Requeue"] == "1"
    site.requeue_and_finish()
    assert site.weights() == reference_weights


@campaign
def test_a_run_that_slurm_cancels_at_a_preemption_says_so_and_is_resumed_by_the_same_command(
    site: Case, reference_weights: bytes
) -> None:
    """The doctor warns of it; status and the output of the job say what happened, and what to do."""
    options = ("--gpus", "2", "--partition", "canceled")
    assert "not requeued (CANCEL): the run ends there until you submit the same command again" in doctor(site, *options)
    job = site.start(*options)
    with site.slowed():
        site.preempt()
        wait_for(lambda: site.events("preempted"), "the record of the preemption", 60)
    wait_for(lambda: site.slurm.state(job) in ENDED, "the end of the job", 60)
    shown = site.status()
    assert f"stopped, job {job}" in shown
    assert f"Slurm preempted job {job} and canceled it (PreemptMode=CANCEL): the same command resumes the run" in shown
    assert f"Slurm preempted job {job} and canceled it; submit the same command to resume" in site.job_output()
    assert site.submit(*options).returncode == 0
    site.finish()
    assert "preempted" in site.status().partition("attempts")[2].partition("time")[0]
    assert site.start_steps() == [0, site.stop_step()]
    assert site.weights() == reference_weights


@campaign
def test_without_accounting_all_commands_work_and_say_what_is_unknown(site: Case, reference_weights: bytes) -> None:
    """sacct and sacctmgr fail there: estimate, doctor, several sizes, status and report need neither."""
    assert (
        "Slurm accounting storage is disabled"
        in subprocess.run(
            ["sacct"], env=os.environ | site.slurm.environment, capture_output=True, text=True, check=False
        ).stderr
    )
    site.run.path.parent.mkdir()
    found = doctor(site, "--gpus", "1-2")
    assert "OK limits this cluster has no accounting, so no limits of accounts" in found
    estimated = site.submit("--gpus", "1-2", "--estimate")
    assert estimated.returncode == 0, estimated.stderr
    assert "1 x 2" in estimated.stdout
    assert site.submit("--gpus", "1-2").returncode == 0
    site.wait_until(site.run.finished, "the end of the run")
    assert f"{site.run.path}: " in site.status()
    assert "report.html" in site.says("report.py", str(site.run.path))
    assert site.weights() == reference_weights
    wait_for(lambda: not site.slurm.call("squeue", "-h"), "both jobs to end", 60)


def test_a_sweep_that_is_larger_than_a_job_array_is_submitted_as_several(site: Case) -> None:
    """Four runs where an array has three at most; --max-parallel is refused, which would be two limits."""
    slurm = site.slurm
    assert largest_array(config_of(slurm.call("scontrol", "show", "config"))) == 3
    sweep = ("--gpus", "1", "--sweep", "seed=0,1,2,3", "--sbatch", "begin=now+1hour")
    refused = site.submit(*sweep, "--max-parallel", "2")
    assert refused.returncode == 2
    assert "this cluster allows up to 3 runs in one (MaxArraySize), but the sweep has 4" in refused.stderr
    assert not site.run.path.exists()
    assert "2 job arrays of up to 3 runs (MaxArraySize)" in site.submit(*sweep, "--dry-run").stdout
    done = site.submit(*sweep)
    assert done.returncode == 0, done.stderr
    assert "submitted 4 runs" in done.stdout
    runs = [RunFolder(site.run.path / f"seed={seed}") for seed in range(4)]
    jobs = [str((run.last("submitted") or {})["job"]) for run in runs]
    array, alone = jobs[0].partition("_")[0], jobs[3]
    assert jobs == [f"{array}_0", f"{array}_1", f"{array}_2", alone]
    assert f"scancel {array} {alone};" in done.stdout
    assert sorted(slurm.call("squeue", "-h", "-r", "-o", "%i").split()) == sorted(jobs)
    assert "4 runs, 0 complete, 4 already in the queue" in site.submit(*sweep).stdout
    slurm.call("scancel", array)
    again = site.submit(*sweep)  # three fit into one array
    assert "submitted 3 runs" in again.stdout
    assert (runs[3].last("submitted") or {})["job"] == alone


def test_max_array_tasks_limits_an_array_too() -> None:
    """A site may set it below MaxArraySize; a cluster of 0 has no arrays, and a word is no limit."""
    assert largest_array({"MaxArraySize": "1001", "SchedulerParameters": "bf_interval=1,max_array_tasks=5"}) == 5
    assert largest_array({"MaxArraySize": "0"}) == 0
    assert largest_array({"MaxArraySize": "(null)"}) is None


def test_accounting_is_known_to_be_off_in_the_words_of_each_version() -> None:
    """Slurm 22.05 says `accounting_storage/none`, 25.11 `(null)`."""
    for off in ("accounting_storage/none", "(null)"):
        assert not has_accounting({"AccountingStorageType": off})
    assert has_accounting({"AccountingStorageType": "accounting_storage/slurmdbd"})


@campaign
def test_a_time_limit_over_that_of_the_partition_is_refused_or_explained(site: Case, reference_weights: bytes) -> None:
    """At the submission; and in status, if the partition's limit is lowered while the job waits."""
    slurm, short = site.slurm, ("--gpus", "2", "--partition", "short", "--time")
    refused = site.submit(*short, "1:00:00")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "the limit of partition short is 30 minutes; use --time 30" in refused.stderr
    site.run.path.parent.mkdir(exist_ok=True)
    assert "FAIL request --time 1:00:00: the limit of partition short is 30 minutes" in doctor(site, *short, "1:00:00")
    other = slurm.call(
        "sbatch", "--parsable", "-p", "high", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 600"
    )
    assert site.submit(*short, "0:30:00").returncode == 0
    slurm.call("scontrol", "update", "PartitionName=short", "MaxTime=10")
    try:
        slurm.call("scancel", other)
        wait_for(lambda: slurm.job(site.job).get("Reason") == "PartitionTimeLimit", "the reason of the job", 60)
        shown = site.status()
        assert "queued (PartitionTimeLimit)" in shown
        assert f"scancel {site.job}, and submit again with a shorter --time" in shown
        slurm.call("scancel", site.job)
        assert site.submit(*short, "0:10:00").returncode == 0
        site.finish()
    finally:
        slurm.call("scontrol", "update", "PartitionName=short", "MaxTime=30")
    assert site.weights() == reference_weights


@campaign
def test_a_run_goes_on_while_a_node_drains_and_saves_when_the_node_goes_down(
    site: Case, reference_weights: bytes
) -> None:
    """It then waits for the node, and status says what it waits for."""
    slurm, job = site.slurm, site.start("--gpus", "1", "--nodes", "2")
    with site.slowed():
        slurm.call("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=fan")
        before = site.steps_done()
        site.wait_until(lambda: site.steps_done() > before + 2, "more steps on a node that drains")
        slurm.call("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=fan")
        site.wait_until(lambda: site.events("stopped"), "the save")
    try:
        site.wait_until(lambda: slurm.state(job) == "PENDING", "the requeue", 60)
        time.sleep(7)  # until Slurm has tried to start it again, and knows why it cannot
        assert "`sinfo -R`" in site.status()
        assert "only 1 of the nodes of low can be used" in doctor(site, "--gpus", "1", "--nodes", "2")
    finally:
        slurm.call("scontrol", "update", "NodeName=n2", "State=RESUME")
    site.finish()
    assert site.job == job
    assert site.start_steps() == [0, site.stop_step()]
    assert site.weights() == reference_weights
