"""Faults in a run of several sizes: it has one owner at a time, and ends with the bits of a run of a fixed size."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import psutil
import pytest

from tests.cluster.test_full_disk import fill
from tests.helpers.background_load import CORES, NAME, LoadJob, submit
from tests.helpers.cluster_case import Case, campaign
from tests.helpers.disks import tmpfs_mounted
from tests.helpers.elastic_case import ElasticCase, Observer
from tests.helpers.slow_checkout import slow_checkout
from tests.helpers.waiting import wait_for

RANK_SECONDS = 2.0  # a step takes this long on one rank, and a quarter of it on four
SIZES = ("--gpus", "1-4", "--min-gain", "0", "--max-same-step", "9", "--checkpoint.every_minutes", "0.02", *CORES)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source with slow steps."""
    return slow_checkout(tmp_path_factory.mktemp("slow"), RANK_SECONDS)


@pytest.fixture
def elastic(case: Case, checkout: Path) -> Iterator[ElasticCase]:
    """A run with steps that are slow on few ranks; nobody ever saw ranks of two jobs at the same time."""
    elastic = ElasticCase(case.slurm, case.run, case.options).with_source(checkout)
    with Observer(elastic).watching() as observer:
        yield elastic
    assert not observer.found
    assert observer.owners


def occupy(case: ElasticCase, free: int) -> None:
    """Other users take all GPUs but so many of the second node."""
    submit(case.slurm, LoadJob(0, 4, 1000, "n1"))
    if free < 4:
        submit(case.slurm, LoadJob(0, 4 - free, 1000, "n2"))
    running = ("squeue", "-h", "-n", NAME, "-t", "RUNNING", "-o", "%i")
    wait_for(lambda: len(case.slurm.call(*running).split()) == (2 if free < 4 else 1), "the nodes to be busy")


def make_room(case: ElasticCase) -> None:
    """Ends the jobs of other users."""
    case.slurm.call("scancel", "--name", NAME)


def start_small(case: ElasticCase) -> None:
    """The run trains on one GPU, because no more are free."""
    occupy(case, free=1)
    case.start(*SIZES)
    assert case.trains_on() == 1


def waits_behind(case: ElasticCase, job: str) -> bool:
    """Whether a requeued job waits behind the larger ones of its run, for which Slurm keeps the GPUs.

    Priorities of priority/multifactor depend on age, which a requeue resets; if equal, the job submitted last waits.
    """
    if "priority/multifactor" not in case.slurm.call("scontrol", "show", "config"):
        return False
    facts = case.slurm.job(job)
    return facts["JobState"] == "PENDING" and facts["Reason"] == "Priority"


def finish_large(case: ElasticCase, reference_weights: bytes) -> None:
    """All GPUs become free: the run moves to four, and ends with the bits of the reference run."""
    make_room(case)
    case.finish()
    assert case.trains_on() > 1
    assert case.weights() == reference_weights


def job_processes(case: ElasticCase, job: str) -> list[psutil.Process]:
    """The supervisor, the fork server and the ranks of a job."""
    out = []
    for process in case.processes(""):
        with suppress(psutil.Error):
            if process.environ().get("SLURM_JOB_ID") == job and process.name() != "slurmstepd":
                out.append(process)
    return out


def kill_all(case: ElasticCase, job: str) -> None:
    """SIGKILL of all processes of a job."""
    for process in job_processes(case, job):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def kill_supervisor(case: ElasticCase, job: str) -> None:
    """SIGKILL of a job's supervisor."""
    for process in case.supervisors():
        with suppress(psutil.Error):
            if process.environ().get("SLURM_JOB_ID") == job:
                process.kill()


def restart_controller(case: ElasticCase, _: str) -> None:
    """SIGKILL of slurmctld; it comes back after some seconds."""
    case.slurm.daemon("slurmctld").kill()
    time.sleep(5)
    case.slurm.restart("slurmctld")
    wait_for(case.slurm.responds, "Slurm to respond")


def lose_node(case: ElasticCase, job: str) -> None:
    """All processes of the job's node are killed; the node comes back when Slurm has noticed."""
    node = case.slurm.job(job)["BatchHost"]
    case.slurm.kill_node(node)
    wait_for(lambda: case.slurm.state(job) != "RUNNING", "Slurm to notice", 120)
    case.slurm.restart(f"slurmd-{node}")


def lose_slurmd(case: ElasticCase, job: str) -> None:
    """Only slurmd dies: Slurm requeues the job, whose ranks live on, and go on training."""
    node = case.slurm.job(job)["BatchHost"]
    case.slurm.daemon(f"slurmd-{node}").kill()
    wait_for(lambda: case.slurm.state(job) != "RUNNING", "Slurm to notice", 120)
    time.sleep(10)
    case.slurm.restart(f"slurmd-{node}")


Fault = Callable[[ElasticCase, str], object]
FAULTS: dict[str, Fault] = {
    "a rank is killed": lambda case, _: case.ranks()[0].kill(),
    "the supervisor is killed": kill_supervisor,
    "all processes are killed": kill_all,
    "requeue": lambda case, job: case.slurm.call("scontrol", "requeue", job),
    "preemption": lambda case, _: case.preempt(),
    "the node is lost": lose_node,
    "slurmd is lost": lose_slurmd,
}


@campaign
@pytest.mark.parametrize("fault", FAULTS)
def test_a_small_owner_survives_a_fault_and_hands_over(
    fault: str, elastic: ElasticCase, reference_weights: bytes
) -> None:
    """The fault hits the job of one GPU; once it trains again, or another one does, four GPUs become free."""
    start_small(elastic)
    small = elastic.job_of(1)
    FAULTS[fault](elastic, small)
    elastic.wait_until(lambda: len(elastic.events("started")) > 1 or waits_behind(elastic, small), "the next start")
    finish_large(elastic, reference_weights)


@campaign
def test_the_controller_is_down_for_a_while_before_the_handover(elastic: ElasticCase, reference_weights: bytes) -> None:
    """The owner trains on; the larger job starts when Slurm is back."""
    start_small(elastic)
    restart_controller(elastic, "")
    finish_large(elastic, reference_weights)
    assert elastic.events("handover")


@campaign
@pytest.mark.parametrize(
    ("fault", "hit"),
    [*product(("the supervisor is killed", "all processes are killed", "requeue"), (1, 4)), ("controller", 1)],
)
def test_a_fault_during_the_handover(fault: str, hit: int, elastic: ElasticCase, reference_weights: bytes) -> None:
    """It hits the job that leaves, or the one that takes over, as soon as the owner has agreed."""
    start_small(elastic)
    make_room(elastic)
    elastic.wait_until(lambda: elastic.events("handover"), "the handover")
    to = elastic.events("handover")[-1]["to"]
    job = elastic.job_of(1) if hit == 1 else to
    (restart_controller if fault == "controller" else FAULTS[fault])(elastic, job)
    elastic.finish()
    assert elastic.weights() == reference_weights


def test_jobs_that_start_within_the_same_second_agree_on_one_owner(
    elastic: ElasticCase, reference_weights: bytes
) -> None:
    """Eight GPUs become free at once, and all three sizes start."""
    occupy(elastic, free=4)
    submit(elastic.slurm, LoadJob(0, 4, 1000, "n2"))
    assert elastic.submit(*SIZES, "--epochs", "6").returncode == 0
    make_room(elastic)
    elastic.finish()
    assert elastic.trains_on() == 4
    assert elastic.weights() == reference_weights


@campaign
@pytest.mark.parametrize("canceled", ["owner", "all"])
def test_one_cancel_ends_all_and_the_run_can_be_submitted_again(
    canceled: str, elastic: ElasticCase, reference_weights: bytes
) -> None:
    """No job of the run is left in the queue; the same command resumes it."""
    start_small(elastic)
    first = elastic.jobs()
    elastic.slurm.call("scancel", *([elastic.job_of(1)] if canceled == "owner" else first))
    wait_for(lambda: all(elastic.slurm.state(job) == "CANCELLED" for job in first), "the end of all jobs", 90)
    wait_for(lambda: not elastic.ranks(), "the end of the ranks")
    assert not elastic.run.finished()
    make_room(elastic)
    assert elastic.submit(*SIZES).returncode == 0
    elastic.finish()
    assert elastic.start_steps()[-1] > 0
    assert elastic.weights() == reference_weights


@campaign
def test_a_waiting_job_that_is_canceled_does_not_stop_the_owner(elastic: ElasticCase, reference_weights: bytes) -> None:
    """The job of four GPUs is canceled while that of one trains: it trains to the end or hands over to two."""
    start_small(elastic)
    elastic.slurm.call("scancel", elastic.job_of(4))
    make_room(elastic)
    elastic.wait_until(lambda: elastic.run.finished() or elastic.events("canceled"), "an end")
    wait_for(elastic.all_ended, "the end of all jobs", 90)
    if elastic.events("canceled"):  # the job of two started, and saw that somebody ended the run
        assert elastic.submit(*SIZES).returncode == 0
        elastic.finish()
    assert elastic.weights() == reference_weights


@campaign
def test_a_disk_that_is_full_when_a_job_starts_delays_the_run(elastic: ElasticCase, reference_weights: bytes) -> None:
    """No job can claim the run: they go back to the queue, for 15 minutes, and train once there is room."""
    owners = elastic.run.path / "owners"
    owners.mkdir(parents=True)
    with tmpfs_mounted(owners, "64k"):
        full = owners / "full"
        fill(full)
        assert elastic.submit(*SIZES).returncode == 0
        jobs = elastic.jobs()
        wait_for(
            lambda: all(elastic.slurm.job(job)["Reason"] == "BeginTime" for job in jobs), "all to be deferred", 120
        )
        assert "this run cannot be claimed" in elastic.job_output()
        assert not elastic.start_steps()
        full.unlink()
        time.sleep(6)  # until their last credentials have expired
        for job in jobs:
            elastic.slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")
        elastic.finish()
        assert elastic.weights() == reference_weights
