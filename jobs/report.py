"""Draws the learning curves of one run or of several.

python jobs/report.py runs/demo --out curve.png
python jobs/report.py runs/demo_overfits runs/demo_augmented --out both.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script, with jobs/ in the first place
    sys.path[0] = str(ROOT)

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines

LOSS, TOP1, AVERAGE, QUIET = "#4477aa", "#cc6677", "#ddaa33", "#888888"  # Paul Tol's bright scheme, for all eyes
RUNS = ("#4477aa", "#cc6677", "#228833", "#ddaa33", "#66ccee", "#aa3377")  # of it too


def draw(runs: Sequence[RunFolder], out: Path) -> None:
    """Loss of each logged step, accuracy of each evaluation, and where a run was interrupted.  Raises ValueError."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="test top-1 (%)")
    several, names, epochs = len(runs) > 1, [run.path.resolve().name for run in runs], 0.0
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        color = RUNS[i % len(RUNS)]
        loss, top1, average = (color, color, color) if several else (LOSS, TOP1, AVERAGE)
        records = read_lines(run.metrics)
        train, scored = [r for r in records if "loss" in r], [r for r in records if "val_top1" in r]
        if not train:
            raise ValueError(f"{run.path} has no learning curve yet: {run.metrics.name} is empty or missing")
        epochs = max(epochs, train[-1]["epochs"])
        left.plot([r["epoch"] for r in train], [r["loss"] for r in train], color=loss, linewidth=1, label=name)
        _accuracy(right, scored, "val_top1", top1, "-", "weights")
        if scored and "val_top1_average" in scored[-1]:
            _accuracy(right, scored, "val_top1_average", average, "--" if several else "-", "EMA")
            if not several:
                right.legend(frameon=False, loc="lower right")
        if scored:
            last = 100 * scored[-1]["val_top1"]
            where = {"xytext": (0, -16), "ha": "right"} if not several else {"xytext": (7, 0), "va": "center"}
            at = (scored[-1]["epoch"], last)
            right.annotate(
                f"{last:.1f} %", at, textcoords="offset points", color=color if several else "black", **where
            )
        per_epoch = train[-1]["steps"] / train[-1]["epochs"]
        restarts = [e["step"] / per_epoch for e in run.events() if e["event"] == "started"][1:]
        _mark(left, right, restarts, color if several else QUIET)
    if several:
        left.legend(frameon=False)
    left.set_ylim(0, None)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, epochs * (1.02 if axes is left or not several else 1.12))
    figure.suptitle(" and ".join(names))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def _accuracy(axes: Any, scored: list[dict[str, Any]], what: str, color: str, line: str, label: str) -> None:
    values = [100 * r[what] for r in scored]
    axes.plot([r["epoch"] for r in scored], values, line, marker="o", markersize=4, color=color, label=label)


def _mark(left: Any, right: Any, restarts: list[float], color: str) -> None:
    """A dotted line where a run went on; the first is named."""
    for i, epoch in enumerate(restarts):
        for axes in (left, right):
            axes.axvline(epoch, color=color, linewidth=0.8, linestyle=":")
        if i == 0:
            near = {"textcoords": "offset points", "xytext": (3, -10), "color": color}
            left.annotate("resumed", (epoch, 1), xycoords=("data", "axes fraction"), **near)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draws the learning curves of one run or of several.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--out", type=Path, default=Path("curve.png"), help="picture: .png, .svg or .pdf")
    options = parser.parse_args()
    try:
        draw([RunFolder(path) for path in options.runs], options.out)
    except (ValueError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
