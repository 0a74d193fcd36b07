"""Local runs on a machine whose environment holds other things: variables of other jobs, a TMPDIR that is cleaned."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs.login.cluster_config import ClusterConfig
from jobs.login.local_run import run_in_foreground
from jobs.login.resources import Resources
from jobs.login.sbatch import parameters
from jobs.login.sbatch_environment import sbatch_environment
from jobs.node import slurm_job
from jobs.node.train_job import TrainJob
from tests.helpers.local_runs import ranks_of, settings, start, steps_done
from tests.helpers.waiting import wait_for
from vit.run.folder import JOB_VARIABLE, RunFolder

# What the shell of a user may have: variables of an allocation with one GPU, of another run, and half of torchrun's.
OTHERS = {
    "SLURM_JOB_ID": "1",
    "SLURM_GPUS_ON_NODE": "1",
    "SLURMD_NODENAME": "elsewhere",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "192.0.2.1",
    JOB_VARIABLE: "an older job",
}


RESOURCES = Resources(nodes=1, gpus=4, cpus=8, use_gpus=True, cluster=ClusterConfig(account="mine"))


@pytest.fixture(scope="module")
def running(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    """A run on two ranks, in such an environment."""
    cwd = tmp_path_factory.mktemp("environment")
    (cwd / "t").mkdir()  # short: the path of a socket may have 107 characters
    variables = {"TMPDIR": str(cwd / "t"), "PYTHONPATH": os.pathsep.join(("/opt/torch", str(cwd))), **OTHERS}
    command = start(cwd, "--gpus", "2", "--max-restarts", "9", *settings(betons, epochs=5000), **variables)
    run = RunFolder(cwd / "runs" / "demo")
    wait_for(lambda: steps_done(run) >= 5, "step 5")
    yield run
    for _ in range(2):
        os.killpg(command.pid, signal.SIGINT)
        time.sleep(0.05)
    command.communicate(timeout=30)


def test_variables_of_other_jobs_do_not_rule_a_local_run(running: RunFolder) -> None:
    """It has the ranks that were asked for, and belongs to no Slurm job."""
    assert [e["ranks"] for e in running.events() if e["event"] == "started"][:1] == [2]
    assert [e["node"] for e in running.events() if e["event"] == "supervising"] != ["elsewhere"]
    assert "older job" not in (running.path / "owner").read_text()


def test_a_run_keeps_the_search_path_of_its_user(running: RunFolder) -> None:
    """Clusters provide torch by modules, which set PYTHONPATH.  The source of the run comes first."""
    supervisor = psutil.Process(ranks_of(running)[0].ppid()).parent()
    assert supervisor is not None
    path = supervisor.environ()["PYTHONPATH"].split(os.pathsep)
    assert path == [str(running.source), "/opt/torch", str(running.path.parents[1])]


@pytest.mark.parametrize("victim", ["a rank", "the fork server"])
def test_a_run_restarts_in_place_after_its_temporary_files_were_removed(running: RunFolder, victim: str) -> None:
    """Systems clean /tmp while runs of many days use it.  A server that lives needs no file."""
    shutil.rmtree(running.path.parents[1] / "t", ignore_errors=True)
    starts = [e for e in running.events() if e["event"] == "started"]
    rank = ranks_of(running)[0]
    (rank if victim == "a rank" else psutil.Process(rank.ppid())).kill()
    begun = time.monotonic()
    wait_for(lambda: [e for e in running.events() if e["event"] == "started"][len(starts) :], "the restart", 100)
    assert time.monotonic() - begun < (20 if victim == "a rank" else 60)


@pytest.mark.parametrize(("given", "ranks"), [("0", 1), ("1", 1), ("3", 2), (None, 2)])
def test_a_job_starts_no_more_ranks_than_it_has_gpus(
    given: str | None, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm may give a requeued job fewer GPUs; without any, the rank or the health check says so."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    if given is not None:
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", given)
    assert slurm_job.gpus_on_node(2) == ranks


def test_a_run_in_the_foreground_of_another_job_does_not_act_for_that_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook may be a submitit job.  The variables that the run sets for its ranks do not stay."""
    seen: list[object] = []

    class Job(TrainJob):
        def __call__(self) -> str:
            os.environ["LEFT_BEHIND"] = "1"
            seen.extend((slurm_job.job_id(), slurm_job.node_rank(), slurm_job.gpus_on_node(4)))
            return "stopped"

    variables = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_GPUS_ON_NODE": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    run_in_foreground(Job(str(tmp_path), 1, 4), RunFolder(tmp_path))
    assert seen == [None, 0, 4]
    assert os.environ == before


def test_a_variable_of_sbatch_does_not_overrule_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For sbatch its variables have precedence.  Those of options that are not set stay, as their defaults."""
    variables = ("SBATCH_TIMELIMIT", "SBATCH_SIGNAL", "SBATCH_NO_REQUEUE", "SBATCH_ACCOUNT", "SBATCH_GPUS_PER_NODE")
    kept = ("SBATCH_PARTITION", "SLURM_CONF", "SLURM_CPU_BIND")
    for name in (*variables, *kept):
        monkeypatch.setenv(name, "theirs")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    options = parameters(RESOURCES, [RunFolder(tmp_path)])
    with sbatch_environment({*options, *options["additional_parameters"]}):
        assert [name for name in variables if name in os.environ] == []
        assert [name for name in kept if name not in os.environ] == []
    assert os.environ["SBATCH_TIMELIMIT"] == "theirs"
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with sbatch_environment({*options, *options["additional_parameters"]}):
        assert "SLURM_CPU_BIND" not in os.environ, "of the allocation in which the command runs"
        assert os.environ["SLURM_CONF"] == "theirs"


def test_a_job_inherits_nothing_of_another_one_whose_id_was_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its srun would fail (SLURM_GPUS), and its supervisor would take an array for its own."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    theirs = ("SLURM_GPUS", "SLURM_GRES", "SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_GPUS", "SLURM_JOBID")
    gpus = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    for name in (*theirs, *gpus):
        monkeypatch.setenv(name, "1")
    with sbatch_environment(()):
        assert [name for name in (*theirs, *gpus) if name in os.environ] == []
    for name in theirs:
        assert os.environ[name] == "1"
        monkeypatch.delenv(name)
    with sbatch_environment(()):  # the user's own choice
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize("before", ["", "/opt/torch"])
@pytest.mark.parametrize("runs", [1, 2])
def test_the_batch_script_puts_the_source_in_front_of_the_search_path(runs: int, before: str, tmp_path: Path) -> None:
    """Also in the tasks of an array, each with its own source."""
    folders = [RunFolder(tmp_path / f"a run {number}") for number in range(runs)]
    setup = "\n".join(parameters(RESOURCES, folders)["setup"])
    printed = subprocess.run(
        ["bash", "-c", f'{setup}\necho "$PYTHONPATH"'], capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": str(runs - 1), "PYTHONPATH": before},
    ).stdout  # fmt: skip
    assert printed == f"{folders[-1].source}{':' if before else ''}{before}\n"
