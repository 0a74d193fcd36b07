"""Random generators, and statistics that compare samples with a distribution."""

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

KS_LIMIT = 1.95  # exceeded by `ks_distance` once in a thousand samples of the same distribution


def generator(key: int) -> np.random.Generator:
    """The generator that augmentation uses for a key."""
    return np.random.Generator(np.random.Philox(key=key))


def ks_distance(sample: np.ndarray, other: np.ndarray | Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov-Smirnov distance to another sample or to a distribution function, scaled by the sample size."""
    sample = np.sort(sample)
    n = len(sample)
    if callable(other):
        cdf = other(sample)
        distance = max(np.max(np.arange(1, n + 1) / n - cdf), np.max(cdf - np.arange(n) / n))
        return float(distance * math.sqrt(n))
    both, m = np.concatenate((sample, other)), len(other)
    ranks = (np.searchsorted(np.sort(x), both, side="right") / len(x) for x in (sample, other))
    return float(np.max(np.abs(np.subtract(*ranks))) * math.sqrt(n * m / (n + m)))


def chi_square(counts: Tensor) -> float:
    """Chi-square statistic against equal frequencies, in standard deviations from its expected value."""
    expected, freedom = counts.sum() / counts.numel(), counts.numel() - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))
