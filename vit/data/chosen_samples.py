"""Chooses some images of a data set to look at, of as many classes as possible."""

import numpy as np

from vit.data.decode import Ints


def choose_samples(labels: Ints, count: int, seed: int = 0) -> Ints:
    """`count` different samples of those with these labels (S,), or all if there are fewer; sorted by class.

    No class has two more than another one that has some left.  With more classes than samples, the classes are chosen
    at random too, by `seed`.
    """
    rng = np.random.default_rng(seed)
    samples = rng.permutation(len(labels))
    classes = rng.permutation(int(labels.max()) + 1)[labels[samples]]  # a random number for each class
    by_class = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[by_class], classes[by_class])
    place = np.empty_like(by_class)  # among those of its class
    place[by_class] = np.arange(len(labels)) - starts
    chosen = samples[np.lexsort((classes, place))[:count]]
    return chosen[np.lexsort((chosen, labels[chosen]))]
