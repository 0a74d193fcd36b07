"""What the samples of a step are called: index, class and, if the data set has them, names of image files."""

from vit.data.beton import Beton
from vit.replay.replayer import ReplayedStep


class SampleNames:
    """Names of the samples of one data set."""

    def __init__(self, beton: Beton) -> None:
        self.classes = beton.names or beton.classes
        self._labels = beton.labels

    def class_of(self, sample: int) -> str:
        """The readable name of a sample's class; empty for a damaged sample that was left out."""
        return self.classes[int(self._labels[sample])] if sample >= 0 else ""

    def describe(self, sample: int) -> str:
        """For example: sample 31,415 (class tench)."""
        return f"sample {sample:,} (class {self.class_of(sample)})"


def partner(step: ReplayedStep, micro_batch: int, row: int) -> tuple[int, float] | None:
    """The sample that is mixed into an image, and its share of the target; None if the image is not mixed."""
    mix = step.mixes[micro_batch]
    if mix is None or mix.lam == 1:
        return None
    samples = step.samples[micro_batch]
    return int(samples[(row - mix.distance) % len(samples)]), 1 - mix.lam
