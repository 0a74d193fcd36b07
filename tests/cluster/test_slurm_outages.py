"""Slurm's own daemons fail: the run does not notice, and is requeued once Slurm responds again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.paths import CHECKOUT, ROOT
from tests.helpers.waiting import wait_for


@campaign
@pytest.mark.parametrize("daemon", ["slurmctld", "slurmdbd"])
def test_a_run_survives_the_death_of_a_slurm_daemon(daemon: str, case: Case, reference_weights: bytes) -> None:
    """A requeue works once slurmctld is back, and while slurmdbd, the daemon for accounting, is down."""
    case.start("--gpus", "2")
    try:
        with case.slowed():
            case.slurm.daemon(daemon).kill()
            time.sleep(3)
            if daemon == "slurmctld":
                case.slurm.restart(daemon)
                wait_for(case.slurm.responds, "Slurm to respond")
            case.slurm.call("scontrol", "requeue", case.job)
            case.wait_until(lambda: case.events("stopped"), "the save")
        case.finish()
    finally:
        if not case.slurm.is_alive(daemon):
            case.slurm.restart(daemon)
    assert case.start_steps() == [0, case.stop_step()]
    assert case.weights() == reference_weights


@campaign
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_job_that_must_stop_while_slurm_does_not_respond_is_requeued_later(
    nodes: str, case: Case, reference_weights: bytes
) -> None:
    """The controller is down at the time limit: the batch script asks until it responds."""
    case.start("--gpus", "2", "--nodes", nodes)
    with case.slowed():
        case.slurm.daemon("slurmctld").kill()
        for supervisor in case.supervisors():
            supervisor.send_signal(signal.SIGUSR2)
        wait_for(lambda: case.events("stopped"), "the save")
        wait_for(lambda: not case.supervisors(), "the end of the supervisors")
        case.slurm.restart("slurmctld")
    case.finish()
    assert case.start_steps() == [0, case.stop_step()]
    assert case.weights() == reference_weights


@campaign
def test_a_test_run_that_is_killed_leaves_no_process_of_its_cluster(tmp_path: Path) -> None:
    """SIGKILL of the process that started it, while a job runs: daemons, steps and jobs end."""
    program = """
import os
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.waiting import wait_for
cluster = Cluster()
print(cluster.dir, flush=True)
cluster.call("sbatch", "--wrap", "srun sleep 600", "--output", "/dev/null")
wait_for(lambda: cluster.state("1") == "RUNNING", "the job to run")
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = done.stdout.strip()
    wait_for(lambda: not any(_mentions(process, folder) for process in psutil.process_iter()), "all to end", 30)
    shutil.rmtree(folder)


def _mentions(process: psutil.Process, folder: str) -> bool:
    """Whether the folder is in a process's command line or environment."""
    with suppress(psutil.Error):
        return any(folder in word for word in (*process.cmdline(), *process.environ().values()))
    return False
