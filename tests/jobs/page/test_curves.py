"""Curves in reports: thinned without losing an extreme, marked where the run was interrupted, compared to the bit."""

import html
import itertools
import json
import math
import random
import re
import time
from pathlib import Path

from jobs.page.comparison import differing_settings, ranked, sameness
from jobs.page.document import run_page
from jobs.page.interruptions import interruptions
from jobs.page.run_data import read_run
from jobs.page.runs_page import runs_page
from jobs.page.thinning import column_means, straightened, thin
from tests.helpers.report_runs import curve, write_lines, write_run
from vit.run.rank_log import path_of


def test_thinning_keeps_the_extremes_of_every_column() -> None:
    """And the first and last point."""
    draw = random.Random(0)
    x = sorted(draw.random() for _ in range(20_000))
    y = [draw.gauss(0, 1) for _ in x]
    kept = thin(x, y, 100)
    assert len(kept) <= 400
    assert kept == sorted(set(kept))
    assert {0, len(x) - 1, y.index(max(y)), y.index(min(y))} <= set(kept)
    for column in range(100):
        mine = [i for i in range(len(x)) if min(99, int((x[i] - x[0]) / (x[-1] - x[0]) * 100)) == column]
        assert max(y[i] for i in mine) == max(y[i] for i in kept if i in mine)


def test_a_schedule_needs_few_points_and_loses_no_accuracy() -> None:
    """Warmup and cosine decay: the line through the kept points is never further away than the tolerance."""
    x = [i / 1000 for i in range(1001)]
    y = [v / 0.05 if v < 0.05 else 0.5 + 0.5 * math.cos(math.pi * (v - 0.05) / 0.95) for v in x]
    kept = straightened(x, y, 0.002)
    assert len(kept) < 40
    for a, b in itertools.pairwise(kept):
        for i in range(a, b):
            assert abs(y[a] + (y[b] - y[a]) * (x[i] - x[a]) / (x[b] - x[a]) - y[i]) <= 0.002 + 1e-9


def test_the_mean_of_a_noisy_curve_is_that_of_its_points() -> None:
    """Of each part of the axis."""
    x = [float(i) for i in range(100)]
    assert [mean for _, mean in column_means(x, x, 4)] == [12.0, 37.0, 62.0, 87.0]


def test_a_run_of_200_000_records_makes_a_small_page_in_seconds(tmp_path: Path) -> None:
    """Its highest loss, of one step, is in the picture."""
    run = write_run(tmp_path / "long")
    place = {"steps": 200_000, "epochs": 300}
    records = [
        {"step": i, "epoch": i * 300 / 200_000, "loss": 1 + 0.1 * math.sin(i * i), "grad_norm": 1.0} | place
        for i in range(1, 200_001)
    ]
    records[123_456]["loss"] = 9.0
    write_lines(run / "metrics.jsonl", records)
    began = time.process_time()
    page = run_page(read_run(run, {}))
    assert time.process_time() - began < 20
    assert len(page) < 500_000
    assert b'"9.000"' in page


def test_interruptions_have_their_cause_and_what_was_lost(tmp_path: Path) -> None:
    """A preemption lost nothing; a killed rank repeated 100 steps, half a minute of which the curve knows."""
    marks = interruptions(read_run(write_run(tmp_path / "a"), {}))
    assert [(mark.kind, mark.step, mark.resumed_at) for mark in marks] == [("stop", 400, 400), ("failure", 700, 600)]
    assert [mark.title for mark in marks] == ["attempt 1: preempted", "attempt 2: rank 1 on n1: ended with SIGKILL"]
    assert marks[0].detail == "step 400 (epoch 4.00); resumed at step 400 after 59 s, no step lost"
    assert marks[1].detail == "step 700 (epoch 7.00); resumed at step 600 after 5.0 s, 100 steps repeated"


def test_equal_curves_are_told_from_curves_that_differ_in_a_bit(tmp_path: Path) -> None:
    """The losses at the steps that both runs logged."""
    first = read_run(write_run(tmp_path / "a"), {})
    second = read_run(write_run(tmp_path / "b", curve(every=20)), {})
    found = sameness(second, first)
    assert found is not None and found.first_difference is None and found.steps == 50
    records = curve()
    records[49]["loss"] = math.nextafter(records[49]["loss"], 9)
    third = read_run(write_run(tmp_path / "c", records), {})
    found = sameness(third, first)
    assert found is not None and found.first_difference == records[49]["step"]
    assert "until it differs at step" in found.describe("a")


def test_runs_are_ranked_and_their_settings_compared(tmp_path: Path) -> None:
    """By their best top-1 accuracy; a run without one is the last.  Paths are no difference."""
    runs = []
    for i, (name, top1) in enumerate([("low", 0.5), ("none", None), ("high", 0.9)]):
        records = [r for r in curve() if top1 is not None or "val_top1" not in r]
        for evaluation in (r for r in records if "val_top1" in r):
            evaluation["val_top1_average"] = top1
        folder = write_run(tmp_path / name, records)
        text = (folder / "config.yaml").read_text().replace("weight_decay: 0.1", f"weight_decay: 0.{i}")
        (folder / "config.yaml").write_text(re.sub("train: .*", f"train: /data{i}/train.beton", text))
        runs.append(read_run(folder, {}))
    assert [run.name for run in ranked(runs)] == ["high", "low", "none"]
    assert differing_settings(runs) == {"optim.weight_decay": ["0", "0.1", "0.2"]}
    page = runs_page(runs).decode()
    assert page.index(">high<") > 0 and "weight_decay" in page


def test_the_page_says_what_the_command_line_changed(tmp_path: Path) -> None:
    """`--model.depth 6` of the command that submitted the run; options that are no settings are not listed."""
    page = run_page(read_run(write_run(tmp_path / "a"), {})).decode()
    assert re.search(r"<tr><th>model.depth</th><td>6</td><td>–</td></tr>", page)
    assert "<th>nodes</th>" not in page


def test_step_times_of_each_rank_are_shown(tmp_path: Path) -> None:
    """Median and percentiles in milliseconds."""
    page = run_page(read_run(write_run(tmp_path / "a"), {})).decode()
    assert page.count("<td>1,000</td><td>502</td><td>502</td><td>677</td><td>677</td><td>900</td>") == 2


def test_the_time_of_each_rank_and_those_that_were_slow_are_shown(tmp_path: Path) -> None:
    """A step in which all ranks were like rank 1 would take 480 ms, of the median rank 280 ms."""
    folder = write_run(tmp_path / "a")
    page = run_page(read_run(folder, {})).decode()
    values = ("1", "n2", "100", "200", "0", "250", "20.0", "10.0", "1.71")
    cells = "".join(f"<td>{value}</td>" for value in values)
    assert cells in page
    assert "rank 1 on n2 is slow: 1.70 times the median; it waits for images 0.200 s of each step" in page
    assert "for 50 s, to the end of its attempt" in page
    with path_of(folder / "logs").open("a") as file:
        for damaged in ({}, {"ranks": [[10**400] * 7], "nodes": ["n1"]}, {"ranks": [[1, 2]], "nodes": ["n1"]}):
            file.write(json.dumps(damaged) + "\n")
    assert cells in run_page(read_run(folder, {})).decode()


def test_the_head_has_the_notes_of_status_and_the_use_of_the_gpus(tmp_path: Path) -> None:
    """A run in float32 on A100s: its MFU, and that bf16 is faster."""
    run = read_run(write_run(tmp_path / "a"), {})
    page = run_page(run).decode()
    assert re.search(r"<dt>images/s</dt><dd><b>800</b><span>MFU \d+%</span>", page)
    assert any("bf16" in note for note in run.notes)
    assert all(f"<li>{html.escape(note)}</li>" in page for note in run.notes)
