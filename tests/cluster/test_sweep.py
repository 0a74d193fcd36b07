"""Sweeps: which runs they are, on this machine, and as an array on a real Slurm."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.login.sweep import points
from tests.cluster.test_cluster import STEPS, Case, campaign, case  # noqa: F401  (a fixture)
from tests.helpers.paths import ROOT
from tests.jobs.test_submit import settings, submit
from vit.run.folder import RunFolder

STATUS = [sys.executable, str(ROOT / "jobs" / "status.py")]
# Changes no bit of a run: each task of an array must end with the weights of every other.
HARMLESS = "data.prefetch"


def test_a_sweep_is_a_run_for_each_combination_named_by_what_differs() -> None:
    """Names that no shell asks questions about; the whole key where its last word is not enough."""
    assert [p.name for p in points(["optim.lr=1e-3,3e-3", "seed=0,1"])] == [
        *("lr=1e-3,seed=0", "lr=1e-3,seed=1", "lr=3e-3,seed=0", "lr=3e-3,seed=1")
    ]
    assert points(["optim.lr=1e-3"])[0].arguments() == ["--optim.lr", "1e-3"]
    assert [p.values[0][1] for p in points(["augment.mean=[0.5,0.5,0.5],[0.4,0.4,0.4]"])] == [
        *("[0.5,0.5,0.5]", "[0.4,0.4,0.4]")
    ]
    assert [p.name for p in points(["init_from=/a/b c.pth,$HOME/d.pth"])] == [
        "init_from=a_b_c.pth",
        "init_from=HOME_d.pth",
    ]
    assert points(["model.dropout=0.1", "x.dropout=0.2"])[0].name == "model.dropout=0.1,x.dropout=0.2"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (["optim.lr"], "--sweep optim.lr: write SETTING=VALUE,VALUE"),
        (["optim.lr="], "--sweep optim.lr=: write SETTING=VALUE,VALUE"),
        (["seed=1,,2"], "--sweep seed=1,,2: write"),
        (["seed=1,2", "seed=3"], "seed is swept already"),
        (["seed=1,2,1"], "1 is there twice"),
        (["init_from=a/b,a:b"], "two runs of this sweep would have the same name"),
    ],
)
def test_what_is_no_sweep_is_refused(sweep: list[str], message: str) -> None:
    """With what was typed, and how it is written."""
    with pytest.raises(ValueError, match="sweep") as caught:
        points(sweep)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (["--sweep", "optim.lr=1e-3,fast"], "Got value: fast"),
        (["--sweep", "optim.lrr=1e-3"], "unknown setting 'optim.lrr'; did you mean 'optim.lr'?"),
        (["--sweep", "seed=0,1", "--sweep", "micro_batch=16,24"], "micro_batch 24 does not divide global_batch 64"),
        (["--max-parallel", "2"], "--max-parallel is for a --sweep"),
    ],
)
def test_one_bad_value_and_nothing_is_submitted(sweep: list[str], message: str, betons: Path, tmp_path: Path) -> None:
    """It is named, in one line, though other runs of the sweep could do."""
    refused = submit(tmp_path, *settings(betons), *sweep)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_slurm_the_runs_follow_each_other(betons: Path, tmp_path: Path) -> None:
    """One fails by its value, the other one runs all the same; again, only the one that failed is tried."""
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


def tasks(case: Case, count: int) -> list[Case]:  # noqa: F811
    """The runs of a sweep over so many values of what changes nothing."""
    return [replace(case, run=RunFolder(case.run.path / f"prefetch={i + 1}")) for i in range(count)]


def status(case: Case) -> dict[str, dict[str, object]]:  # noqa: F811
    """What status.py says of the sweep, run by run."""
    environment = os.environ | case.slurm.environment
    command = [*STATUS, str(case.run.path), "--json"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    return {row["run"]: row for row in rows}


def test_each_task_of_an_array_is_requeued_by_itself(case: Case) -> None:  # noqa: F811
    """One at a time: the first is requeued at a step, the other one waits its turn; both end with the same bits."""
    sweep = ("--sweep", f"{HARMLESS}=1,2", "--max-parallel", "1")
    done = case.submit(*sweep)
    assert done.returncode == 0, done.stderr
    first, second = tasks(case, 2)
    array = first.job.partition("_")[0]
    assert (first.job, second.job) == (f"{array}_0", f"{array}_1")
    first.until(lambda: first.steps_done() >= 3, "step 3")
    with first.braked():
        rows = status(case)
        assert (rows["prefetch=1"]["state"], rows["prefetch=2"]["state"]) == ("running", "queued")
        assert rows["prefetch=2"]["detail"] == "JobArrayTaskLimit"
        again = case.submit(*sweep)
        assert "2 runs, 0 complete, 2 in the queue already" in again.stdout
        case.slurm.call("scontrol", "requeue", first.job)
        first.until(lambda: first.happened("stopped"), "the save")
    for task in (first, second):
        task.finish()
        task.until(lambda: case.slurm.state(task.job) == "COMPLETED", "the end of the task")  # noqa: B023
    assert first.starts() == [0, first.stopped_at()]
    assert second.starts() == [0]
    assert first.weights() == second.weights()
    rows = status(case)
    assert {row["state"] for row in rows.values()} == {"finished"}
    assert (rows["prefetch=1"]["requeues"], rows["prefetch=2"]["requeues"]) == (1, 0)
    assert {(row["step"], row["steps"]) for row in rows.values()} == {(STEPS, STEPS)}
    assert "2 complete" in case.submit(*sweep).stdout


@campaign
@pytest.mark.timeout(1800)
def test_an_array_of_eight_ends_with_the_same_bits_whatever_hits_its_tasks(case: Case) -> None:  # noqa: F811
    """A rank killed, a supervisor killed, a task requeued, a task canceled and asked for again, all preempted."""
    sweep = ("--sweep", f"{HARMLESS}={','.join(str(i + 1) for i in range(8))}", "--max-parallel", "4")
    sweep += ("--checkpoint.every_minutes", "0.005")
    assert case.submit(*sweep).returncode == 0
    all_tasks = tasks(case, 8)
    killed, orphaned, requeued, canceled = all_tasks[:4]
    for task in all_tasks[:4]:
        task.until(lambda: task.happened("checkpoint"), "a checkpoint", 600)  # noqa: B023
    with killed.braked(), orphaned.braked(), requeued.braked(), canceled.braked():
        killed.ranks()[0].kill()
        killed.until(lambda: killed.happened("restarting in place"), "the restart")
        orphaned.ranks()[0].parents()[1].kill()  # above what the ranks are forks of
        case.slurm.call("scontrol", "requeue", requeued.job)
        requeued.until(lambda: requeued.happened("stopped"), "the save")
        case.slurm.call("scancel", canceled.job)
    killed.until(lambda: killed.run.finished() or killed.steps_done() > STEPS // 2, "half of the run", 600)
    case.preempt()
    again = case.submit(*sweep)
    assert again.returncode == 0, again.stderr
    for task in all_tasks:
        task.until(task.run.finished, "the end of the run", 1200)
    assert "_" not in canceled.job  # submitted alone, by the second command
    assert len({task.weights() for task in all_tasks}) == 1
