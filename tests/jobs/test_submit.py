"""The command as a person uses it: real processes, real signals, on this machine."""

import io
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest

from jobs.node.train_job import TrainJob
from tests.helpers.paths import ROOT
from vit.checkpoint.format import find_checkpoints
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines

SUBMIT = [sys.executable, str(ROOT / "jobs" / "submit.py"), "--config", str(ROOT / "configs" / "demo.yaml")]


def settings(betons: Path, epochs: int = 6) -> list[str]:
    """The demo, made small: 8 steps an epoch."""
    data = ["--data.train", str(betons / "train.beton"), "--data.val", str(betons / "val.beton")]
    small = ["--epochs", str(epochs), "--global_batch", "64", "--micro_batch", "16", "--log.every_steps", "1"]
    return [*data, *small, "--model.depth", "1", "--optim.warmup_epochs", "1"]


def submit(cwd: Path, *options: str, cluster: str = "local") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SUBMIT, "--cluster", cluster, *options], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def start(cwd: Path, *options: str, **environment: str) -> "subprocess.Popen[str]":
    """As from a terminal: in a process group of its own."""
    return subprocess.Popen(
        [*SUBMIT, "--cluster", "local", *options], cwd=cwd, env=os.environ | environment, stdout=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


class Plain(pickle.Unpickler):
    """Loads nothing but jobs."""

    def find_class(self, module: str, name: str) -> Any:
        assert (module, name) == ("jobs.node.train_job", "TrainJob")
        return super().find_class(module, name)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def steps_done(run: RunFolder) -> int:
    records = read_lines(run.metrics)
    return int(records[-1]["step"]) if records else 0


def weights(run: RunFolder) -> bytes:
    return b"".join(part.read_bytes() for part in sorted(find_checkpoints(run.checkpoints)[0].glob("part-*.bin")))


def ranks_of(run: RunFolder) -> list[psutil.Process]:
    """The training processes of a run, wherever they hang in the tree of processes."""
    out = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "vit.train" in command and str(run.path) in command and process.status() != psutil.STATUS_ZOMBIE:
            out.append(process)
    return out


@pytest.fixture(scope="module")
def finished(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A run of two ranks that was left alone, and what the command printed."""
    cwd = tmp_path_factory.mktemp("finished")
    done = submit(cwd, "--gpus", "2", *settings(betons))
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(cwd / "runs" / "demo"), done.stdout


def test_what_is_pickled_is_plain_data(tmp_path: Path) -> None:
    """So that a newer checkout, or none, reads it; and as submitit calls it, it goes back into the queue as it was."""
    job = TrainJob(run=str(tmp_path), nodes=2, gpus=4, accepted=("epochs",))
    assert Plain(io.BytesIO(cloudpickle.dumps(job))).load() == job
    called = "import sys, cloudpickle\njob = cloudpickle.load(sys.stdin.buffer)\nagain = job.checkpoint()\n"
    called += "assert (again.function, again.args, again.kwargs) == (job, (), {})"
    subprocess.run([sys.executable, "-c", called], cwd=ROOT, input=cloudpickle.dumps(job), timeout=60, check=True)


def test_a_run_ends_with_its_accuracy_its_folder_and_what_to_type_next(finished: tuple[RunFolder, str]) -> None:
    """The last lines are what a person wants to know; the folder explains itself."""
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


def test_a_finished_run_says_so(finished: tuple[RunFolder, str], betons: Path) -> None:
    """The same command again trains nothing and prints the accuracy again, in a second or two."""
    run, _ = finished
    before = run.events()
    again = submit(run.path.parents[1], "--gpus", "2", *settings(betons))
    assert again.returncode == 0
    assert "is complete" in again.stdout
    assert "top-1" in again.stdout
    assert run.events() == before


def test_ctrl_c_saves_and_the_same_command_goes_on(
    finished: tuple[RunFolder, str], betons: Path, tmp_path: Path
) -> None:
    """A terminal sends Ctrl-C to every process of the command; the run still ends with the bits of the other one.

    The terminal may be that of a Slurm job, which is not ours to requeue.
    """
    run = RunFolder(tmp_path / "runs" / "demo")
    somebodys = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "3", "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.1"}
    command = start(tmp_path, "--gpus", "2", *settings(betons), **somebodys)
    wait_for(lambda: steps_done(run) >= 10)
    os.killpg(command.pid, signal.SIGINT)
    printed, _ = command.communicate(timeout=60)
    assert command.returncode == 130, printed
    assert "saved; the same command goes on" in printed
    assert printed.count("stopping:") == 1
    assert not ranks_of(run)
    again = submit(tmp_path, "--gpus", "2", *settings(betons))
    assert again.returncode == 0, again.stdout + again.stderr
    assert [e["step"] for e in run.events() if e["event"] == "started"][1] >= 10
    assert weights(run) == weights(finished[0])


@pytest.mark.parametrize("seconds", [0.7, 2.0, 3.5])
def test_ctrl_c_in_the_first_seconds_is_obeyed(seconds: float, betons: Path, tmp_path: Path) -> None:
    """While submitit starts, while torch is imported, while the ranks are: the command ends, and says so."""
    command = start(tmp_path, "--gpus", "2", *settings(betons, epochs=5000))
    time.sleep(seconds)
    os.killpg(command.pid, signal.SIGINT)
    printed, _ = command.communicate(timeout=40)
    assert command.returncode == 130, printed
    assert "the same command" in printed
    assert not ranks_of(RunFolder(tmp_path / "runs" / "demo"))


def test_a_second_ctrl_c_ends_the_command_at_once(betons: Path, tmp_path: Path) -> None:
    """Without saving; the run goes on from its newest checkpoint when it is asked to."""
    run = RunFolder(tmp_path / "runs" / "demo")
    command = start(tmp_path, "--gpus", "2", *settings(betons, epochs=5000))
    wait_for(lambda: steps_done(run) >= 5)
    for _ in range(2):
        os.killpg(command.pid, signal.SIGINT)
        time.sleep(0.05)
    printed, _ = command.communicate(timeout=20)
    assert command.returncode == 130, printed
    wait_for(lambda: not ranks_of(run), seconds=10)


def test_a_finished_run_can_be_made_longer(betons: Path, tmp_path: Path) -> None:
    """More epochs are another recipe: refused unless they are asked for; stopped on the way, it still knows its end."""
    run, longer = RunFolder(tmp_path / "runs" / "demo"), settings(betons, epochs=40)
    assert submit(tmp_path, *settings(betons, epochs=2)).returncode == 0
    refused = submit(tmp_path, *longer)
    assert refused.returncode == 2
    assert "epochs: 2 there, 40 now" in refused.stderr
    command = start(tmp_path, *settings(betons, epochs=2), "--extend", "40")
    wait_for(lambda: steps_done(run) > 18)
    os.killpg(command.pid, signal.SIGINT)
    command.communicate(timeout=60)
    assert command.returncode == 130
    assert 18 < steps_done(run) < 320
    done = submit(tmp_path, *settings(betons, epochs=2), "--extend", "40")
    assert done.returncode == 0, done.stderr
    assert steps_done(run) == 320
    again = submit(tmp_path, *longer)
    assert "is complete" in again.stdout, again.stderr
    less = submit(tmp_path, *longer, "--extend", "3")
    assert "--extend 3: runs/demo has 40 epochs; name more" in less.stderr


def test_a_run_can_be_begun_afresh(finished: tuple[RunFolder, str], betons: Path) -> None:
    """In a new folder: what is there stays as it is."""
    run, _ = finished
    before = run.events()
    done = submit(run.path.parents[1], *settings(betons, epochs=1), "--optim.warmup_epochs", "0", "--restart")
    assert done.returncode == 0, done.stderr
    assert "runs/demo-2" in done.stdout
    assert steps_done(RunFolder(run.path.with_name("demo-2"))) == 8
    assert run.events() == before


def test_a_killed_command_takes_its_run_along_and_loses_nothing(
    finished: tuple[RunFolder, str], betons: Path, tmp_path: Path
) -> None:
    """SIGKILL of submit.py alone: the ranks notice, save and leave, and the same command goes on from there."""
    run = RunFolder(tmp_path / "runs" / "demo")
    command = start(tmp_path, "--gpus", "2", *settings(betons, epochs=2000))
    wait_for(lambda: steps_done(run) >= 5)
    refused = submit(tmp_path, "--gpus", "2", *settings(betons, epochs=2000))
    assert refused.returncode == 1
    assert "is in use by process" in refused.stderr
    command.kill()
    command.communicate()
    wait_for(lambda: not ranks_of(run), seconds=30)
    stopped = run.last("stopped")
    assert stopped is not None
    assert stopped["step"] == int(find_checkpoints(run.checkpoints)[0].name[5:])


def test_a_rank_that_dies_is_started_again_in_place(
    finished: tuple[RunFolder, str], betons: Path, tmp_path: Path
) -> None:
    """SIGKILL of one of two ranks: the command goes on by itself and ends with the bits of the undisturbed run."""
    run = RunFolder(tmp_path / "runs" / "demo")
    command = start(tmp_path, "--gpus", "2", *settings(betons), "--checkpoint.every_minutes", "0.0001")
    wait_for(lambda: steps_done(run) >= 5)
    ranks_of(run)[0].kill()
    printed, _ = command.communicate(timeout=90)
    assert command.returncode == 0, printed
    assert [e["event"] for e in run.events()].count("restarting in place") == 1
    assert weights(run) == weights(finished[0])


def test_torchrun_trains_the_same_run(finished: tuple[RunFolder, str], betons: Path, tmp_path: Path) -> None:
    """For debugging by hand: the same trainer, here on four ranks, and the same bits."""
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


def test_a_run_that_fails_says_why(betons: Path, tmp_path: Path) -> None:
    """The reason stands in the last lines, with the log to read; and what ran was the source in the run folder."""
    failed = submit(tmp_path, "--gpus", "2", *settings(betons), "--optim.lr", "1e30", "--optim.clip_norm", "0")
    assert failed.returncode == 1
    assert "optim.max_skipped allows 10; a lower optim.lr may help" in failed.stderr
    assert "/logs/rank-" in failed.stderr
    run = RunFolder(tmp_path / "runs" / "demo")
    assert run.last("failed") is not None
    assert run.last("restarting in place") is None


def test_a_dry_run_prints_script_and_config_and_does_nothing(tmp_path: Path) -> None:
    """What would be sent to Slurm, on a machine without Slurm too."""
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


def test_without_a_cluster_the_run_is_this_machines(tmp_path: Path) -> None:
    """Slurm's tools alone, which know of no cluster, do not count as one."""
    if "SLURM_CONF" in os.environ or Path("/etc/slurm/slurm.conf").exists():
        pytest.skip("there is a Slurm here")
    dry = submit(tmp_path, "--dry-run", cluster="auto")
    assert dry.returncode == 0, dry.stderr
    assert "# on this machine, 1 ranks" in dry.stdout
    described = ("--cluster-config", "generic")
    assert "#SBATCH --requeue" in submit(tmp_path, *described, "--dry-run", cluster="auto").stdout
    refused = submit(tmp_path, *described, cluster="auto")
    assert refused.returncode == 1
    assert "--cluster local runs it here" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "3"], "3 ranks do not divide the 4 micro-batches"),
        (["--gpus", "0"], "--gpus must be at least 1"),
        (["--nodes", "2"], "without Slurm there is one node"),
        (["--time", "tomorrow"], "--time 'tomorrow': write 24:00:00"),
        (["--name", "a/b"], "--name 'a/b'"),
        (["--extend", "9"], "--extend 9: runs/demo is no run; --epochs says it of a new one"),
        (["--extend", "9", "--restart"], "choose one of them"),
        (["--data.train", "nosuch.beton"], "nosuch.beton does not exist; python -m data_prep.write_beton makes it"),
        (["--model.num_classes", "1000"], "model.num_classes is 1000, but"),
        (["--optim.learning_rate", "1"], "unknown setting 'optim.learning_rate'"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(options: list[str], message: str, betons: Path, tmp_path: Path) -> None:
    """Before anything is started, with the bad value and what to do."""
    refused = submit(tmp_path, *settings(betons), *options)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_with_what_to_do(betons: Path, tmp_path: Path) -> None:
    """As any user meets it, and as root on a disk that is read-only."""
    (tmp_path / "runs").mkdir(mode=0o555)
    command = [*SUBMIT, "--cluster", "local", *settings(betons)]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *command]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 2
    assert re.fullmatch(
        r"submit.py: .*Permission denied: .*; --runs-dir names a folder that you may write\n", refused.stderr
    )


def test_another_recipe_under_the_same_name_is_refused(finished: tuple[RunFolder, str], betons: Path) -> None:
    """A folder holds one run; the settings that differ are named."""
    run, _ = finished
    refused = submit(run.path.parents[1], *settings(betons), "--optim.lr", "0.5")
    assert refused.returncode == 2
    assert "optim.lr: 0.003 there, 0.5 now" in refused.stderr
    assert "--name" in refused.stderr


def test_the_job_in_this_very_process(betons: Path, tmp_path: Path) -> None:
    """`--cluster debug` runs the job in the foreground, where a debugger can see it."""
    done = submit(tmp_path, *settings(betons, epochs=2), "--optim.warmup_epochs", "0", cluster="debug")
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stdout
