"""Draws the learning curve of a run.

python jobs/report.py runs/demo --out curve.png
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script, with jobs/ in the first place
    sys.path[0] = str(ROOT)

import matplotlib  # noqa: E402

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402

from vit.ledger import RunFolder, read_lines  # noqa: E402

LOSS, TOP1, AVERAGE, QUIET = "#4477aa", "#cc6677", "#ddaa33", "#888888"  # Paul Tol's bright scheme, for all eyes


def draw(run: RunFolder, out: Path) -> None:
    """Loss of each logged step, accuracy of each evaluation, and where the run was interrupted.  Raises ValueError."""
    records = read_lines(run.metrics)
    train, scored = [r for r in records if "loss" in r], [r for r in records if "val_top1" in r]
    if not train:
        raise ValueError(f"{run.path} has no learning curve yet: {run.metrics.name} is empty or missing")
    per_epoch = train[-1]["steps"] / train[-1]["epochs"]
    restarts = [e["step"] / per_epoch for e in run.events() if e["event"] == "started"][1:]

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot([r["epoch"] for r in train], [r["loss"] for r in train], color=LOSS, linewidth=1)
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    epochs = [r["epoch"] for r in scored]
    right.plot(epochs, [100 * r["val_top1"] for r in scored], "o-", color=TOP1, label="weights")
    if scored and "val_top1_average" in scored[-1]:
        right.plot(epochs, [100 * r["val_top1_average"] for r in scored], "o-", color=AVERAGE, label="average")
        right.legend(frameon=False, loc="lower right")
    if scored:
        best = 100 * scored[-1]["val_top1"]
        right.annotate(f"{best:.1f} %", (epochs[-1], best), (0, -16), textcoords="offset points", ha="right")
    right.set(xlabel="epoch", ylabel="test top-1 (%)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, train[-1]["epochs"] * 1.02)
        for i, epoch in enumerate(restarts):
            axes.axvline(epoch, color=QUIET, linewidth=0.8, linestyle=":")
            if i == 0 and axes is left:
                axes.annotate("resumed", (epoch, axes.get_ylim()[1]), (3, -10), textcoords="offset points", color=QUIET)
    figure.suptitle(run.path.resolve().name)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draws the learning curve of a run.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, default=Path("curve.png"), help="picture: .png, .svg or .pdf")
    options = parser.parse_args()
    try:
        draw(RunFolder(options.run), options.out)
    except (ValueError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
