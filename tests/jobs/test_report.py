"""report.py: pictures of the learning curves of one run, of several runs, and of a run that was interrupted."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.collections import LineCollection

from jobs.page.figures import draw
from jobs.page.run_data import RunData, read_run
from tests.helpers.paths import ROOT


def make_run(
    folder: Path, losses: list[float], top1: float, starts: tuple[int, ...] = (0,), ema: bool = False
) -> RunData:
    """A run with a learning curve of ten epochs."""
    folder.mkdir()
    steps = 10 * len(losses)
    curve = [
        {"step": 10 * (i + 1), "steps": steps, "epoch": 10 * (i + 1) / len(losses), "epochs": 10, "loss": loss}
        for i, loss in enumerate(losses)
    ]
    accuracy = {"val_top1": top1} | ({"val_top1_average": top1 + 0.1} if ema else {})
    curve.append({"step": steps, "epoch": 10.0, **accuracy})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    events = [{"event": "started", "time": 100.0 + step, "step": step} for step in starts]
    events.append({"event": "finished", "time": 200.0 + steps, "step": steps})
    (folder / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return read_run(folder)


def texts(axes: matplotlib.axes.Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_several_runs_share_a_picture_with_one_color_each(tmp_path: Path, axes: list[matplotlib.axes.Axes]) -> None:
    """Both learning curves, labeled with the names of the runs, and both final accuracies."""
    runs = [make_run(tmp_path / "plain", [2.0, 0.1], 0.8), make_run(tmp_path / "augmented", [2.2, 1.3], 0.9)]
    draw(runs, tmp_path / "both.png")
    loss, accuracy = axes
    assert [line.get_label() for line in loss.lines] == ["plain", "augmented"]
    assert loss.lines[0].get_color() != loss.lines[1].get_color()
    assert texts(accuracy) == ["80.0%", "90.0%"]
    assert (tmp_path / "both.png").stat().st_size > 10_000
    pyplot.close("all")


def test_interruptions_are_marked_where_they_happened(tmp_path: Path, axes: list[matplotlib.axes.Axes]) -> None:
    """A run that was resumed twice: two dotted lines in each panel."""
    draw([make_run(tmp_path / "a", [2.0, 1.5, 1.0, 0.5], 0.8, starts=(0, 10, 30))], tmp_path / "a.png")
    for panel in axes:
        marks = [lines for lines in panel.collections if isinstance(lines, LineCollection)]
        assert [start[0] for lines in marks for start, _ in lines.get_segments()] == [2.5, 7.5]


def test_a_run_can_be_drawn_over_another_one(tmp_path: Path, axes: list[matplotlib.axes.Axes]) -> None:
    """The other one is a wide line below it; the title says that the losses are equal."""
    runs = [make_run(tmp_path / name, [2.0, 1.0, 0.5], 0.8) for name in ("undisturbed", "interrupted")]
    draw(runs[1:], tmp_path / "over.svg", over=runs[0], theme="dark")
    below, above = axes[0].lines
    assert list(below.get_ydata()) == list(above.get_ydata())
    assert below.get_linewidth() > 4 * above.get_linewidth()
    assert below.get_zorder() <= above.get_zorder()
    assert (tmp_path / "over.svg").read_text().startswith("<?xml")


def test_a_single_run_has_a_legend_of_weights_and_ema(tmp_path: Path, axes: list[matplotlib.axes.Axes]) -> None:
    """Both accuracies are solid lines in different colors."""
    draw([make_run(tmp_path / "a", [2.0, 1.0], 0.8, ema=True)], tmp_path / "one.png")
    _, accuracy = axes
    assert [line.get_linestyle() for line in accuracy.lines] == ["-", "-"]
    assert len({line.get_color() for line in accuracy.lines}) == 2
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["weights", "EMA"]


def test_a_picture_of_a_run_without_a_learning_curve_is_an_error(tmp_path: Path) -> None:
    """One line that names the run, exit code 1, and no picture."""
    make_run(tmp_path / "a", [2.0, 1.0], 0.8)
    make_run(tmp_path / "none", [], 0.8)
    (tmp_path / "none" / "metrics.jsonl").unlink()
    script = ROOT / "jobs" / "report.py"
    command = [sys.executable, script, tmp_path / "a", tmp_path / "none", "--out", tmp_path / "x.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"report.py: {tmp_path / 'none'} has no learning curve yet")
    assert not (tmp_path / "x.png").exists()
