"""Without network, the records of a run are in folders that `wandb sync` sends: each one once, over all attempts."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.records import evaluation_record, training_record
from tests.helpers.waiting import wait_for
from tests.helpers.wandb_server import WandbServer
from tests.vit.run.test_wandb import OFFLINE, ONLINE, handed_over, send_by_hand, sent
from vit.history.wandb_values import summary
from vit.run.folder import RunFolder
from vit.run.jsonl import Record
from vit.run.metrics import MetricsLog
from vit.run.wandb_log import read_registration
from vit.wandb_sender import system_metrics


def synced(run: RunFolder) -> None:
    """Sends all offline folders, as a user does."""
    folders = [str(path) for path in sorted((run.path / "wandb").glob("offline-run-*"))]
    done = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "sync", *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def run_id(run: RunFolder) -> str:
    registration = read_registration(run)
    assert registration is not None
    return str(registration["id"])


def timed(record: Record, began: float) -> Record:
    """A record with the times that training adds, of an attempt that began at this time."""
    return record | {"time": began + record["step"], "seconds": {"step": float(record["step"])}}


def train(run: RunFolder, began: float, resumed_at: int, records: list[Record], last: bool) -> None:
    """Does what an attempt does: ledger, learning curve, Weights & Biases."""
    values = {"step": resumed_at, "seconds": {"start": 1.0}}
    log = MetricsLog(run, OFFLINE, resumed_at)
    with run.ledger.open("a") as ledger:
        ledger.write(json.dumps({"event": "started", "time": began, **values, **log.before}) + "\n")
        for record in records:
            log.write(timed(record, began))
        end = {"event": "finished" if last else "failed", "time": began + 10, "step": records[-1]["step"]}
        ledger.write(json.dumps(end | {"seconds": {"start": 1.0, "step": 9.0}}) + "\n")
    log.close(finished=last)


def test_wandb_sync_sends_each_record_once_with_its_attempt_and_the_result(server: WandbServer, run: RunFolder) -> None:
    """The second attempt repeats two steps, one of them with another loss, as on another kind of GPU.

    The first folder is sent before the second attempt, and again after it.  The summary tells the best and the last
    accuracy, the goodput and that the run is finished.
    """
    began = time.time() - 100
    first = [training_record(1), training_record(2), evaluation_record(2, top1=0.75), training_record(3)]
    train(run, began, 0, first, last=False)
    assert server.requests == 0
    synced(run)
    assert server.summary(run_id(run))["finished"] is False
    second = [training_record(2), evaluation_record(2, top1=0.75), training_record(3, loss=9.0), training_record(4)]
    train(run, began + 50, 1, [*second, evaluation_record(4, top1=0.5)], last=True)
    synced(run)

    places = [(r["step"], "val_top1" in r, r["attempt"], r.get("loss")) for r in sent(server, run)]
    steps = [(1, False, 1, 1.0), (2, False, 1, 1.0), (2, True, 1, None), (3, False, 1, 1.0)]
    assert places == [*steps, (4, False, 2, 1.0), (4, True, 2, None)]
    times = [r["_timestamp"] for r in server.history(run_id(run))]
    assert times == pytest.approx([began + 1, began + 2, began + 2, began + 3, began + 54, began + 54])
    found = server.summary(run_id(run))
    expected = {"best_top1": 0.75, "best_step": 2, "last_top1": 0.5, "finished": True, "attempts": 2}
    assert expected.items() <= found.items()
    assert 0 < found["goodput"] < 1
    assert found["goodput"] == summary(run)["goodput"]
    assert server.runs[run_id(run)]["config"]["optim.lr"]["value"] == OFFLINE.optim.lr

    done = send_by_hand(run)  # nothing is left
    assert (done.returncode, len(sent(server, run))) == (0, 6), done.stdout + done.stderr


def test_a_step_that_is_repeated_after_a_rollback_is_sent_once(server: WandbServer, run: RunFolder) -> None:
    """A step that is not finite is skipped: the steps before it are repeated, in the same attempt."""
    log = MetricsLog(run, ONLINE, step=0)
    for step in (1, 2, 3, 4):
        log.write(training_record(step))
    wait_for(lambda: handed_over(run) == 4, "the records are handed over")
    log.truncate(2)
    for step, loss in ((3, 1.0), (4, 7.0), (5, 7.0)):
        log.write(training_record(step, loss=loss))
    log.close()
    assert [(r["step"], r["loss"]) for r in sent(server, run)] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 7)]


def test_what_was_sent_by_hand_is_not_sent_by_wandb_sync_again(server: WandbServer, run: RunFolder) -> None:
    """The folders are marked as synced, so that `wandb sync` without a path skips them."""
    log = MetricsLog(run, OFFLINE, step=0)
    log.write(training_record(1))
    log.close()
    assert send_by_hand(run).returncode == 0
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--yes"]
    done = subprocess.run(command, cwd=run.path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [r["step"] for r in sent(server, run)] == [1]


def test_the_system_metrics_are_those_of_training(
    server: WandbServer, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and threads of the process that trains, not of the one that sends."""
    monkeypatch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.2")
    ballast = bytearray(os.urandom(1 << 20)) * 400
    log = MetricsLog(run, ONLINE, step=0)
    log.write(training_record(1))
    wait_for(lambda: handed_over(run) == 1, "the record is handed over")
    wait_for(lambda: server.runs[run_id(run)]["events"], "system metrics arrive")
    resident = psutil.Process().memory_info().rss / (1 << 20)
    log.close()
    assert len(ballast) == 400 << 20
    newest = [json.loads(line) for line in server.runs[run_id(run)]["events"]][-1]
    assert newest["system.proc.memory.rssMB"] == pytest.approx(resident, rel=0.3)
    assert newest["system.proc.memory.rssMB"] > 400


@pytest.mark.parametrize(
    ("visible", "gpus"), [("2,3", [2, 3]), ("0", [0]), ("", None), (None, None), ("GPU-5f3a,GPU-77b1", None)]
)
def test_only_the_gpus_of_the_run_are_measured(
    visible: str | None, gpus: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a node that others use too.  wandb knows GPUs by their numbers only."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    code = "from wandb.sdk import wandb_setup; s = wandb_setup.singleton().settings; print(s.x_stats_gpu_device_ids)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | system_metrics(1), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(gpus)
