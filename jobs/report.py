"""Plots the learning curves of one or more runs.

python jobs/report.py runs/demo --out curve.png
python jobs/report.py runs/demo_overfits runs/demo_augmented --out both.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script: sys.path[0] is jobs/, except with PYTHONSAFEPATH
    sys.path[: not sys.flags.safe_path] = [str(ROOT)]
if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()

from vit.run.figures import import_matplotlib

import_matplotlib()  # before pyplot, which chooses the backend
from matplotlib import pyplot

from vit.config.paths import user_path
from vit.config.user_error import UserError
from vit.run.command import run_command
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines

# Paul Tol's bright scheme, which is safe for color-blind readers: curves of a single run, and one color per run.
LOSS, TOP1, EMA, RESUMED = "#4477aa", "#cc6677", "#ddaa33", "#888888"
RUN_COLORS = ("#4477aa", "#cc6677", "#228833", "#ddaa33", "#66ccee", "#aa3377")


def draw(runs: Sequence[RunFolder], out: Path) -> None:
    """Plots training loss and test accuracy, and marks where runs were resumed.  Raises UserError."""
    figure, (loss_axes, accuracy_axes) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    loss_axes.set(xlabel="epoch", ylabel="training loss")
    accuracy_axes.set(xlabel="epoch", ylabel="test top-1 (%)")
    several = len(runs) > 1
    epochs = [
        _draw_run(run, loss_axes, accuracy_axes, RUN_COLORS[i % len(RUN_COLORS)] if several else "")
        for i, run in enumerate(runs)
    ]
    if several:
        loss_axes.legend(frameon=False)
    loss_axes.set_ylim(0, None)
    loss_axes.set_xlim(0, max(epochs) * 1.02)
    accuracy_axes.set_xlim(0, max(epochs) * (1.12 if several else 1.02))  # room for the results of several runs
    for axes in (loss_axes, accuracy_axes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(" and ".join(_name(run) for run in runs))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def _draw_run(run: RunFolder, loss_axes: Any, accuracy_axes: Any, color: str) -> float:
    """Plots one run, in its own color if there are several; returns its number of epochs.  Raises UserError."""
    records = read_lines(run.metrics)
    steps, evaluations = [r for r in records if "loss" in r], [r for r in records if "val_top1" in r]
    if not steps:
        raise UserError(f"{run.path} has no learning curve yet: {run.metrics.name} is missing or empty")
    epochs = [r["epoch"] for r in steps]
    loss_axes.plot(epochs, [r["loss"] for r in steps], color=color or LOSS, linewidth=1, label=_name(run))
    _draw_accuracy(accuracy_axes, evaluations, "val_top1", color or TOP1, "-", "weights")
    if evaluations and "val_top1_average" in evaluations[-1]:
        _draw_accuracy(accuracy_axes, evaluations, "val_top1_average", color or EMA, "--" if color else "-", "EMA")
        if not color:
            accuracy_axes.legend(frameon=False, loc="lower right")
    if evaluations:
        percent = 100 * evaluations[-1]["val_top1"]
        placement = {"xytext": (7, 0), "va": "center"} if color else {"xytext": (0, -16), "ha": "right"}
        accuracy_axes.annotate(
            f"{percent:.1f} %",
            (evaluations[-1]["epoch"], percent),
            textcoords="offset points",
            color=color or "black",
            **placement,
        )
    steps_per_epoch = steps[-1]["steps"] / steps[-1]["epochs"]
    resumed = [e["step"] / steps_per_epoch for e in run.events() if e["event"] == "started"][1:]
    _mark_resumed(loss_axes, accuracy_axes, resumed, color or RESUMED)
    return float(steps[-1]["epochs"])


def _draw_accuracy(axes: Any, evaluations: list[dict[str, Any]], key: str, color: str, line: str, label: str) -> None:
    percents = [100 * r[key] for r in evaluations]
    axes.plot([r["epoch"] for r in evaluations], percents, line, marker="o", markersize=4, color=color, label=label)


def _mark_resumed(loss_axes: Any, accuracy_axes: Any, epochs: list[float], color: str) -> None:
    """Draws a dotted line at each epoch, and labels the first one."""
    for i, epoch in enumerate(epochs):
        for axes in (loss_axes, accuracy_axes):
            axes.axvline(epoch, color=color, linewidth=0.8, linestyle=":")
        if i == 0:
            offset = {"textcoords": "offset points", "xytext": (3, -10), "color": color}
            loss_axes.annotate("resumed", (epoch, 1), xycoords=("data", "axes fraction"), **offset)


def _name(run: RunFolder) -> str:
    return run.path.resolve().name


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Plots the learning curves of one or more runs.")
    parser.add_argument("runs", type=user_path, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument(
        "--out",
        type=user_path,
        default=Path("curve.png"),
        help="image to write: .png, .svg or .pdf (default: curve.png)",
    )
    options = parser.parse_args()
    try:
        draw([RunFolder(path) for path in options.runs], options.out)
    except (UserError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    run_command(main)
