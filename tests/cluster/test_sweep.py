"""Sweeps: their runs, on this machine and as a job array on a real Slurm cluster."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.login.sweep import sweep_points
from tests.helpers.cluster_case import STEPS, Case, campaign
from tests.helpers.local_runs import settings, submit
from tests.helpers.paths import ROOT
from vit.run.folder import RunFolder

STATUS = [sys.executable, str(ROOT / "jobs" / "status.py")]
# A setting that changes no bit of a run: all tasks of an array must end with the same weights.
NEUTRAL = "data.prefetch"


def test_a_sweep_has_a_run_for_each_combination_named_by_its_values() -> None:
    """Names need no quoting in a shell, and have the full key where its last part is ambiguous."""
    assert [p.name for p in sweep_points(["optim.lr=1e-3,3e-3", "seed=0,1"])] == [
        *("lr=1e-3,seed=0", "lr=1e-3,seed=1", "lr=3e-3,seed=0", "lr=3e-3,seed=1")
    ]
    assert sweep_points(["optim.lr=1e-3"])[0].arguments() == ["--optim.lr", "1e-3"]
    assert [p.values[0][1] for p in sweep_points(["augment.mean=[0.5,0.5,0.5],[0.4,0.4,0.4]"])] == [
        *("[0.5,0.5,0.5]", "[0.4,0.4,0.4]")
    ]
    assert [p.name for p in sweep_points(["init_from=/a/b c.pth,$HOME/d.pth"])] == [
        "init_from=a_b_c.pth",
        "init_from=HOME_d.pth",
    ]
    assert sweep_points(["model.dropout=0.1", "x.dropout=0.2"])[0].name == "model.dropout=0.1,x.dropout=0.2"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (["optim.lr"], "--sweep optim.lr: expected SETTING=VALUE,VALUE"),
        (["optim.lr="], "--sweep optim.lr=: expected SETTING=VALUE,VALUE"),
        (["seed=1,,2"], "--sweep seed=1,,2: expected"),
        (["seed=1,2", "seed=3"], "seed is swept twice"),
        (["seed=1,2,1"], "duplicate value 1"),
        (["init_from=a/b,a:b"], "two runs of this sweep would have the same name"),
    ],
)
def test_a_malformed_sweep_is_refused(sweep: list[str], message: str) -> None:
    """The message has the option as it was typed, and what is wrong with it."""
    with pytest.raises(ValueError, match="sweep") as caught:
        sweep_points(sweep)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (["--sweep", "optim.lr=1e-3,fast"], "--sweep optim.lr=fast: optim.lr must be a number, not 'fast'"),
        (["--sweep", "optim.lrr=1e-3"], "unknown setting 'optim.lrr'; did you mean 'optim.lr'?"),
        (["--sweep", "seed=0,1", "--sweep", "micro_batch=16,24"], "micro_batch 24 does not divide global_batch 64"),
        (["--max-parallel", "2"], "--max-parallel requires --sweep"),
    ],
)
def test_if_one_value_is_invalid_nothing_is_submitted(
    sweep: list[str], message: str, betons: Path, tmp_path: Path
) -> None:
    """It is reported in one line, although other runs of the sweep are valid."""
    refused = submit(tmp_path, *settings(betons), *sweep)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_slurm_the_runs_of_a_sweep_run_one_after_the_other(betons: Path, tmp_path: Path) -> None:
    """If one fails, the next one still runs; the same command then retries only the one that failed."""
    options = [*settings(betons, epochs=2), "--optim.clip_norm", "0", "--sweep", "optim.lr=1e30,1e-3", "--name", "both"]
    first = submit(tmp_path, *options)
    assert first.returncode == 1
    assert "optim.max_skipped allows 10; a lower optim.lr may help" in first.stderr
    good, bad = (RunFolder(tmp_path / "runs" / "both" / f"lr={lr}") for lr in ("1e-3", "1e30"))
    assert good.finished()
    assert not bad.finished()
    assert "1e-3" not in bad.config.read_text()
    again = submit(tmp_path, *options)
    assert "2 runs, 1 complete" in again.stdout
    assert "lr=1e-3" not in again.stderr + again.stdout


def tasks(case: Case, count: int) -> list[Case]:
    """The runs of a sweep over `count` values of the neutral setting."""
    return [replace(case, run=RunFolder(case.run.path / f"prefetch={i + 1}")) for i in range(count)]


def status(case: Case) -> dict[str, dict[str, object]]:
    """What status.py prints about the sweep, by run."""
    environment = os.environ | case.slurm.environment
    command = [*STATUS, str(case.run.path), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["run"]: row for row in rows}


def test_each_task_of_a_job_array_is_requeued_alone(case: Case) -> None:
    """One runs at a time: the first is requeued, the second is pending meanwhile; both end with the same bits."""
    sweep = ("--sweep", f"{NEUTRAL}=1,2", "--max-parallel", "1")
    done = case.submit(*sweep)
    assert done.returncode == 0, done.stderr
    first, second = tasks(case, 2)
    array = first.job.partition("_")[0]
    assert (first.job, second.job) == (f"{array}_0", f"{array}_1")
    first.wait_until(lambda: first.steps_done() >= 3, "step 3")
    with first.slowed():
        rows = status(case)
        assert (rows["prefetch=1"]["state"], rows["prefetch=2"]["state"]) == ("running", "queued")
        assert rows["prefetch=2"]["detail"] == "JobArrayTaskLimit"
        again = case.submit(*sweep)
        assert "2 runs, 0 complete, 2 already in the queue" in again.stdout
        case.slurm.call("scontrol", "requeue", first.job)
        first.wait_until(lambda: first.events("stopped"), "the save")
    for task in (first, second):
        task.finish()
        task.wait_until(lambda: case.slurm.state(task.job) == "COMPLETED", "the end of the task")  # noqa: B023
    assert first.start_steps() == [0, first.stop_step()]
    assert second.start_steps() == [0]
    assert first.weights() == second.weights()
    rows = status(case)
    assert {row["state"] for row in rows.values()} == {"finished"}
    assert (rows["prefetch=1"]["requeues"], rows["prefetch=2"]["requeues"]) == (1, 0)
    assert {(row["step"], row["steps"]) for row in rows.values()} == {(STEPS, STEPS)}
    assert "2 complete" in case.submit(*sweep).stdout


@campaign
@pytest.mark.timeout(1800)
def test_an_array_of_eight_tasks_ends_with_the_same_bits_despite_faults(case: Case) -> None:
    """A rank killed, a supervisor killed, a task requeued, a task canceled and submitted again, all preempted."""
    sweep = ("--sweep", f"{NEUTRAL}={','.join(str(i + 1) for i in range(8))}", "--max-parallel", "4")
    sweep += ("--checkpoint.every_minutes", "0.005")
    assert case.submit(*sweep).returncode == 0
    all_tasks = tasks(case, 8)
    killed, orphaned, requeued, canceled = all_tasks[:4]
    for task in all_tasks[:4]:
        task.wait_until(lambda: task.events("checkpoint"), "a checkpoint", 600)  # noqa: B023
    with killed.slowed(), orphaned.slowed(), requeued.slowed(), canceled.slowed():
        killed.ranks()[0].kill()
        killed.wait_until(lambda: killed.events("restarting in place"), "the restart")
        orphaned.ranks()[0].parents()[1].kill()  # the supervisor, above the fork server
        case.slurm.call("scontrol", "requeue", requeued.job)
        requeued.wait_until(lambda: requeued.events("stopped"), "the save")
        case.slurm.call("scancel", canceled.job)
    killed.wait_until(lambda: killed.run.finished() or killed.steps_done() > STEPS // 2, "half of the run", 600)
    case.preempt()
    again = case.submit(*sweep)
    assert again.returncode == 0, again.stderr
    for task in all_tasks:
        task.wait_until(task.run.finished, "the end of the run", 1200)
    assert "_" not in canceled.job  # submitted alone, by the second command
    assert len({task.weights() for task in all_tasks}) == 1
