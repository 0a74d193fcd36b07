"""What a run writes about itself survives what happens to it: kills, restarts, a second job in the same folder."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.disks import mounted
from tests.helpers.paths import ROOT
from vit.config.schema import Config, to_yaml
from vit.run.clock import Clock
from vit.run.folder import JOB_VARIABLE, InUseError, RunFolder
from vit.run.jsonl import append, flush, read_lines
from vit.run.metrics import MetricsLog
from vit.run.progress import Pace, progress_line

STEPS = {"steps": 100, "epoch": 0.5, "epochs": 5}


def trained(step: int, loss: float = 1.0) -> dict[str, float]:
    return {"step": step, **STEPS, "loss": loss, "lr": 1e-3, "images_per_second": 1e4, "seconds_left": 90.0}


def evaluated(step: int, top1: float = 0.5) -> dict[str, float]:
    return {"step": step, **STEPS, "val_top1": top1, "val_top5": 0.9, "val_loss": 1.5}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "my-run").mkdir()
    return RunFolder(tmp_path / "my-run")


@pytest.mark.parametrize("left", ["{", '{"event": "star', '{"event": "started", "step": 3}'])
def test_a_line_that_a_kill_cut_short_costs_nothing_but_itself(run: RunFolder, left: str) -> None:
    """The events before it are read, and so are those that the next attempt appends."""
    run.record("started", step=0)
    with run.ledger.open("a") as file:
        file.write(left)  # and no end of the line
    before = run.events()
    assert before[0]["step"] == 0
    run.record("checkpoint", step=5)
    run.record("finished", step=9)
    assert [e["event"] for e in run.events()] == [e["event"] for e in before] + ["checkpoint", "finished"]
    assert run.last("started", "checkpoint") == run.events()[-2]
    assert run.last("failed") is None


def test_a_learning_curve_whose_last_line_was_cut_short_goes_on(run: RunFolder) -> None:
    """The step of that line is logged again by the next attempt, and read."""
    for step in (1, 2):
        append(run.metrics, trained(step))
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "lo')
    log = MetricsLog(run, Config(), step=2)
    log.write(trained(3))
    assert [r["step"] for r in read_lines(run.metrics)] == [1, 2, 3]
    assert all(json.loads(line) for line in run.metrics.read_text().splitlines())


def test_the_learning_curve_has_each_step_once_after_a_restart(run: RunFolder) -> None:
    """What was written after the checkpoint is taken back, and so is an evaluation at it, which is done again."""
    first = MetricsLog(run, Config(), step=0)
    for step in range(1, 9):
        first.write(trained(step, loss=9))
        if step % 2 == 0:
            first.write(evaluated(step, top1=0.9))
    second = MetricsLog(run, Config(), step=6)
    kept = read_lines(run.metrics)
    assert [r["step"] for r in kept if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in kept if "val_top1" in r] == [2, 4]
    assert kept[:3] == [trained(1, loss=9), trained(2, loss=9), evaluated(2, top1=0.9)]
    second.write(evaluated(6))
    for step in range(7, 9):
        second.write(trained(step))
    records = read_lines(run.metrics)
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 9))
    assert [r["step"] for r in records if "val_top1" in r] == [2, 4, 6]
    assert [r["loss"] for r in records if "loss" in r] == [9] * 6 + [1] * 2
    assert [path.name for path in run.path.iterdir()] == ["metrics.jsonl"]


def test_a_run_that_starts_again_from_nothing_has_no_old_curve(run: RunFolder) -> None:
    """Where no checkpoint was left, all is taken back."""
    for step in (1, 2):
        append(run.metrics, trained(step))
    MetricsLog(run, Config(), step=0)
    assert read_lines(run.metrics) == []


def test_lines_of_several_processes_never_mix(run: RunFolder) -> None:
    """Four processes append 200 long lines each at the same time; all are there and whole."""
    program = (
        "import sys; from pathlib import Path; from vit.run.folder import append\n"
        "for i in range(200): append(Path(sys.argv[1]), {'who': int(sys.argv[2]), 'i': i, 'long': 'x' * 5000})"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(run.ledger), str(who)], cwd=ROOT) for who in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    lines = [json.loads(line) for line in run.ledger.read_text().splitlines()]
    for who in range(4):
        assert [line["i"] for line in lines if line["who"] == who] == list(range(200))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with mounted(tmp_path, "64k"):
        yield tmp_path


def test_a_full_disk_ends_no_run_and_loses_no_line(tiny_disk: Path) -> None:
    """What did not fit is written with the next line that does, in its order; readers never see a half one."""
    path = tiny_disk / "ledger.jsonl"
    (tiny_disk / "ballast").write_bytes(bytes(40_000))
    for i in range(100):
        append(path, {"i": i, "long": "x" * 1000}, durable=True)
    there = len(read_lines(path))
    assert 5 < there < 30
    (tiny_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(tiny_disk)], check=True)
    append(path, {"i": 100})
    assert [line["i"] for line in read_lines(path)] == list(range(101))
    assert len(path.read_text().splitlines()) == 101


def test_what_a_full_disk_did_not_take_is_added_before_the_process_ends(tiny_disk: Path) -> None:
    """The last lines of a run have no later one to come with; as long as there is no room, nothing is lost either."""
    path = tiny_disk / "ledger.jsonl"
    ballast = tiny_disk / "ballast"
    with suppress(OSError):
        ballast.write_bytes(bytes(100_000))
    append(path, {"event": "finished"}, durable=True)
    flush()
    assert read_lines(path) == []
    ballast.unlink()
    flush()
    flush()
    assert read_lines(path) == [{"event": "finished"}]


def test_a_log_on_a_full_disk_ends_no_run() -> None:
    """What a rank says goes to a file in the run folder; /dev/full takes nothing, like a disk without room."""
    program = (
        "import os; from vit.run.metrics import show; "
        "show('a step'); show('another'); os.write(2, b'went on'); os._exit(0)"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "went on")


OWN = """
import sys, time
from pathlib import Path
from vit.run.folder import RunFolder
with RunFolder(Path(sys.argv[1])).owned():
    print("mine", flush=True)
    time.sleep(60)
"""


IMPATIENT = """
import sys
from vit import train
train.PATIENCE_SECONDS = 0.5
train.main(sys.argv[1:])
"""


def owner(run: RunFolder, **environment: str) -> "subprocess.Popen[str]":
    """Another process, which owns the folder by the time that this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWN, str(run.path)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    return process


def test_a_run_folder_has_one_owner_and_a_dead_one_owns_nothing(tmp_path: Path) -> None:
    """A second process is refused with the first one's name, until that one is killed, which cleans nothing up."""
    run = RunFolder(tmp_path / "runs" / "not-there-yet")
    with owner(run, **{JOB_VARIABLE: "job 4711"}) as process:
        name = rf"not-there-yet is in use by process {process.pid} on {socket.gethostname()}, job 4711$"
        for _ in range(2):  # being refused leaves the name as it is
            with pytest.raises(InUseError, match=name), run.owned():
                pytest.fail("two owners")
        process.kill()
    with run.owned():
        assert f"process {os.getpid()} on" in (run.path / "owner").read_text()
        assert "4711" not in (run.path / "owner").read_text()
    with run.owned():
        pass  # and free again when its owner has left


def test_a_run_folder_is_kept_from_other_processes_while_this_one_owns_it(run: RunFolder) -> None:
    """The refusal is for every other process, with the reason as its last line."""
    with run.owned():
        other = subprocess.run(
            [sys.executable, "-c", OWN, str(run.path)], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert other.returncode == 1
    assert re.search(rf"InUseError: .*my-run is in use by process {os.getpid()} on ", other.stderr.splitlines()[-1])


def test_a_rank_of_a_job_that_finds_its_folder_taken_leaves_it_to_be_tried_again(run: RunFolder) -> None:
    """An earlier start of the job may still run, unknown to Slurm; by hand it is for the user to mend."""
    run.config.write_text(to_yaml(Config(device="cpu")))
    for environment, code in (({JOB_VARIABLE: "Slurm job 4711"}, os.EX_TEMPFAIL), ({}, 2)):
        with run.owned():
            train = [sys.executable, "-c", IMPATIENT, "--config", str(run.config), "--run-dir", str(run.path)]
            other = subprocess.run(
                train, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
            )
        assert other.returncode == code
        told = f"vit.train: {run.path} is in use by process {os.getpid()} on {socket.gethostname()}"
        assert other.stderr.splitlines()[-1] == told


def test_every_second_of_an_attempt_is_accounted_for() -> None:
    """Booked blocks, waits and what is left over add up to the whole time since the process began."""
    clock = Clock(started=time.time() - 10)  # ten seconds of starting up, before there was a clock
    clock.add("start", 4)
    begin = time.perf_counter()
    with clock.spend("step"):
        time.sleep(0.05)
    with suppress(KeyError), clock.spend("step"):
        time.sleep(0.05)
        raise KeyError  # what fails has taken its time, too

    def slow() -> Iterator[int]:
        for i in range(3):
            time.sleep(0.02)
            yield i

    for _ in clock.waiting("data", slow()):
        time.sleep(0.03)  # spent on something else
    took = time.perf_counter() - begin
    summary = clock.summary()
    assert list(summary) == ["start", "step", "data", "other"]
    assert sum(summary.values()) == pytest.approx(time.time() - clock.started, abs=0.02)
    assert summary["start"] == 4
    assert 0.1 <= summary["step"] < took
    assert 0.06 <= summary["data"] < took - 0.1 - 0.09 + 0.001
    assert summary["other"] >= 6 + 0.09 - 0.001


def test_a_block_inside_of_another_is_booked_once_and_the_other_goes_on(tmp_path: Path) -> None:
    """To the second, and for who watches: ranks that agree in an evaluation are still in it."""
    heart = Heart()
    clock = Clock(time.time(), heart)  # type: ignore[arg-type]
    with clock.spend("evaluate"):
        time.sleep(0.03)
        with clock.spend("checkpoint"):
            time.sleep(0.05)
        time.sleep(0.03)
    assert heart.signs == ["evaluate", "checkpoint", "evaluate", "other"]
    assert 0.05 <= clock.seconds["checkpoint"] < 0.1
    assert 0.06 <= clock.seconds["evaluate"] < 0.11


class Heart:
    """What it is told."""

    def __init__(self) -> None:
        self.signs: list[str] = []

    def sign(self, phase: str) -> None:
        self.signs.append(phase)


def test_waiting_passes_on_every_item_and_ends_with_the_source() -> None:
    """Also where the source is empty."""
    assert list(Clock(time.time()).waiting("data", iter("abc"))) == ["a", "b", "c"]
    assert list(Clock(time.time()).waiting("data", [])) == []


def test_the_pace_is_of_the_steps_since_the_last_look_without_pauses() -> None:
    """Evaluations and checkpoints do not slow it down, and the time left is for the steps that are left."""
    pace = Pace(step=10, global_batch=64)
    time.sleep(0.2)
    pace.pause(0.15)
    measured = pace.measure(step=20, steps=120)
    assert 64 * 10 / 0.2 < measured["images_per_second"] <= 64 * 10 / 0.05
    assert measured["seconds_left"] == pytest.approx(100 * 64 / measured["images_per_second"], abs=0.06)


def test_the_progress_line_says_where_the_run_is_and_how_long_it_takes() -> None:
    """Losses while training, accuracies when evaluated."""
    line = progress_line(trained(20, loss=2.34567) | {"seconds_left": 3723.4})
    assert line == "epoch 0.50/5  step 20/100  loss 2.3457  lr 1.00e-03  10,000 images/s  1:02:03 left"
    assert progress_line(trained(20)).endswith("  1:30 left")
    assert progress_line(trained(20) | {"seconds_left": 59.7}).endswith("  1:00 left")
    assert progress_line(evaluated(20)) == "epoch 0.50/5  step 20/100  test top-1 50.00%  top-5 90.00%"
    assert progress_line(evaluated(20) | {"val_top1_average": 0.515}).endswith("  EMA 51.50%")


LOG_TO_WANDB = """
import json, sys
from pathlib import Path
from vit.config.parser import load_config
from vit.run.folder import RunFolder
from vit.run.metrics import MetricsLog
cfg = load_config(sys.argv[2], "--log.wandb", "offline", "--log.wandb_project", "my-project")
records = json.load(sys.stdin)
log = MetricsLog(RunFolder(Path(sys.argv[1])), cfg, records[0]["step"] - 1)
for record in records:
    log.write(record)
log.close()
"""


def test_weights_and_biases_shows_one_run_whatever_happened_to_the_processes(run: RunFolder, tmp_path: Path) -> None:
    """Offline, two attempts of one run folder, two processes: the same id, and each one's numbers in its file."""
    home = {name: str(tmp_path / "home") for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | home | {"WANDB_SILENT": "true"}
    config = ROOT / "configs" / "demo.yaml"
    losses = (0.123456789, 0.987654321)
    for attempt, loss in enumerate(losses):
        records = [trained(attempt + 1, loss=loss), evaluated(attempt + 1, top1=0.25)]
        # By stdin: the file that is searched below has the command's arguments in it.
        command = [sys.executable, "-c", LOG_TO_WANDB, str(run.path), str(config)]
        subprocess.run(command, input=json.dumps(records), text=True, cwd=ROOT, env=environment, check=True)
        time.sleep(max(0, 1 - time.time() % 1))  # offline folders are named by the second
    run_id = (run.path / "wandb_id").read_text()
    files = sorted((run.path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == len(list((run.path / "wandb").glob("offline-run-*"))) == 2
    for file, loss in zip(files, losses, strict=True):
        content = file.read_bytes()
        # "\x06my-run" is the run's name; without its length in front it is in each path, too.
        for written in (str(loss), "val_top1", "my-project", "\x06my-run", "optim.warmup_epochs", run_id):
            assert written.encode() in content, written
    assert [r["step"] for r in read_lines(run.metrics)] == [1, 2, 2]
