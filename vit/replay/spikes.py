"""Which steps are spikes of the loss, which samples are the reason, and which were in several spikes by no chance.

A spike is a loss above the median of the steps around it plus LIMIT times the median absolute deviation (MAD) from it,
or one that is not finite.  For normal noise the limit is four standard deviations.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIMIT = 6.0  # MADs above the median
LEAST = 0.02  # of the median that a spike is above it in any case: losses may hardly vary
NEIGHBORS = 25  # records on each side that the loss of a record is compared with
FEWEST = 5  # losses of which a median says something
MOST = 200  # spikes of a run that are looked at: the highest above their limits
CHANCE = 0.05  # samples expected to be in so many spikes by chance, below which those that were are named

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class StepLosses:
    """The losses of the n images of a step."""

    step: int
    skipped: bool  # whether the run skipped it
    loss: float
    recorded: float | None  # the loss in the learning curve of the run
    samples: Ints  # (n,), indices in the data set; -1: damaged and left out
    partners: Ints  # (n,), samples that are mixed into the images; -1: none
    shares: Floats  # (n,), of the partners
    losses: Floats  # (n,), of the images as the model saw them

    @property
    def is_finite(self) -> bool:
        """Whether the loss of each image is finite."""
        return math.isfinite(self.loss) and bool(np.isfinite(self.losses).all())


@dataclass(frozen=True)
class Spike:
    """A step whose loss is a spike, and the images that make most of it."""

    of: StepLosses
    level: float  # the loss that is usual here
    high: list[int]  # rows of the images that make half of the rise, highest first; a tenth of the images at most
    covered: float  # share of the rise that they make; NaN if the loss is not finite

    def share(self, row: int) -> float:
        """The share of an image in the rise of the loss; NaN if the loss is not finite."""
        rise = self.of.loss - self.level
        return float(self.of.losses[row] - self.level) / len(self.of.losses) / rise if math.isfinite(rise) else math.nan

    @property
    def samples(self) -> set[int]:
        """The samples in its high images."""
        found = {int(each[row]) for row in self.high for each in (self.of.samples, self.of.partners)}
        return found - {-1}


def median_and_limit(losses: Iterable[float]) -> tuple[float, float] | None:
    """The median of losses, and the limit above which a loss is a spike; None if there are too few."""
    values = np.array([loss for loss in losses if math.isfinite(loss)])
    if len(values) < FEWEST:
        return None
    median = float(np.median(values))
    return median, median + max(LIMIT * float(np.median(np.abs(values - median))), LEAST * abs(median))


def reference(window: Sequence[StepLosses], curve: Mapping[int, float]) -> list[float]:
    """The losses that those of a window are compared with: its own, and the records before and after it.

    Without the records, a rise that lasts for half of the window would be what is usual.
    """
    before = sorted(step for step in curve if step < window[0].step)[-NEIGHBORS:]
    after = sorted(step for step in curve if step > window[-1].step)[:NEIGHBORS]
    return [each.loss for each in window] + [curve[step] for step in before + after]


def window_spikes(window: Sequence[StepLosses], median: float, limit: float) -> list[Spike]:
    """The spikes of a window."""
    return [spike_of(each, median) for each in window if not each.loss <= limit or not each.is_finite]


def spike_of(step: StepLosses, level: float) -> Spike:
    """A step as a spike over the level that is usual."""
    losses = np.where(np.isfinite(step.losses), step.losses, math.inf)
    order = [int(row) for row in np.argsort(-losses, kind="stable")]
    most = max(2, len(order) // 10)
    if not step.is_finite:
        return Spike(step, level, [row for row in order if math.isinf(losses[row])][:most], math.nan)
    made = np.cumsum(step.losses[order] - level) / len(order) / max(step.loss - level, 1e-300)
    count = min(int(np.argmax(made >= 0.5)) + 1 if (made >= 0.5).any() else most, most)
    return Spike(step, level, order[:count], float(made[count - 1]))


def in_several(spikes: Sequence[Spike]) -> dict[int, list[int]]:
    """The samples that are in the high images of several spikes of a window, most often first, with these steps."""
    counts = Counter(sample for spike in spikes for sample in spike.samples)
    return {
        sample: [spike.of.step for spike in spikes if sample in spike.samples]
        for sample, count in counts.most_common()
        if count > 1
    }


def curve_spikes(curve: Mapping[int, float]) -> list[int]:
    """The steps of a learning curve that are spikes, compared with the records around them; MOST at most."""
    steps = sorted(curve)
    if len(steps) < FEWEST:
        return []
    losses = np.array([curve[step] for step in steps], dtype=np.float64)
    # At both ends as many records are compared, those of one side.
    width = min(2 * NEIGHBORS + 1, len(steps))
    windows = np.lib.stride_tricks.sliding_window_view(losses, width)  # (windows, width)
    median = np.median(windows, axis=1)
    mad = np.concatenate([np.median(np.abs(w - m[:, None]), axis=1) for w, m in _parts(windows, median)])
    limit = median + np.maximum(LIMIT * mad, LEAST * np.abs(median))
    nearest = np.clip(np.arange(len(steps)) - width // 2, 0, len(windows) - 1)
    above = losses - limit[nearest]
    found = sorted((int(i) for i in np.flatnonzero(above > 0)), key=lambda i: -above[i])[:MOST]
    return sorted(steps[i] for i in found)


def _parts(windows: Floats, median: Floats, size: int = 20_000) -> Iterable[tuple[Floats, Floats]]:
    """Parts of the windows, whose deviations fit into memory."""
    return ((windows[i : i + size], median[i : i + size]) for i in range(0, len(windows), size))


@dataclass(frozen=True)
class Repeated:
    """A sample that was in several spikes of a run."""

    sample: int
    steps: list[int]
    expected: float  # number of samples of the data set that are in so many spikes by chance


def repeated_samples(spikes: Mapping[int, tuple[Ints, Ints]], samples: int) -> list[Repeated]:
    """The samples that were in more spikes than chance explains, most often first.

    `spikes`: the samples of each spike's step, and in which pass over the data set they were.  Each pass is a new
    shuffle, in which a sample is in one of its spikes with a probability that is their share of the data set.
    """
    of_sample: dict[int, dict[int, int]] = {}  # steps of a sample by pass
    in_pass: dict[int, set[int]] = {}
    for step, (members, passes) in spikes.items():
        for sample, number in zip(members.tolist(), passes.tolist(), strict=True):
            of_sample.setdefault(sample, {}).setdefault(number, step)
            in_pass.setdefault(number, set()).add(sample)
    chance = np.ones(1)  # that a sample is in k passes' spikes
    for found in in_pass.values():
        share = len(found) / samples
        chance = np.convolve(chance, [1 - share, share])
    at_least = np.cumsum(chance[::-1])[::-1]
    out = [
        Repeated(sample, sorted(set(passes.values())), samples * float(at_least[len(passes)]))
        for sample, passes in of_sample.items()
        if len(passes) > 1 and samples * at_least[len(passes)] < CHANCE
    ]
    return sorted(out, key=lambda each: (each.expected, each.sample))
