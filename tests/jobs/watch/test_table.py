"""The table of runs of `status.py`: its columns, how it fits a terminal, and how long it takes."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.slurm.tables import QueuedJob
from jobs.watch.colors import plain
from jobs.watch.details import with_details
from jobs.watch.run_status import Status, status
from jobs.watch.table import format_table
from tests.helpers.local_runs import STATUS, run_status
from tests.helpers.watched_runs import BEGAN, write_run
from tests.jobs.test_status import cpu_seconds
from vit.config.sections import ModelConfig
from vit.history.utilization import training_flops_per_image
from vit.run.folder import RunFolder
from vit.run.jsonl import append

RUNNING = {"7": QueuedJob("RUNNING", "None", "n1")}


def shown(run: RunFolder) -> Status:
    """The status of a run whose job is running."""
    return with_details(status(run, RUNNING), run)


def test_a_running_run_shows_what_it_does_and_when_it_will_end(tmp_path: Path) -> None:
    """Three attempts; half of its steps are done."""
    row = shown(write_run(tmp_path / "run"))
    assert (row.state, row.attempt, row.requeues, row.restarts) == ("running", 3, 2, 0)
    assert (row.epoch, row.epochs, row.step, row.steps) == (5.0, 10, 1000, 2000)
    assert (row.top1, row.checkpoint) == (0.25, 1000)
    assert row.goodput == pytest.approx(0.8 * 400 / (400 + 3 * 10), rel=0.05)
    assert row.data_wait == pytest.approx(0.1 * 400 / (400 + 3 * 10), rel=0.05)
    assert row.checkpoint_age == pytest.approx(4, abs=2)
    # 1000 steps of 0.4 s; evaluations of 0.02 s a step, and checkpoints of 0.02 s for each 0.36 s of steps and data.
    assert row.seconds_left == pytest.approx(400 + 1000 * 0.02 + 400 * 0.02 / 0.36 - 5, abs=2)
    assert row.ends == pytest.approx(time.time() + row.seconds_left, abs=1)
    flops = 2560 * training_flops_per_image(ModelConfig())
    assert row.mfu == pytest.approx(flops / (4 * 312e12))
    lines = format_table([row], 300)
    assert lines[0].split() == [
        "run",
        "state",
        "epoch",
        "step",
        "%",
        "loss",
        "top-1",
        "images/s",
        "MFU",
        "data",
        "wait",
        "goodput",
        "attempt",
        "requeues",
        "checkpoint",
        "time",
        "left",
        "end",
        "last",
        "update",
    ]


def test_the_utilization_is_the_recorded_one(tmp_path: Path) -> None:
    """It cannot be computed later if the images of some steps were smaller than `model.image_size`."""
    run = write_run(tmp_path / "run")
    newest = {"step": 1001, "steps": 2000, "loss": 1.0, "images_per_second": 9000.0, "time": time.time()}
    append(run.metrics, newest | {"mfu": 0.375})
    assert shown(run).mfu == 0.375
    assert "38%" in format_table([shown(run)], 300)[1].split()
    run.config.write_text(run.config.read_text() + "train_sizes: [[0.5, 128], [0.5, 224]]\n")
    append(run.metrics, newest)
    assert shown(run).mfu is None


def test_values_that_no_run_has_take_no_room(tmp_path: Path) -> None:
    """A run that waits for its first start has only a name and a state."""
    row = Status(run="a", folder="a", state="queued", detail="Priority")
    assert [plain(line) for line in format_table([row], 200)] == ["run  state", "a    queued (Priority)"]
    assert "loss" in format_table([row, replace(row, loss=1.5)], 200)[0]


@pytest.mark.parametrize("columns", [200, 120, 100, 80, 60, 40])
def test_the_table_fits_the_terminal_and_keeps_what_matters_most(tmp_path: Path, columns: int) -> None:
    """The least important columns go first; no number is ever truncated."""
    rows = [shown(write_run(tmp_path / name)) for name in ("a", "vit_b16-with_a_rather_long_name_indeed")]
    rows.append(replace(rows[0], run="日本語", state="queued", detail="JobArrayTaskLimit, a long reason"))
    lines = [plain(line) for line in format_table(rows, columns)]
    assert max(len(line) + line.count("日本語") * 3 for line in lines) <= columns
    header = lines[0].split()
    assert header[:2] == ["run", "state"] and "top-1" in header and "%" in header
    whole = format_table(rows, 400)
    numbers = {word for word in whole[1].split() if word[0].isdigit()}
    assert {word for word in lines[1].split() if word[0].isdigit()} <= numbers
    if columns >= 80:
        assert "time left" in lines[0]
    if columns <= 60:
        assert "…" in lines[2], "the name is shortened, the numbers are not"


def test_the_end_of_a_run_that_does_not_run_is_not_predicted(tmp_path: Path) -> None:
    """Nobody knows when Slurm starts it again."""
    run = write_run(tmp_path / "run")
    waiting = with_details(status(run, {"7": QueuedJob("PENDING", "Priority", "")}), run)
    assert (waiting.state, waiting.ends, waiting.seconds_left) == ("requeued", None, None)
    header = format_table([waiting], 300)[0]
    assert not {"time left", "end", "images/s", "MFU"} & set(header.split("  "))


def test_a_hundred_runs_of_ten_attempts_take_less_than_a_second(tmp_path: Path) -> None:
    """With 5,000 records and 300 evaluations each: the whole command, its imports and the ranking included."""
    first = write_run(tmp_path / "seed=0", attempts=10, steps=250_000, of=300_000, saves=850)
    for i in range(1, 100):
        run = RunFolder(tmp_path / f"seed={i}")
        run.logs.mkdir(parents=True)
        for file in ("metrics.jsonl", "ledger.jsonl", "logs/rank-0.log"):
            os.link(first.path / file, run.path / file)  # reading it takes as long as a copy
        run.config.write_text(first.config.read_text().replace("seed: 0", f"seed: {i}"))
    assert first.metrics.stat().st_size > 1.5e6
    command = [*STATUS, str(tmp_path)]
    assert min(cpu_seconds(command) for _ in range(3)) < 1
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "(100 runs)" in text
    assert "    100 " in text, "all of them are ranked"


def test_json_has_every_value_and_is_json(tmp_path: Path) -> None:
    """Also numbers that JSON does not know."""
    run = write_run(tmp_path / "run", val_top1=float("nan"))
    with run.metrics.open("a") as file:
        file.write('{"step": 1001, "steps": 2000, "loss": NaN, "images_per_second": Infinity}\n')
    (line,) = run_status(tmp_path, "run", "--json").stdout.splitlines()
    values = json.loads(line, parse_constant=pytest.fail)
    assert values["loss"] is None
    assert [attempt["why"] for attempt in values["attempts"]] == ["preempted", "preempted", ""]
    assert sum(values["seconds"].values()) > 400
    assert isinstance(values["notes"], list)


def test_ascii_terminals_get_ascii(tmp_path: Path) -> None:
    """No question marks in the place of bars."""
    write_run(tmp_path / "run")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    text = subprocess.run(
        [sys.executable, STATUS[1], "run"], cwd=tmp_path, env=environment, capture_output=True, check=True
    ).stdout
    assert b"?" not in text
    assert b"####" in text


def test_the_end_is_told_from_now_on_after_a_restart_and_not_at_all_if_it_has_passed(tmp_path: Path) -> None:
    """The last record may be older than the time in the queue; a run that hangs has no end that anybody knows."""
    run = write_run(tmp_path / "run")
    left = 400 * (1 + 0.1 / 0.9)
    append(run.ledger, {"event": "supervising", "life": "7.3", "time": time.time() - 5, "node": "n1"})
    assert shown(run).seconds_left == pytest.approx(left, abs=3)
    assert shown(write_run(tmp_path / "hangs", old=True)).ends is None


def test_a_run_that_writes_is_shown_as_it_runs_although_slurm_does_not_answer(tmp_path: Path) -> None:
    """Whether its job is in the queue is unknown, but not that it trains."""
    run = write_run(tmp_path / "run")
    append(run.ledger, {"event": "supervising", "life": "7.3", "time": time.time() - 5, "node": "n1"})
    row = with_details(status(run, None), run)
    assert row.state == "unknown"
    header = format_table([row], 300)[0]
    assert "images/s" in header and "time left" in header
    for path in (run.metrics, run.ledger, run.logs / "rank-0.log"):
        os.utime(path, (BEGAN, BEGAN))
    assert "images/s" not in format_table([status(run, None)], 300)[0]


def test_a_run_has_its_name_also_from_inside_its_folder(tmp_path: Path) -> None:
    """`status.py .`."""
    write_run(tmp_path / "vit_b16")
    (line,) = run_status(tmp_path / "vit_b16", ".", "--json").stdout.splitlines()
    assert json.loads(line)["run"] == "vit_b16"


def test_the_use_of_gpus_is_that_of_the_newest_attempt_on_all_its_nodes(tmp_path: Path) -> None:
    """The mean over its GPUs, and the memory of the fullest one."""
    run = write_run(tmp_path / "run")
    old = {"began": 100.0, "seconds": 900.0, "gpus": [{"utilization": 0.1, "memory_peak": 79 << 30}]}
    for node, shares in (("n1", (0.9, 0.8)), ("n2", (0.7, 0.6))):
        gpus = [
            {"utilization": share, "memory_peak": (i + 30) << 30, "memory_total": 80 << 30}
            for i, share in enumerate(shares)
        ]
        entries = {"attempts": [old, {"began": 5000.0, "seconds": 60.0, "gpus": gpus}]}
        (run.logs / f"resources-{node}.json").write_text(json.dumps(entries))
    row = shown(run)
    assert row.gpu == pytest.approx(0.75)
    assert (row.gpu_memory, row.gpu_memory_total) == (31 << 30, 80 << 30)
    header, line = (plain(text) for text in format_table([row], 300))
    assert "GPU memory" in " ".join(header.split())
    assert "75%  31/80 GB" in line
