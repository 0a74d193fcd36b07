"""What a job runs and where: the submitted source, one job per run, the GPUs it gets, data copied to its nodes."""

import re
import shlex
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.cluster_case import SUBMIT, Case, campaign
from tests.helpers.paths import ROOT
from tests.helpers.waiting import wait_for
from tests.jobs.test_special_paths import EVERYTHING
from vit.run.folder import RunFolder


@campaign
def test_changes_in_the_checkout_do_not_change_a_submitted_run(
    case: Case, reference_weights: bytes, tmp_path: Path
) -> None:
    """Neither while it is pending nor when it is requeued: it runs the source in its run folder."""
    checkout = tmp_path / "checkout"
    for package in ("vit", "jobs", "data_prep", "configs"):
        shutil.copytree(ROOT / package, checkout / package)
    command = tuple(word.replace(str(ROOT / "jobs"), str(checkout / "jobs")) for word in SUBMIT)
    assert replace(case, command=command).submit("--gpus", "2", "--sbatch", "begin=now+5").returncode == 0
    for source in (*(checkout / "vit").rglob("*.py"), *(checkout / "jobs").rglob("*.py")):
        source.write_text("raise AssertionError('this is not what was submitted')\n")
    case.wait_until(lambda: case.steps_done() > 2, "some steps")
    case.requeue_and_finish()
    assert case.weights() == reference_weights


@campaign
def test_a_run_in_a_folder_with_special_characters_trains_and_is_requeued(
    case: Case, reference_weights: bytes, tmp_path: Path
) -> None:
    """On two nodes, which check that they see the folder; its output files are where they belong."""
    folder = tmp_path / EVERYTHING.replace("\\", "")
    folder.mkdir()
    case = replace(case, run=RunFolder(folder / "runs" / "run"))
    job = case.start("--nodes", "2", "--gpus", "1")
    with case.slowed():
        case.slurm.call("scontrol", "requeue", job)
        case.wait_until(lambda: case.events("stopped"), "the save")
    case.finish()
    assert case.start_steps() == [0, case.stop_step()]
    assert {f"{job}_0_log.out", f"{job}_1_log.out"} <= {path.name for path in case.run.jobs.iterdir()}
    assert case.weights() == reference_weights


@campaign
def test_of_several_commands_at_the_same_time_only_one_submits(case: Case, reference_weights: bytes) -> None:
    """The others say that the run is in use, and the run runs once."""
    commands = [case.popen("--gpus", "2") for _ in range(4)]
    outcomes = [(*command.communicate(timeout=60), command.returncode) for command in commands]
    assert sum("submitted;" in out for out, _, _ in outcomes) == 1, outcomes
    refused = [err for _, err, code in outcomes if code == 1]
    assert len(refused) == 3, outcomes
    assert all(re.search("already in the queue|already running on n|is in use by", err) for err in refused), outcomes
    case.finish()
    assert len(case.events("submitted")) == 1
    assert case.start_steps() == [0]
    assert case.weights() == reference_weights


@campaign
def test_variables_of_the_submitting_shell_do_not_change_the_job(
    case: Case, reference_weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of sbatch's options, and of an allocation in which the command runs: the job has what was asked for."""
    shell = {"SBATCH_TIMELIMIT": "3", "SBATCH_NO_REQUEUE": "1", "SBATCH_EXPORT": "NONE", "PYTHONPATH": "/opt/torch"}
    allocation = {"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "1", "SLURM_MEM_PER_CPU": "9", "SLURM_MEM_PER_NODE": "9"}
    for name, value in (shell | allocation).items():
        monkeypatch.setenv(name, value)
    case.start("--gpus", "2")
    shown = case.slurm.call("scontrol", "show", "job", case.job)
    assert "TimeLimit=01:00:00" in shown
    assert "Requeue=1" in shown
    case.finish()
    assert [e["ranks"] for e in case.events("started")] == [2]
    assert case.weights() == reference_weights


@campaign
@pytest.mark.parametrize("unset", [[], ["SLURM_JOB_ID", "SLURM_JOBID"]])
def test_a_run_that_is_submitted_from_a_task_of_another_job_has_nothing_of_that_job(
    unset: list[str], case: Case, reference_weights: bytes
) -> None:
    """From a step with tasks and GPUs of its own, in a job array, as in the terminal of an interactive job."""
    request = ("--ntasks", "2", "--cpus-per-task", "2", "--gpus-per-task", "1", "--mem", "900", "--array", "3")
    step = ("srun", "--ntasks", "1", "--gres", "gpu:2", "--distribution", "cyclic")
    words = [*case.command, "--cluster", "slurm", "--name", case.run.path.name, *case.options, "--gpus", "1"]
    hidden = "".join(f"unset {name}; " for name in unset)
    script = shlex.join([*step, "sh", "-c", f"{hidden}exec {shlex.join([*words, '--nodes', '2'])}"])
    case.run.path.parent.mkdir()
    log = case.run.path.parents[1] / "outer.log"
    where = ("--chdir", str(case.run.path.parents[1]), "--output", str(log), "--partition", "low", "--nodes", "1")
    case.slurm.call("sbatch", *where, *request, "--wrap", script)
    wait_for(lambda: case.run.last("submitted"), "the submission", 120)
    case.finish()
    (start,) = case.events("supervising")
    assert start["life"] == f"{case.job}.0", log.read_text()
    assert [e["ranks"] for e in case.events("started")] == [2]
    assert case.weights() == reference_weights


@campaign
def test_a_requeued_job_that_gets_fewer_gpus_resumes_with_fewer_ranks(case: Case, reference_weights: bytes) -> None:
    """Four at first, then two on the same node: the same samples, the same bits."""
    # The cluster's GPUs are fake: the health check would find each node unhealthy.
    job = case.start("--gpus", "4", "--device", "auto", "--no-health-check")
    with case.slowed():
        case.slurm.call("scontrol", "requeue", job)
        case.wait_until(lambda: case.events("stopped"), "the save")
        case.slurm.call("scontrol", "update", f"JobId={job}", "TresPerNode=gres:gpu:3")
    case.finish()
    assert [e["ranks"] for e in case.events("started")] == [4, 2]
    assert case.start_steps() == [0, case.stop_step()]
    assert case.weights() == reference_weights


@campaign
def test_data_is_copied_to_the_nodes_once(case: Case, reference_weights: bytes, tmp_path: Path) -> None:
    """A copy that is interrupted continues after the requeue; a complete copy is used again by the next start."""
    slow = "        read_into(source, shared, start, memory)\n", "        page or self._canceled.wait()\n"
    case.submit_patched("vit/data/stage.py", *slow, "--nodes", "2", "--data.stage", str(tmp_path / "local"))
    case.wait_until(lambda: list((tmp_path / "local").rglob("*.tmp")), "the copy")
    time.sleep(1)
    case.slurm.call("scontrol", "requeue", case.job)
    case.wait_until(lambda: case.events("stopped"), "the end of the copying")
    assert not case.start_steps()
    source = case.run.source / "vit/data/stage.py"
    source.write_text(source.read_text().replace(slow[1], ""))
    case.wait_until(lambda: case.steps_done() > 2, "some steps")
    with case.slowed():
        case.slurm.call("scontrol", "requeue", case.job)
        case.wait_until(lambda: len(case.events("stopped")) == 2, "the save")
    case.finish()
    assert [e["copied"] for e in case.events("staged")][2:] == [0, 0], "on each of two nodes, at the second start"
    assert case.start_steps() == [0, case.stop_step()]
    assert case.weights() == reference_weights
