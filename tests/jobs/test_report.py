"""The picture of learning curves: of one run, of several, and of a run that was interrupted."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot

from jobs.report import draw
from tests.helpers.paths import ROOT
from vit.run.folder import RunFolder


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.axes.Axes]:
    """Both plots of what is drawn."""
    found: list[matplotlib.axes.Axes] = []
    make = pyplot.subplots

    def subplots(*args: object, **options: object) -> object:
        figure, both = make(*args, **options)
        found.extend(both)
        return figure, both

    monkeypatch.setattr(pyplot, "subplots", subplots)
    return found


def run(
    folder: Path, losses: list[float], top1: float, starts: tuple[int, ...] = (0,), average: bool = False
) -> RunFolder:
    """A run folder with a learning curve of ten epochs."""
    folder.mkdir()
    steps = 10 * len(losses)
    curve = [
        {"step": 10 * (i + 1), "steps": steps, "epoch": 10 * (i + 1) / len(losses), "epochs": 10, "loss": loss}
        for i, loss in enumerate(losses)
    ]
    scores = {"val_top1": top1} | ({"val_top1_average": top1 + 0.1} if average else {})
    curve.append({"step": steps, "epoch": 10.0, **scores})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    events = [{"event": "started", "time": 0.0, "step": step} for step in starts]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return RunFolder(folder)


def words(axes: matplotlib.axes.Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_several_runs_are_in_one_picture_each_by_its_name(tmp_path: Path, axes: list[matplotlib.axes.Axes]) -> None:
    """Both curves as they were written down, in a color of each run's own, and both results."""
    runs = [run(tmp_path / "plain", [2.0, 0.1], 0.8), run(tmp_path / "augmented", [2.2, 1.3], 0.9)]
    draw(runs, tmp_path / "both.png")
    left, right = axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[2.0, 0.1], [2.2, 1.3]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[80.0], [90.0]]
    assert [line.get_label() for line in left.lines] == ["plain", "augmented"]
    colors = [line.get_color() for line in left.lines]
    assert colors == [line.get_color() for line in right.lines]
    assert len(set(colors)) == 2
    assert words(right) == ["80.0 %", "90.0 %"]
    assert (tmp_path / "both.png").stat().st_size > 10_000


def test_where_a_run_went_on_is_marked(tmp_path: Path, axes: list[matplotlib.axes.Axes]) -> None:
    """Each restart in its run's color, in both plots; the start is none."""
    runs = [run(tmp_path / "a", [2.0, 1.0], 0.8, (0, 5, 15)), run(tmp_path / "b", [2.0, 1.0], 0.8, average=True)]
    draw(runs, tmp_path / "both.png")
    left, right = axes
    assert [line.get_xdata()[0] for line in left.lines if line.get_linestyle() == ":"] == [2.5, 7.5]
    assert len([line for line in right.lines if line.get_linestyle() == ":"]) == 2
    assert words(left) == ["resumed"]
    assert [line.get_label() for line in right.lines if line.get_linestyle() == "--"] == ["EMA"]


def test_a_run_without_a_curve_is_named(tmp_path: Path) -> None:
    """In one line, with exit code 1, and nothing is drawn."""
    run(tmp_path / "a", [2.0, 1.0], 0.8)
    script = ROOT / "jobs" / "report.py"
    command = [sys.executable, script, tmp_path / "a", tmp_path / "none", "--out", tmp_path / "x.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"report.py: {tmp_path / 'none'} has no learning curve yet")
    assert not (tmp_path / "x.png").exists()
