"""What differs between runs, in which order they rank, and whether two curves are the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.page.run_data import RunData, shown

# Settings that say where or how a run is executed, or recorded: listed only if nothing else differs.
PLACES = ("data.train", "data.val", "data.workers", "data.prefetch", "data.cache", "data.stage", "device")


@dataclass(frozen=True)
class Sameness:
    """The training losses of two runs at the steps that both have logged."""

    steps: int  # that both have
    first_difference: int | None  # the first step at which they differ; None if they are equal to the last bit

    def describe(self, other: str) -> str:
        """In words."""
        if self.first_difference is None:
            return f"All {self.steps:,} training losses that both runs logged are those of {other}, to the last bit."
        return f"The training loss is that of {other} until it differs at step {self.first_difference:,}."


def sameness(run: RunData, other: RunData) -> Sameness | None:
    """None if they have no step in common."""
    mine, its = (_losses(r) for r in (run, other))
    common = sorted(mine.keys() & its.keys())
    if not common:
        return None
    return Sameness(len(common), next((step for step in common if mine[step] != its[step]), None))


def _losses(run: RunData) -> dict[int, float]:
    curve = run.curves.get("loss")
    return dict(zip(curve.steps, curve.values, strict=True)) if curve else {}


def differing_settings(runs: Sequence[RunData]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, with each run's value."""
    known = [run for run in runs if run.settings]
    names = dict.fromkeys(name for run in known for name in run.settings)
    values = {name: [shown(run.settings[name]) if name in run.settings else "" for run in runs] for name in names}
    differing = {
        name: column
        for name, column in values.items()
        if len({v for v, run in zip(column, runs, strict=True) if run.settings}) > 1
    }
    return {name: v for name, v in differing.items() if name not in PLACES} or differing


def ranked(runs: Sequence[RunData]) -> list[RunData]:
    """The best top-1 accuracy first; then those without one, by their loss."""

    def order(run: RunData) -> tuple[float, float]:
        loss = run.curves.get("loss")
        return -(run.best[1] if run.best else -1.0), loss.values[-1] if loss else float("inf")

    return sorted(runs, key=order)
