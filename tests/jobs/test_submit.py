"""submit.py on this machine: runs that finish, are extended or start again, and other ways to train the same run."""

import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from jobs.node.job_spec import SUBMITTER_VARIABLE
from jobs.node.train_job import TrainJob
from tests.helpers.local_runs import settings, start, steps_done, submit, weights
from tests.helpers.paths import CHECKOUT, ROOT
from tests.helpers.waiting import wait_for
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines


class JobUnpickler(pickle.Unpickler):
    """Loads no class other than TrainJob."""

    def find_class(self, module: str, name: str) -> Any:
        assert (module, name) == ("jobs.node.train_job", "TrainJob")
        return super().find_class(module, name)


def test_a_job_is_pickled_as_plain_data(tmp_path: Path) -> None:
    """Another version of the code can read it, and after its checkpoint call the same job is requeued."""
    job = TrainJob(run=str(tmp_path), nodes=2, gpus=4, accepted=("epochs",))
    assert JobUnpickler(io.BytesIO(cloudpickle.dumps(job))).load() == job
    program = "import sys, cloudpickle\njob = cloudpickle.load(sys.stdin.buffer)\nrequeued = job.checkpoint()\n"
    program += "assert (requeued.function, requeued.args, requeued.kwargs) == (job, (), {})"
    subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, input=cloudpickle.dumps(job), timeout=60, check=True)


def test_a_finished_run_prints_its_accuracy_its_folder_and_the_next_command(finished: tuple[RunFolder, str]) -> None:
    """The folder has everything needed to understand the run."""
    run, printed = finished
    top1 = read_lines(run.metrics)[-1]["val_top1"]
    assert f"top-1 {top1:.2%}" in printed
    assert "runs/demo" in printed
    assert "jobs/report.py runs/demo" in printed
    for name in (
        "config.yaml",
        "environment.txt",
        "metrics.jsonl",
        "ledger.jsonl",
        "source/vit/model/vision_transformer.py",
    ):
        assert (run.path / name).exists(), name
    assert (run.logs / "rank-1.log").exists()
    assert [e["event"] for e in run.events()][-1] == "finished"


def test_the_same_command_does_not_train_a_finished_run_again(finished: tuple[RunFolder, str], betons: Path) -> None:
    """It prints the accuracy again."""
    run, _ = finished
    before = run.events()
    again = submit(run.path.parents[1], "--gpus", "2", *settings(betons))
    assert again.returncode == 0
    assert "is complete" in again.stdout
    assert "top-1" in again.stdout
    assert run.events() == before


def test_a_finished_run_can_be_extended(finished: tuple[RunFolder, str], betons: Path, tmp_path: Path) -> None:
    """More epochs require --extend; if the extended run is interrupted, the same command resumes it."""
    shutil.copytree(finished[0].path, tmp_path / "runs" / "demo")
    run, longer = RunFolder(tmp_path / "runs" / "demo"), settings(betons, epochs=24)
    refused = submit(tmp_path, *longer)
    assert refused.returncode == 2
    assert "epochs: 6 in the run, 24 now" in refused.stderr
    command = start(tmp_path, *settings(betons), "--extend", "24")
    wait_for(lambda: steps_done(run) > 48, "a step of the extended run")
    os.killpg(command.pid, signal.SIGINT)
    command.communicate(timeout=60)
    assert command.returncode == 130
    assert 48 < steps_done(run) < 192
    done = submit(tmp_path, *settings(betons), "--extend", "24")
    assert done.returncode == 0, done.stderr
    assert steps_done(run) == 192
    again = submit(tmp_path, *longer)
    assert "is complete" in again.stdout, again.stderr
    shorter = submit(tmp_path, *longer, "--extend", "3")
    assert "--extend 3: runs/demo has 24 epochs; use a larger number" in shorter.stderr


def test_restart_trains_in_a_new_folder(finished: tuple[RunFolder, str], betons: Path) -> None:
    """The existing run does not change."""
    run, _ = finished
    before = run.events()
    done = submit(run.path.parents[1], *settings(betons, epochs=1), "--optim.warmup_epochs", "0", "--restart")
    assert done.returncode == 0, done.stderr
    assert "runs/demo-2" in done.stdout
    assert steps_done(RunFolder(run.path.with_name("demo-2"))) == 8
    assert run.events() == before


def test_torchrun_trains_the_same_run(finished: tuple[RunFolder, str], betons: Path, tmp_path: Path) -> None:
    """torchrun with four ranks ends with the bits of the job with two ranks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "4", "-m", "vit.train"]
    done = subprocess.run(
        [*torchrun, "--config", str(ROOT / "configs" / "demo.yaml"), *settings(betons)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "test top-1" in done.stdout
    assert weights(RunFolder(tmp_path / "runs" / "demo")) == weights(finished[0])


def test_cluster_debug_runs_the_job_in_the_foreground(
    betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the process of submit.py, where a debugger can be attached; also inside of another job."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv(SUBMITTER_VARIABLE, "999999999")  # of a local run that has ended; this one does not end with it
    done = submit(tmp_path, *settings(betons, epochs=2), "--optim.warmup_epochs", "0", cluster="debug")
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stdout


def test_a_dry_run_prints_the_sbatch_script_and_the_config_only(tmp_path: Path) -> None:
    """On machines without Slurm too; no file is written."""
    options = ["--nodes", "2", "--gpus", "2", "--time", "2-00:00:00", "--partition", "gpu", "--account", "me"]
    options += ["--qos", "high", "--constraint", "a100", "--name", "try-1", "--device", "cuda", "--dry-run"]
    dry = submit(tmp_path, *options, cluster="slurm")
    assert dry.returncode == 0, dry.stderr
    for line in (
        "--nodes=2", "--gpus-per-node=2", "--ntasks-per-node=1", "--time=2880", "--partition=gpu", "--account=me",
        "--qos=high", "--constraint=a100", "--job-name=try-1", "--requeue", "--signal=USR2@120",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in dry.stdout, line
    assert "global_batch: 128" in dry.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_a_cluster_the_run_is_local(tmp_path: Path) -> None:
    """Slurm's commands without a configured cluster do not count as one; options of a cluster require Slurm."""
    if "SLURM_CONF" in os.environ or Path("/etc/slurm/slurm.conf").exists():
        pytest.skip("this machine has a Slurm cluster")
    dry = submit(tmp_path, "--dry-run", cluster="auto")
    assert dry.returncode == 0, dry.stderr
    assert "# on this machine, 1 rank\n" in dry.stdout
    generic = ("--cluster-config", "generic")
    assert "#SBATCH --requeue" in submit(tmp_path, *generic, "--dry-run", cluster="auto").stdout
    for options in (generic, ("--partition", "gpu"), ("--account", "vision"), ("--qos", "long")):
        refused = submit(tmp_path, *options, cluster="auto")
        assert refused.returncode == 1
        assert "use --cluster local to run on this machine" in refused.stderr
