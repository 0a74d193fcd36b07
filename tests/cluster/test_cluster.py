"""Runs on a real Slurm: whatever happens to the job, it ends with the weights of the run that was left alone.

`pytest -m campaign` runs all of them; those without that mark are the short form.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from tests.helpers.disks import mounted
from tests.helpers.paths import ROOT
from tests.helpers.slurm_cluster import Cluster, wait_for
from vit.checkpoint.format import find_checkpoints
from vit.checkpoint.load import load_checkpoint
from vit.run.folder import Event, RunFolder
from vit.run.jsonl import read_lines

SUBMIT = [sys.executable, str(ROOT / "jobs" / "submit.py"), "--config", str(ROOT / "configs" / "demo.yaml")]
STEPS = 48  # of the whole run, a second of them if nobody slows it down
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

campaign = pytest.mark.campaign


@dataclass(frozen=True)
class Case:
    """A run on the cluster, and what a test does to it."""

    slurm: Cluster
    run: RunFolder
    options: tuple[str, ...]
    command: tuple[str, ...] = tuple(SUBMIT)

    def submit(self, *options: str) -> "subprocess.CompletedProcess[str]":
        """Types the command."""
        command = self.popen(*options)
        out, err = command.communicate(timeout=120)
        return subprocess.CompletedProcess(command.args, command.returncode, out, err)

    def popen(self, *options: str) -> "subprocess.Popen[str]":
        """Types the command and does not wait."""
        self.run.path.parent.mkdir(exist_ok=True)
        return subprocess.Popen(
            [*self.command, "--cluster", "slurm", "--name", self.run.path.name, *self.options, *options],
            cwd=self.run.path.parents[1], env=os.environ | self.slurm.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(self, *options: str, until_step: int = 3) -> str:
        """Submits, waits until the run has done some steps, and returns the job's number."""
        done = self.submit(*options)
        assert done.returncode == 0, done.stderr
        self.until(lambda: self.steps_done() >= until_step, f"step {until_step}")
        return self.job

    @property
    def job(self) -> str:
        """The number of the job that was submitted last."""
        submitted = self.run.last("submitted")
        assert submitted is not None
        return str(submitted["job"])

    def until(self, condition: Callable[[], object], what: str, seconds: float = 400) -> None:
        """Waits; an end of the job that is not asked for ends the waiting too, with all that the job said."""
        begun = looked = time.monotonic()
        while not condition():
            now, ended = time.monotonic(), False
            if now - looked > 2:
                looked, ended = now, self.slurm.state(self.job) in ENDED - {"COMPLETED"}
            if (now - begun > seconds or ended) and not condition():
                pytest.fail(f"{what} never came\n{self.said()}")
            time.sleep(0.05)

    @contextmanager
    def braked(self, seconds: float = 0.3) -> Iterator[threading.Event]:
        """Holds rank 0 by SIGSTOP for a while after each step, so that a fault finds the run half-way.

        Once the event is set it is held for good, whoever else sends it a SIGCONT.
        """
        over, hold = threading.Event(), threading.Event()

        def brake() -> None:
            while not over.is_set():
                ranks, before = self.ranks()[:1], self.steps_done()
                with suppress(psutil.NoSuchProcess):
                    while ranks and not over.wait(0.003 if hold.is_set() else 0.01) and alive(ranks[0]):
                        if hold.is_set():
                            ranks[0].suspend()
                        elif (done := self.steps_done()) > before:
                            before = done
                            ranks[0].suspend()
                            begun = time.monotonic()
                            while time.monotonic() < begun + seconds and not (hold.is_set() or over.is_set()):
                                time.sleep(0.01)
                            if not hold.is_set():
                                ranks[0].resume()
                over.wait(0.1)

        thread = threading.Thread(target=brake)
        thread.start()
        try:
            yield hold
        finally:
            over.set()
            thread.join()

    def preempt(self) -> None:
        """Has a job of a higher partition take all nodes for a second."""
        take = ("--nodes", "2", "--exclusive", "--output", "/dev/null", "--wrap", "sleep 1")
        self.slurm.call("sbatch", "--partition", "high", *take)

    def lose(self, node: str) -> None:
        """Everything on a node is killed, slurmd first; then it is switched on again."""
        for process in self.slurm.of_node(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.slurm.restart(f"slurmd-{node}")

    def submit_faulty(self, condition: str) -> None:
        """Submits a run whose rank raises in a step; `once` is a file that is there after the first time."""
        self.submit_patched(
            "vit/training/trainer.py",
            '        compiling = self.cfg.compile and not skipped and not self.clock.seconds.get("compile")\n',
            f"""        once = self.run.path / "once"
        {condition}
            once.touch()
            raise OSError("the disk is on fire")
""",
        )

    def submit_patched(self, file: str, line: str, more: str, *options: str) -> None:
        """Submits, and adds to a line of the source in the run folder, which is what the job will run."""
        done = self.submit("--gpus", "2", *options)
        assert done.returncode == 0, done.stderr
        source = self.run.source / file
        assert source.read_text().count(line) == 1
        source.write_text(source.read_text().replace(line, line + more))

    def stopped_at(self) -> int:
        """The step at which the run was saved last because it was told to stop."""
        return int(self.happened("stopped")[-1]["step"])

    def finish(self, seconds: float = 400) -> None:
        """Waits until the run is complete, and its job with it."""
        self.until(self.run.finished, "the end of the run", seconds)
        self.until(lambda: self.slurm.state(self.job) == "COMPLETED", "the end of the job")

    def requeue_and_finish(self) -> None:
        """As an admin does it, half-way: it is saved, and goes on at the very next step."""
        with self.braked():
            self.slurm.call("scontrol", "requeue", self.job)
            self.until(lambda: self.happened("stopped"), "the save")
        self.finish()
        assert self.starts() == [0, self.stopped_at()]

    def steps_done(self) -> int:
        records = read_lines(self.run.metrics)
        return int(records[-1]["step"]) if records else 0

    def starts(self) -> list[int]:
        """The steps at which the run began, and went on."""
        return [e["step"] for e in self.run.events() if e["event"] == "started"]

    def lost_least(self) -> bool:
        """Whether it was started again, and each time from a step that was safe, the newest of them."""
        safe, starts = 0, 0
        for event in self.run.events():
            if event["event"] == "started":
                starts += 1
                if event["step"] < safe or (starts > 1 and not event["step"]):
                    return False
            elif event["event"] in {"checkpoint", "stopped"}:
                safe = max(safe, event["step"])
        return starts > 1

    def happened(self, name: str) -> list[Event]:
        """The events of a name."""
        return [e for e in self.run.events() if e["event"] == name]

    def weights(self, steps: int = STEPS) -> bytes:
        """All that the finished run remembers, to the bit."""
        newest = find_checkpoints(self.run.checkpoints)[0]
        assert newest.name == f"step-{steps:08d}"
        tensors, _ = load_checkpoint(newest)
        return b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))

    def processes(self, module: str) -> list[psutil.Process]:
        """The run's processes: its ranks (`vit.train (rank`) or its supervisors (`submitit`)."""
        out = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = " ".join(process.cmdline())
                ours = module in command and str(self.run.path) in command and "srun" not in command
                if ours and process.name() != "slurm_script" and process.status() != psutil.STATUS_ZOMBIE:
                    out.append(process)
        return out

    def ranks(self) -> list[psutil.Process]:
        """The training processes, in the order of their ranks."""
        out = {}
        for process in self.processes("vit.train (rank"):
            with suppress(psutil.Error, ValueError):  # it may end just now
                out[int(" ".join(process.cmdline()).partition("(rank ")[2].partition(")")[0])] = process
        return [out[rank] for rank in sorted(out)]

    def said(self) -> str:
        """All that happened and was printed, for a test that failed."""
        files = [self.run.ledger, *sorted(self.run.logs.glob("*")), *sorted(self.run.jobs.glob("*.out"))]
        text = "\n".join(f"== {f.name}\n" + "\n".join(f.read_text().splitlines()[-40:]) for f in files if f.exists())
        return f"{self.slurm.call('scontrol', 'show', 'job', self.job, check=False)}\n{text}"


def alive(process: psutil.Process) -> bool:
    """Whether a process still does something."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def settings(betons: Path) -> tuple[str, ...]:
    """Four micro-batches of 16 images a step, so that one, two or four ranks may run; 8 steps an epoch."""
    data = ("--data.train", str(betons / "train.beton"), "--data.val", str(betons / "val.beton"), "--data.workers", "1")
    small = ("--epochs", str(STEPS // 8), "--global_batch", "64", "--micro_batch", "16", "--log.every_steps", "1")
    resources = ("--cpus-per-gpu", "1", "--time", "1:00:00", "--partition", "low")
    return (*data, *small, "--model.depth", "1", "--optim.warmup_epochs", "1", "--device", "cpu", *resources)


@pytest.fixture
def case(slurm: Cluster, betons: Path, tmp_path: Path) -> Iterator[Case]:
    """A fresh run folder on a cluster whose nodes are free; jobs that a failed test left are canceled."""
    case = Case(slurm, RunFolder(tmp_path / "runs" / "run"), settings(betons))
    yield case
    slurm.call("scancel", "--user", "root", check=False)
    wait_for(slurm.nodes_idle, "the nodes never got free", 120)


@pytest.fixture(scope="session")
def undisturbed(slurm: Cluster, betons: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the run that was left alone, with two ranks on one node."""
    case = Case(slurm, RunFolder(tmp_path_factory.mktemp("undisturbed") / "runs" / "run"), settings(betons))
    done = case.submit("--gpus", "2")
    assert done.returncode == 0, done.stderr
    case.finish()
    assert case.starts() == [0]
    return case.weights()


def test_a_job_that_is_preempted_loses_no_step(case: Case, undisturbed: bytes) -> None:
    """A job of a higher partition takes the nodes; when it is done the run goes on at the very next step."""
    job = case.start("--gpus", "1", "--nodes", "2")
    with case.braked():
        case.preempt()
        case.until(lambda: case.happened("stopped"), "the save")
    case.finish()
    assert case.job == job
    assert case.starts() == [0, case.stopped_at()]
    assert case.weights() == undisturbed


@campaign
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_job_that_is_preempted_without_a_signal_of_its_own_loses_no_step(
    nodes: str, case: Case, undisturbed: bytes
) -> None:
    """As most clusters are set: TERM, and KILL after the partition's grace time."""
    case.slurm.user_signal(False)
    try:
        case.start("--gpus", "2", "--nodes", nodes)
        with case.braked():
            case.preempt()
            case.until(lambda: case.happened("stopped"), "the save")
        case.finish()
    finally:
        case.slurm.user_signal(True)
    assert case.starts() == [0, case.stopped_at()]
    assert case.weights() == undisturbed


@campaign
def test_a_job_that_cannot_save_in_its_grace_time_loses_what_came_after_its_checkpoint(
    case: Case, undisturbed: bytes
) -> None:
    """It is killed while it stands still, and goes on from the newest checkpoint."""
    case.start("--gpus", "2", "--checkpoint.every_minutes", "0.005")
    with case.braked() as hold:
        case.until(lambda: case.happened("checkpoint"), "a checkpoint")
        hold.set()
        case.slurm.call("scontrol", "requeue", case.job)
        case.until(lambda: not case.ranks(), "the end of the ranks")
    case.finish()
    assert not case.happened("stopped")
    assert case.lost_least()
    assert case.weights() == undisturbed


@campaign
def test_a_job_may_reach_its_time_limit_as_often_as_it_likes(case: Case, undisturbed: bytes) -> None:
    """Four times here; submitit's own default gives up after three."""
    case.start("--gpus", "2", "--time", "9", until_step=4)  # under ten minutes each USR2 is a time-out for submitit
    for count in range(1, 5):
        with case.braked(seconds=3):
            case.until(lambda: len(case.starts()) == count, "the next start")  # noqa: B023
            case.until(lambda: case.slurm.state(case.job) == "RUNNING", "the job")
            case.slurm.call("scontrol", "update", f"JobId={case.job}", "TimeLimit=2")
            case.until(lambda: len(case.happened("stopped")) == count, "the save")  # noqa: B023
            case.until(lambda: case.slurm.state(case.job) == "PENDING", "the requeue")
        case.slurm.call("scontrol", "update", f"JobId={case.job}", "TimeLimit=60")
    case.finish()
    assert "(9996 remaining timeouts)" in "".join(f.read_text() for f in case.run.jobs.glob("*.out"))
    assert case.starts() == [0, *(e["step"] for e in case.happened("stopped"))]
    assert case.weights() == undisturbed


def test_a_job_that_an_admin_requeues_loses_no_step(case: Case, undisturbed: bytes) -> None:
    """`scontrol requeue`: TERM, and KILL after a while.  The same command, typed meanwhile, is refused."""
    case.start("--gpus", "2")
    with case.braked():
        refused = case.submit("--gpus", "2")
    assert refused.returncode == 1
    assert re.search(r"run is running already, on n[12]\.\n  job +\d", refused.stderr)
    case.requeue_and_finish()
    assert case.weights() == undisturbed


def test_a_canceled_run_stays_canceled_and_the_same_command_goes_on(case: Case, undisturbed: bytes) -> None:
    """`scancel` on two nodes: saved, not requeued; typed again, on one node, it goes on at the very next step."""
    job = case.start("--gpus", "1", "--nodes", "2")
    with case.braked():
        case.slurm.call("scancel", job)
        again = case.submit("--gpus", "2")  # at once, while the ranks still save
    assert again.returncode == 0, again.stderr
    assert f"waiting for the end of job {job}" in again.stdout
    assert case.job != job
    case.finish()
    assert case.starts() == [0, case.stopped_at()]
    assert case.weights() == undisturbed
    assert case.slurm.state(job) == "CANCELLED"


def test_a_rank_that_dies_on_one_of_two_nodes_is_started_again_in_place(case: Case, undisturbed: bytes) -> None:
    """SIGKILL: all ranks of both nodes start again from the newest checkpoint, and Slurm never hears of it."""
    case.start("--gpus", "2", "--nodes", "2", "--checkpoint.every_minutes", "0.005")
    with case.braked():
        case.until(lambda: case.happened("checkpoint"), "a checkpoint")
        case.ranks()[3].kill()
        case.until(lambda: case.happened("restarting in place"), "the restart")
    case.finish()
    (restart,) = case.happened("restarting in place")
    assert (restart["rank"], restart["reason"]) == (3, "ended with SIGKILL")
    assert restart["node"] in {"n1", "n2"}
    assert case.lost_least()
    assert len(case.starts()) == 2
    assert case.slurm.job(case.job)["Restarts"] == "0"
    assert case.weights() == undisturbed


def test_a_rank_that_stands_still_is_found_out_and_started_again(case: Case, undisturbed: bytes) -> None:
    """SIGSTOP of one rank: the others' stacks are written down, all are ended, and the run goes on in place."""
    case.start("--gpus", "2", "--checkpoint.every_minutes", "0.005", "--stall-seconds", "4")
    with case.braked():  # or it may be finished in the second that the rank has for its stacks
        case.until(lambda: case.happened("checkpoint"), "a checkpoint")
        case.ranks()[1].suspend()
        case.until(lambda: case.happened("restarting in place"), "the restart")
    case.finish()
    (restart,) = case.happened("restarting in place")
    assert restart["rank"] == 1
    assert "was stopped by SIGSTOP for" in restart["reason"]
    for rank in (0, 1):  # in the step, or where ranks agree
        assert "train.py" in (case.run.logs / f"rank-{rank}.stacks").read_text()
    assert case.starts()[1] > 0
    assert case.weights() == undisturbed


@campaign
def test_a_rank_that_raises_is_started_again_in_place(case: Case, undisturbed: bytes) -> None:
    """Once: the other rank only tells that it lost the connection, and the right one is blamed."""
    case.submit_faulty("if step == 9 and self.world.rank == 1 and not once.exists():")
    case.finish()
    (restart,) = case.happened("restarting in place")
    assert (restart["rank"], restart["reason"], restart["step"]) == (1, "OSError: the disk is on fire", 9)
    assert case.weights() == undisturbed


@campaign
def test_what_the_ranks_of_a_node_are_forks_of_may_die(case: Case, undisturbed: bytes) -> None:
    """SIGKILL: the ranks save and leave, and others are started in place, of another one."""
    case.start("--gpus", "2")
    with case.braked():
        case.ranks()[0].parents()[0].kill()
        case.until(lambda: case.happened("restarting in place"), "the restart")
    case.finish()
    assert case.starts() == [0, case.stopped_at()]
    assert case.slurm.job(case.job)["Restarts"] == "0"
    assert case.weights() == undisturbed


@campaign
def test_a_run_that_always_fails_at_the_same_step_ends_and_says_why(case: Case) -> None:
    """Two attempts are enough; the message has the rank, its node, its exception and the log's last lines."""
    case.submit_faulty("if step == 5 and self.world.rank == 1:")  # before the first checkpoint
    wait_for(lambda: case.slurm.state(case.job) == "FAILED", "the end of the job", 120)
    (end,) = case.happened("gave up")
    for words in ("rank 1 on n", "at step 5: OSError: the disk is on fire", "raise OSError", "logs/rank-1.log"):
        assert words in end["why"]
    assert len(case.starts()) == 2
    assert "the disk is on fire" in "".join(f.read_text() for f in case.run.jobs.glob("*.out"))


@campaign
def test_a_run_that_fails_before_its_first_step_is_tried_on_another_node_and_ends(case: Case) -> None:
    """Twice on one, for it may be a hiccup, and on the other, for it may be the node."""
    wrong = '        if world.rank == 1:\n            raise OSError("the disk is on fire")\n'
    case.submit_patched("vit/training/trainer.py", "        self.state = TrainState.fresh(cfg, world.device)\n", wrong)
    case.until(lambda: case.happened("gave up"), "the end of the run", 200)
    (restart,), requeues, (end,) = map(case.happened, ("restarting in place", "requeueing", "gave up"))
    first = restart["node"]
    (other,) = {"n1", "n2"} - {first}
    assert [(e["node"], e["exclude"]) for e in requeues] == [(first, [first]), (other, [first])]
    assert "rank 1 on n" in end["why"]
    assert "OSError: the disk is on fire" in end["why"]
    assert "4 attempts failed in the same way before their first step, on 3 starts of the job" in end["why"]
    assert case.starts() == []


@pytest.mark.parametrize("nodes", ["1", pytest.param("2", marks=campaign)])
def test_a_supervisor_that_dies_is_replaced_by_a_requeue(nodes: str, case: Case, undisturbed: bytes) -> None:
    """SIGKILL of the last node's: its ranks save and leave with it, the other node leaves, the job starts again."""
    case.start("--gpus", "2", "--nodes", nodes)
    with case.braked():
        case.processes("submitit.core")[-1].kill()
        case.until(lambda: case.happened("stopped"), "the save")
    case.finish()
    assert case.slurm.job(case.job)["Restarts"] == "1"
    assert case.starts() == [0, case.stopped_at()]
    assert case.weights() == undisturbed


@campaign
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_node_that_dies_is_replaced(nodes: str, case: Case, undisturbed: bytes) -> None:
    """Everything on the job's last node is killed, slurmd first: it is requeued and goes on from its checkpoint."""
    job = case.start("--gpus", "1", "--nodes", nodes, "--checkpoint.every_minutes", "0.005")
    node = case.slurm.job(job)["BatchHost"] if nodes == "1" else "n2"
    with case.braked():
        case.until(lambda: case.happened("checkpoint"), "a checkpoint")
        for process in case.slurm.of_node(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_for(lambda: case.slurm.state(case.job) != "RUNNING", "the requeue", 120)
    case.slurm.restart(f"slurmd-{node}")
    case.finish()
    assert int(case.slurm.job(case.job)["Restarts"]) >= 1
    assert case.lost_least()
    assert case.weights() == undisturbed


@campaign
def test_a_node_that_fails_twice_is_left_for_another(case: Case, undisturbed: bytes) -> None:
    """One restart in place is allowed here: the second failure requeues the job, which then runs on the other node."""
    case.start("--gpus", "2", "--max-restarts", "1", "--max-same-step", "9")
    first = case.slurm.job(case.job)["BatchHost"]
    with case.braked():
        case.ranks()[0].kill()
        case.until(lambda: len(case.starts()) == 2, "the restart in place")
        case.ranks()[1].kill()
        case.until(lambda: case.happened("requeueing"), "the requeue")
    case.finish()
    assert case.happened("requeueing")[0]["exclude"] == [first]
    assert case.slurm.job(case.job)["ExcNodeList"] == first
    assert case.slurm.job(case.job)["BatchHost"] != first
    assert case.weights() == undisturbed


@campaign
def test_a_node_that_failed_twice_is_left_at_the_time_limit_too(case: Case, undisturbed: bytes) -> None:
    """It was started again in place there, and is not used again once there is a choice."""
    case.start("--gpus", "2", "--max-same-step", "9")
    first = case.slurm.job(case.job)["BatchHost"]
    with case.braked():
        for starts in (2, 3):
            case.ranks()[0].kill()
            case.until(lambda: len(case.starts()) == starts, "the restart in place")  # noqa: B023
        case.slurm.call("scancel", "--signal", "USR2", case.job)
        case.until(lambda: case.happened("stopped"), "the save")
    case.finish()
    assert not case.happened("requeueing")
    assert case.starts()[-1] == case.stopped_at()
    assert case.slurm.job(case.job)["ExcNodeList"] == first
    assert case.slurm.job(case.job)["BatchHost"] != first
    assert case.weights() == undisturbed


@campaign
def test_a_job_that_may_not_be_requeued_ends_at_once_and_the_same_command_goes_on(
    case: Case, undisturbed: bytes
) -> None:
    """`requeue: false`: Slurm would never do it, and nobody waits for it."""
    case.start("--gpus", "2", "--requeue", "false")
    with case.braked():
        case.slurm.call("scancel", "--signal", "TERM", case.job)
        case.until(lambda: case.happened("stopped"), "the save")
    wait_for(lambda: case.slurm.state(case.job) == "COMPLETED", "the end of the job", 30)
    said = "".join(file.read_text() for file in case.run.jobs.glob("*.out"))
    assert "the job could not be requeued: " in said
    assert case.submit("--gpus", "2").returncode == 0
    case.finish()
    assert case.starts() == [0, case.stopped_at()]
    assert case.weights() == undisturbed


@campaign
def test_a_node_that_lost_the_run_folder_does_not_end_the_run(case: Case, undisturbed: bytes) -> None:
    """Its mount is gone when the job starts again: it is named, and the job waits for another node, or its return."""
    case.start("--gpus", "1", "--nodes", "2")
    with case.braked():
        case.slurm.restart("slurmd-n2", blind_to=case.run.path.parent)
        case.slurm.call("scontrol", "requeue", case.job)
        case.until(lambda: case.happened("stopped"), "the save")
    case.until(lambda: case.happened("requeueing"), "the requeue")
    case.slurm.restart("slurmd-n2")
    case.finish()
    event = case.happened("requeueing")[0]
    assert (event["kind"], event["node"], event["exclude"]) == ("sick", "n2", ["n2"])
    said = "".join(file.read_text() for file in case.run.jobs.glob("*.out"))
    assert f"n2 does not see {case.run.source}" in said
    assert "the job may get n2 again: too few nodes are left without" in said
    assert case.starts() == [0, case.stopped_at()]
    assert case.weights() == undisturbed


@campaign
@pytest.mark.parametrize("daemon", ["slurmctld", "slurmdbd"])
def test_slurm_itself_may_fail(daemon: str, case: Case, undisturbed: bytes) -> None:
    """A daemon is killed: the run does not notice, and a requeue still works; that of the accounts stays away."""
    case.start("--gpus", "2")
    try:
        with case.braked():
            case.slurm.daemon(daemon).kill()
            time.sleep(3)
            if daemon == "slurmctld":
                case.slurm.restart(daemon)
                wait_for(lambda: "UP" in case.slurm.call("scontrol", "ping", check=False), "Slurm's answer")
            case.slurm.call("scontrol", "requeue", case.job)
            case.until(lambda: case.happened("stopped"), "the save")
        case.finish()
    finally:
        if not case.slurm.alive(daemon):
            case.slurm.restart(daemon)
    assert case.starts() == [0, case.stopped_at()]
    assert case.weights() == undisturbed


@campaign
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_job_that_is_told_to_stop_while_slurm_does_not_answer_is_requeued_later(
    nodes: str, case: Case, undisturbed: bytes
) -> None:
    """The controller is down at the time limit: the batch script asks until it is heard."""
    case.start("--gpus", "2", "--nodes", nodes)
    with case.braked():
        case.slurm.daemon("slurmctld").kill()
        for supervisor in case.processes("submitit.core"):
            supervisor.send_signal(signal.SIGUSR2)
        wait_for(lambda: case.happened("stopped"), "the save")
        wait_for(lambda: not case.processes("submitit.core"), "the end of the supervisors")
        case.slurm.restart("slurmctld")
    case.finish()
    assert case.starts() == [0, case.stopped_at()]
    assert case.weights() == undisturbed


@campaign
def test_a_checkout_that_changes_does_not_change_a_run(case: Case, undisturbed: bytes, tmp_path: Path) -> None:
    """Neither one that waits nor one that is requeued: what runs is the source in the run folder."""
    checkout = tmp_path / "checkout"
    for room in ("vit", "jobs", "data_prep", "configs"):
        shutil.copytree(ROOT / room, checkout / room)
    theirs = replace(case, command=tuple(word.replace(str(ROOT / "jobs"), str(checkout / "jobs")) for word in SUBMIT))
    assert theirs.submit("--gpus", "2", "--sbatch", "begin=now+5").returncode == 0
    for source in (*(checkout / "vit").rglob("*.py"), *(checkout / "jobs").rglob("*.py")):
        source.write_text("raise AssertionError('this is not what was submitted')\n")
    case.until(lambda: case.steps_done() > 2, "some steps")
    case.requeue_and_finish()
    assert case.weights() == undisturbed


@campaign
def test_of_two_commands_at_once_one_submits(case: Case, undisturbed: bytes) -> None:
    """Typed at the same moment; the other one says that the run is taken, and nothing runs twice."""
    commands = [case.popen("--gpus", "2") for _ in range(4)]
    outcomes = [(*command.communicate(timeout=60), command.returncode) for command in commands]
    assert sum("submitted;" in out for out, _, _ in outcomes) == 1, outcomes
    refused = [err for _, err, code in outcomes if code == 1]
    assert len(refused) == 3, outcomes
    assert all(re.search("in the queue already|running already, on n|is in use by", err) for err in refused), outcomes
    case.finish()
    assert len(case.happened("submitted")) == 1
    assert case.starts() == [0]
    assert case.weights() == undisturbed


@campaign
def test_a_requeue_that_gets_fewer_gpus_goes_on_with_fewer_ranks(case: Case, undisturbed: bytes) -> None:
    """Four at first, then two on the same node: the same samples, the same bits."""
    # The cluster's GPUs are not real: each node would be found out to be sick.
    job = case.start("--gpus", "4", "--device", "auto", "--no-health-check")
    with case.braked():
        case.slurm.call("scontrol", "requeue", job)
        case.until(lambda: case.happened("stopped"), "the save")
        case.slurm.call("scontrol", "update", f"JobId={job}", "TresPerNode=gres:gpu:3")
    case.finish()
    assert [e["ranks"] for e in case.happened("started")] == [4, 2]
    assert case.starts() == [0, case.stopped_at()]
    assert case.weights() == undisturbed


SICK = """import os, sys
from pathlib import Path
if "vit.node_check" in " ".join(sys.orig_argv):
    node, sick = os.environ["SLURMD_NODENAME"], Path(__file__).with_name("sick")
    if not sick.exists():
        sick.write_text(node)
    if sick.read_text() == node:
        import torch
        right = torch.Tensor.__matmul__
        torch.Tensor.__matmul__ = lambda a, b: right(a, b) + 1
"""


@campaign
def test_a_node_that_computes_wrongly_is_left_before_it_trains(case: Case, undisturbed: bytes) -> None:
    """No rank starts on it; the ledger and the job's output name it, and Slurm is told to keep the job off it."""
    done = case.submit("--gpus", "2")
    assert done.returncode == 0, done.stderr
    (case.run.source / "sitecustomize.py").write_text(SICK)
    case.until(lambda: case.happened("requeueing"), "the requeue")
    assert not case.starts()
    case.finish()
    (event,) = case.happened("requeueing")
    sick = (case.run.source / "sick").read_text()
    assert (event["kind"], event["node"], event["exclude"]) == ("sick", sick, [sick])
    said = "".join(f.read_text() for f in case.run.jobs.glob("*.out"))
    assert f"{sick} is not fit for this run: cpu computes a wrong product of two matrices" in said
    assert case.slurm.job(case.job)["BatchHost"] != sick
    assert case.starts() == [0]
    assert case.weights() == undisturbed


@campaign
def test_a_batch_that_cannot_be_trained_on_is_skipped_in_place(case: Case, tmp_path: Path) -> None:
    """No attempt fails; and a rank that dies after it changes nothing."""
    fault = (
        "vit/training/step.py",
        "        losses = []\n",
        "        if step == 20:\n            batch.micro_batches[0][0].fill_(math.nan)\n",
    )
    case.submit_patched(*fault)
    case.until(lambda: case.steps_done() > 5, "some steps")
    with case.braked():
        case.until(lambda: case.happened("rolled back"), "the bad step")
        case.ranks()[1].kill()
        case.until(lambda: case.happened("restarting in place"), "the restart")
    case.finish()
    alone = replace(case, run=RunFolder(tmp_path / "runs" / "alone"))
    alone.submit_patched(*fault)
    alone.finish()
    assert [e["step"] for e in case.happened("skipped")] == [e["step"] for e in alone.happened("skipped")] == [21]
    assert len(case.starts()) == 2
    assert alone.starts() == [0]
    assert case.weights() == alone.weights()


@campaign
def test_a_full_disk_in_the_run_folder_costs_nothing_but_checkpoints(case: Case, undisturbed: bytes) -> None:
    """Nothing can be written there for a while, no log and no ledger either: the ranks train on."""
    case.run.path.mkdir(parents=True)
    with mounted(case.run.path, "64m"):
        case.start("--gpus", "2", "--checkpoint.every_minutes", "0.005")
        full = case.run.path / "full"
        (rank, *_) = case.ranks()
        rank.suspend()
        with suppress(OSError), full.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        for _ in range(6):
            rank.resume()
            time.sleep(0.05)
            rank.suspend()
            time.sleep(0.5)
        full.unlink()
        rank.resume()
        case.finish()
        assert case.happened("checkpoint failed")
        assert case.starts() == [0]
        assert case.weights() == undisturbed


@campaign
def test_a_disk_that_is_too_full_for_submitit_does_not_end_the_run(case: Case, undisturbed: bytes) -> None:
    """At the time limit it writes the job down again before it asks for the requeue, and could not."""
    case.run.jobs.mkdir(parents=True)
    with mounted(case.run.jobs, "1m"):
        case.start("--gpus", "2")
        with case.braked():
            full = case.run.jobs / "full"
            with suppress(OSError), full.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            case.slurm.call("scancel", "--signal", "USR2", case.job)
            case.until(lambda: case.happened("stopped"), "the save")
            wait_for(lambda: case.slurm.state(case.job) == "PENDING", "the requeue")
            full.unlink()
        case.finish()
        assert case.starts() == [0, case.stopped_at()]
        assert case.weights() == undisturbed


@campaign
def test_data_are_copied_to_the_nodes_and_a_requeue_finds_them_there(
    case: Case, undisturbed: bytes, tmp_path: Path
) -> None:
    """Stopped in the middle of the copy, which goes on after the requeue; once it is whole nothing is copied again."""
    slow = "        read_into(source, shared, start, memory)\n", "        page or self._canceled.wait()\n"
    case.submit_patched("vit/data/stage.py", *slow, "--nodes", "2", "--data.stage", str(tmp_path / "local"))
    case.until(lambda: list((tmp_path / "local").rglob("*.tmp")), "the copy")
    time.sleep(1)
    case.slurm.call("scontrol", "requeue", case.job)
    case.until(lambda: case.happened("stopped"), "the end of the copying")
    assert not case.starts()
    source = case.run.source / "vit/data/stage.py"
    source.write_text(source.read_text().replace(slow[1], ""))
    case.until(lambda: case.steps_done() > 2, "some steps")
    with case.braked():
        case.slurm.call("scontrol", "requeue", case.job)
        case.until(lambda: len(case.happened("stopped")) == 2, "the save")
    case.finish()
    assert [e["copied"] for e in case.happened("staged")][2:] == [0, 0], "two nodes, the second time"
    assert case.starts() == [0, case.stopped_at()]
    assert case.weights() == undisturbed


STORM_SECONDS = 600


@campaign
@pytest.mark.timeout(1800)
def test_a_storm_of_faults_changes_no_bit(case: Case, tmp_path: Path) -> None:
    """For ten minutes, one every 20 s on average, on two nodes: whatever they hit, the run goes on to the same end."""
    longer = ("--gpus", "1", "--epochs", "100", "--checkpoint.every_minutes", "0.005")
    dice = random.Random(0)
    case.start(*longer, "--nodes", "2", "--stall-seconds", "5", "--max-same-step", "9", "--max-restarts", "9")
    faults: list[Callable[[], object]] = [
        lambda: dice.choice(case.ranks()).kill(),
        lambda: dice.choice(case.ranks()).suspend(),
        lambda: dice.choice(case.processes("submitit.core")).kill(),
        lambda: case.slurm.call("scontrol", "requeue", case.job, check=False),
        lambda: case.slurm.call("scancel", "--signal", "USR2", case.job, check=False),
        lambda: case.slurm.call("scancel", "--signal", "TERM", case.job, check=False),
        lambda: case.slurm.restart("slurmctld"),
        lambda: case.slurm.restart("slurmdbd"),
        lambda: case.lose(dice.choice(["n1", "n2"])),
        case.preempt,
    ]
    deadline = time.monotonic() + STORM_SECONDS
    with case.braked(seconds=1):
        while time.monotonic() < deadline and not case.run.finished():
            for fault in dice.sample(faults, len(faults)):  # each of them before one comes again
                time.sleep(dice.expovariate(1 / 20))
                with suppress(IndexError, psutil.NoSuchProcess):
                    fault()
    case.finish(600)
    alone = replace(case, run=RunFolder(tmp_path / "runs" / "alone"))
    assert alone.submit(*longer, "--nodes", "2").returncode == 0
    alone.finish()
    assert len(case.starts()) > 3
    assert case.happened("restarting in place")
    assert case.weights(100 * 8) == alone.weights(100 * 8)


@campaign
def test_a_killed_test_run_leaves_nothing_of_its_cluster(tmp_path: Path) -> None:
    """Whoever started it gets SIGKILL while a job runs: daemons, steps and jobs end by themselves."""
    program = "import os; from tests.helpers import slurm_cluster as cluster; c = cluster.Cluster(); "
    program += "print(c.dir, flush=True); "
    program += "c.call('sbatch', '--wrap', 'srun sleep 600', '--output', '/dev/null'); "
    program += "cluster.wait_for(lambda: c.state('1') == 'RUNNING', 'the job'); os.kill(os.getpid(), 9)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = done.stdout.strip()
    wait_for(lambda: not any(folder in word for p in psutil.process_iter() for word in words(p)), "their end", 30)
    shutil.rmtree(folder)


def words(process: psutil.Process) -> list[str]:
    """A process's command line and environment."""
    with suppress(psutil.Error):
        return [*process.cmdline(), *process.environ().values()]
    return []
