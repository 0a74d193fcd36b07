"""The learning curve has each step once, in metrics.jsonl and in Weights & Biases, whatever interrupts the run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.records import evaluation_record, training_record
from vit.config.schema import Config
from vit.run.folder import RunFolder
from vit.run.jsonl import append, read_lines
from vit.run.metrics import MetricsLog


def test_a_truncated_last_line_is_replaced_when_the_run_resumes(run: RunFolder) -> None:
    """The next attempt logs the step of that line again."""
    for step in (1, 2):
        append(run.metrics, training_record(step))
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "lo')
    log = MetricsLog(run, Config(), step=2)
    log.write(training_record(3))
    assert [r["step"] for r in read_lines(run.metrics)] == [1, 2, 3]
    assert all(json.loads(line) for line in run.metrics.read_text().splitlines())


def test_the_learning_curve_has_each_step_once_after_a_restart(run: RunFolder) -> None:
    """Records after the checkpoint are set aside, and so is the evaluation at it, which is repeated."""
    first = MetricsLog(run, Config(), step=0)
    for step in range(1, 9):
        first.write(training_record(step, loss=9))
        if step % 2 == 0:
            first.write(evaluation_record(step, top1=0.9))
    second = MetricsLog(run, Config(), step=6)
    kept = read_lines(run.metrics)
    assert [r["step"] for r in kept if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in kept if "val_top1" in r] == [2, 4]
    assert kept[:3] == [training_record(1, loss=9), training_record(2, loss=9), evaluation_record(2, top1=0.9)]
    second.write(evaluation_record(6))
    for step in range(7, 9):
        second.write(training_record(step))
    records = read_lines(run.metrics)
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 9))
    assert [r["step"] for r in records if "val_top1" in r] == [2, 4, 6]
    assert [r["loss"] for r in records if "loss" in r] == [9] * 6 + [1] * 2
    aside = read_lines(run.path / "metrics.superseded.jsonl")
    expected = [evaluation_record(6, top1=0.9), training_record(7, loss=9), training_record(8, loss=9)]
    assert aside == [*expected, evaluation_record(8, top1=0.9)]


def test_a_run_that_restarts_without_a_checkpoint_has_no_old_records(run: RunFolder) -> None:
    """All records are removed."""
    for step in (1, 2):
        append(run.metrics, training_record(step))
    MetricsLog(run, Config(), step=0)
    assert read_lines(run.metrics) == []


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


def test_weights_and_biases_has_one_run_across_restarts(run: RunFolder, tmp_path: Path) -> None:
    """Offline mode, two attempts in two processes: the same run id, and the values of each attempt in its file."""
    home = {name: str(tmp_path / "home") for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | home | {"WANDB_SILENT": "true"}
    losses = (0.123456789, 0.987654321)
    for attempt, loss in enumerate(losses):
        records = [training_record(attempt + 1, loss=loss), evaluation_record(attempt + 1, top1=0.25)]
        # Through stdin: the file that is searched below contains the command's arguments.
        command = [sys.executable, "-c", LOG_TO_WANDB, str(run.path), str(CONFIGS / "demo.yaml")]
        subprocess.run(command, input=json.dumps(records), text=True, cwd=ROOT, env=environment, check=True)
        time.sleep(max(0, 1 - time.time() % 1))  # the names of offline folders have a resolution of one second
    run_id = (run.path / "wandb_id").read_text()
    files = sorted((run.path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == len(list((run.path / "wandb").glob("offline-run-*"))) == 2
    for file, loss in zip(files, losses, strict=True):
        content = file.read_bytes()
        # "\x06my-run" is the run's name with its length; without the length it would match paths as well.
        for value in (str(loss), "val_top1", "my-project", "\x06my-run", "optim.warmup_epochs", run_id):
            assert value.encode() in content, value
    assert [r["step"] for r in read_lines(run.metrics)] == [1, 2, 2]
