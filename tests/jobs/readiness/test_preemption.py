"""What doctor.py --preempt finds out, by a job of its own on a real Slurm cluster."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.login.cluster_config import ClusterConfig
from jobs.login.resources import Resources
from jobs.readiness.finding import Finding
from jobs.readiness.preemption import Measured, check_preemption, judge, proposed_signal
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.slurm_config import KILL_WAIT_SECONDS

GOOD = Measured(queued=1.0, signal=0.1, term=0.1, kill=30.0, again=130.0, nodes=("n1", "n2"))


def request(**cluster: object) -> Resources:
    """What a user requests, of the given cluster options."""
    return Resources(nodes=1, gpus=2, cpus=4, use_gpus=False, cluster=ClusterConfig(**cluster))  # type: ignore[arg-type]


def check(slurm: Cluster, folder: Path, resources: Resources, wait: float = 60) -> dict[str, Finding]:
    """Runs the check on the cluster; no job and no file is left behind."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in slurm.environment.items():
            patch.setenv(name, value)
        findings = list(check_preemption(resources, folder / "my runs", wait, 1.0, lambda _: None))
    assert not list((folder / "my runs").iterdir())
    left = slurm.call("squeue", "-h", "--name", "vit-preemption-check", "--states", "PENDING,RUNNING")
    assert not left
    return {each.check: each for each in findings}


def test_the_signals_of_a_requeue_are_measured(slurm: Cluster, tmp_path: Path) -> None:
    """The job is signaled, requeued, killed after Slurm's KillWait, and runs again."""
    found = check(slurm, tmp_path, request(partition="low"))
    assert [each.level for each in found.values()] == ["OK"] * 4, found
    assert found["signals"].text.startswith("USR2 reached the job 0.")
    seconds = float(found["requeue"].text.rpartition("SIGKILL ")[2].partition(" s")[0])
    assert KILL_WAIT_SECONDS - 2 < seconds < KILL_WAIT_SECONDS + 25
    assert found["time to save"].text.endswith("enough, a save of this model takes 1.0 s")
    assert "the job ran again" in found["restart"].text


@pytest.mark.parametrize(
    ("options", "check_name", "text"),
    [
        ({"partition": "low", "requeue": False}, "requeue", "Slurm refuses to requeue jobs"),
        ({"partition": "gpus"}, "preemption", "Invalid partition name"),
        ({"partition": "low", "sbatch": {"begin": "now+1hour"}}, "preemption", "the job is pending (BeginTime)"),
        ({"partition": "low", "setup": ("exit 7",)}, "preemption", "the job ended before Python ran"),
        ({"partition": "low", "python": "/no/python"}, "preemption", "No such file"),
    ],
)
def test_what_prevents_it_is_named(
    options: dict[str, object], check_name: str, text: str, slurm: Cluster, tmp_path: Path
) -> None:
    """Jobs that Slurm may not requeue, rejects, does not start, or that fail before Python runs."""
    found = check(slurm, tmp_path, request(**options), wait=3 if "sbatch" in options else 60)
    assert found[check_name].level == "FAIL"
    assert text in found[check_name].text
    assert found[check_name].advice


def test_a_folder_that_cannot_be_written_is_named(slurm: Cluster, tmp_path: Path) -> None:
    """Before anything is submitted."""
    (tmp_path / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in slurm.environment.items():
            patch.setenv(name, value)
        (found,) = check_preemption(request(), tmp_path / "file" / "runs", 1, None, lambda _: None)
    assert (found.level, found.text) == ("FAIL", f"{tmp_path}/file/runs cannot be written: Not a directory")


@pytest.mark.parametrize(
    ("measured", "save", "check_name", "level", "text"),
    [
        (GOOD, 4.0, "time to save", "OK", "30 s: enough, a save of this model takes 4.0 s"),
        (GOOD, 20.0, "time to save", "WARN", "a slow disk would lose steps"),
        (GOOD, 40.0, "time to save", "FAIL", "the steps since the newest checkpoint would be lost"),
        (GOOD, None, "time to save", "OK", "30 s; with --config"),
        (replace(GOOD, signal=None), 4.0, "signals", "FAIL", "USR2 did not reach the job"),
        (replace(GOOD, term=None), 4.0, "requeue", "WARN", "killed without a SIGTERM"),
        (replace(GOOD, kill=None), 4.0, "requeue", "WARN", "the job was not killed"),
        (replace(GOOD, again=None, reason="is pending (Priority)"), 4.0, "restart", "WARN", "it is pending (Priority)"),
        (GOOD, 4.0, "restart", "OK", "130 s after the requeue, on n2; after a failure, a restart in place saves"),
    ],
)
def test_what_follows_from_the_measurement(
    measured: Measured, save: float | None, check_name: str, level: str, text: str
) -> None:
    """Whether a save of the model fits between SIGTERM and SIGKILL, and what else a user must know."""
    found = {each.check: each for each in judge(measured, save)}
    assert found[check_name].level == level
    assert text in found[check_name].text


@pytest.mark.parametrize(("save", "signal"), [(None, "USR2@120"), (4.0, "USR2@120"), (60.0, "USR2@150")])
def test_the_proposed_signal_leaves_time_for_two_saves(save: float | None, signal: str) -> None:
    """And half a minute of margin; two minutes at least."""
    assert proposed_signal(save) == signal
    ClusterConfig(signal=signal)
