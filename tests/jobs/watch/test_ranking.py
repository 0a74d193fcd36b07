"""The ranking of a sweep in `status.py`."""

import json
import re
from pathlib import Path

import pytest

from jobs.watch.colors import plain
from jobs.watch.ranking import format_ranking, rank
from jobs.watch.run_status import status
from tests.helpers.local_runs import run_status
from tests.helpers.watched_runs import write_run
from vit.config.schema import Config
from vit.config.sections import OptimConfig
from vit.run.folder import RunFolder
from vit.run.jsonl import append

SCORES = {("1e-3", 0): 0.70, ("1e-3", 1): 0.72, ("1e-3", 2): 0.71, ("3e-3", 0): 0.78, ("3e-3", 1): 0.80}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two learning rates, with three and two seeds; and a third one that has no evaluation yet."""
    folder = tmp_path / "sweep"
    for (lr, seed), top1 in SCORES.items():
        cfg = Config(epochs=10, seed=seed, optim=OptimConfig(lr=float(lr)))
        write_run(folder / f"lr={lr},seed={seed}", cfg=cfg, val_top1=top1)
    cfg = Config(epochs=10, optim=OptimConfig(lr=1e-2))
    write_run(folder / "lr=1e-2,seed=0", cfg=cfg, steps=200)
    return folder


def test_a_sweep_is_ranked_by_the_mean_over_its_seeds(sweep: Path) -> None:
    """The best first, with the standard deviation; nothing needs to be asked for."""
    lines = run_status(sweep.parent, "sweep").stdout.splitlines()
    first = lines.index("ranking by best top-1, mean and standard deviation over seeds")
    assert [line.split() for line in lines[first + 1 :]] == [
        ["settings", "seeds", "best", "top-1", "±", "highest", "at", "epoch"],
        ["1", "lr=0.003", "2", "79.00%", "1.41%", "80.00%", "5", "2", "runs", "not", "finished"],
        ["2", "lr=0.001", "3", "71.00%", "1.00%", "72.00%", "5", "3", "runs", "not", "finished"],
    ]


def test_a_seed_without_an_evaluation_is_counted(sweep: Path) -> None:
    """2 of 3 seeds, with the mean of those two."""
    cfg = Config(epochs=10, seed=2, optim=OptimConfig(lr=3e-3))
    write_run(sweep / "lr=3e-3,seed=2", cfg=cfg, steps=200)
    lines = run_status(sweep.parent, "sweep").stdout.splitlines()
    assert any(re.search(r"1 +lr=0.003 +2 of 3 +79.00% +1.41%", line) for line in lines)


def test_other_runs_are_ranked_if_that_is_asked_for(sweep: Path) -> None:
    """By the settings in which they differ, not by paths, intervals and numbers of threads."""
    runs = ["first", "second"]
    for name, lr in zip(runs, ("1e-3", "3e-3"), strict=True):
        (sweep / f"lr={lr},seed=0").rename(sweep.parent / name)
    assert "ranking" not in run_status(sweep.parent, *runs).stdout
    config = RunFolder(sweep.parent / runs[0]).config
    config.write_text(config.read_text().replace("workers: 0", "workers: 3").replace("keep: 2", "keep: 5"))
    lines = run_status(sweep.parent, *runs, "--rank").stdout.splitlines()
    assert [line.split()[:4] for line in lines[-2:]] == [
        ["1", "lr=0.003", "1", "78.00%"],
        ["2", "lr=0.001", "1", "70.00%"],
    ]


def test_the_best_evaluation_counts_and_not_the_last_one(tmp_path: Path) -> None:
    """Wherever it is in the learning curve; of the EMA, if there is one; in runs of older versions, too."""
    run = write_run(tmp_path / "a", steps=50_000, of=100_000, saves=5000)
    lines = [re.sub(', "best_[^}]*', "", line) for line in run.metrics.read_text().splitlines()]
    early = next(i for i, line in enumerate(lines) if "val_top1" in line)
    lines[early] = lines[early].replace('"val_top5"', '"val_top1_average": 0.91, "val_top5"')
    run.metrics.write_text("\n".join(lines) + "\n")
    row = status(run, {})
    assert (row.best_top1, row.best_epoch) == (0.91, 0.5)
    assert row.top1 == 0.25
    (group,) = rank([row])
    assert (group.scores, group.deviation) == ([0.91], None)
    append(run.metrics, json.loads(lines[early]) | {"step": 50_001, "best_top1": 0.93, "best_epoch": 0.7})
    row = status(run, {})
    assert (row.best_top1, row.best_epoch) == (0.93, 0.7)


def test_runs_without_a_config_are_not_taken_together(sweep: Path) -> None:
    """What they have in common is not known."""
    rows = []
    for path in sorted(sweep.iterdir())[1:4]:
        RunFolder(path).config.unlink()
        rows.append(status(RunFolder(path), {}))
    groups = rank(rows)
    assert [group.settings for group in groups] == [f"run={group.runs[0].run}" for group in groups]
    assert len(groups) == 3


def test_the_ranking_fits_the_terminal(sweep: Path) -> None:
    """Names of settings are shortened, numbers are not."""
    rows = [status(RunFolder(path), {}) for path in sweep.iterdir()]
    lines = format_ranking(rank(rows), 60)
    assert max(len(plain(line)) for line in lines[1:]) <= 60
    assert "79.00%" in lines[2]
