"""The learning curve has each step once, whatever interrupts the run."""

import json

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
    best = {"best_top1": 0.9, "best_epoch": 0.5}
    assert kept[:3] == [training_record(1, loss=9), training_record(2, loss=9), evaluation_record(2, top1=0.9) | best]
    second.write(evaluation_record(6))
    for step in range(7, 9):
        second.write(training_record(step))
    records = read_lines(run.metrics)
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 9))
    assert [r["step"] for r in records if "val_top1" in r] == [2, 4, 6]
    assert [r["loss"] for r in records if "loss" in r] == [9] * 6 + [1] * 2
    aside = read_lines(run.path / "metrics.superseded.jsonl")
    expected = [evaluation_record(6, top1=0.9) | best, training_record(7, loss=9), training_record(8, loss=9)]
    assert aside == [*expected, evaluation_record(8, top1=0.9) | best]


def test_each_evaluation_says_which_one_is_the_best_of_those_that_count(run: RunFolder) -> None:
    """Also after a restart, without the better one that was set aside."""
    first = MetricsLog(run, Config(), step=0)
    for step, top1 in ((2, 0.3), (4, 0.2), (6, 0.9)):
        first.write(evaluation_record(step, top1) | {"epoch": float(step)})
    second = MetricsLog(run, Config(), step=5)
    second.write(evaluation_record(6, 0.1) | {"epoch": 6.0})
    found = [(r["val_top1"], r["best_top1"], r["best_epoch"]) for r in read_lines(run.metrics)]
    assert found == [(0.3, 0.3, 2.0), (0.2, 0.3, 2.0), (0.1, 0.3, 2.0)]


def test_a_run_that_restarts_without_a_checkpoint_has_no_old_records(run: RunFolder) -> None:
    """All records are removed."""
    for step in (1, 2):
        append(run.metrics, training_record(step))
    MetricsLog(run, Config(), step=0)
    assert read_lines(run.metrics) == []
