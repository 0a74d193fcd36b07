"""Counter-based random numbers: each draw has a 64-bit key, a pure function of the counters that identify it.

Sample order and crops are keyed by (seed, epoch, sample), everything after them by (seed, step, micro-batch).  No
generator state has to be saved: a run that resumes at any step, on any number of ranks, draws the same numbers.  Keys
are mixed with SplitMix64's finalizer: Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195.
"""

import enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Stream(enum.IntEnum):
    """The purpose of a draw.  Streams with the same counters are independent of each other."""

    ORDER = 1  # order of the samples in an epoch
    CROP = 2  # random crops
    AUGMENT = 3  # augmentation
    MODEL = 4  # dropout and stochastic depth
    INIT = 5  # initial weights
    BLOCKS = 6  # order of the blocks of a file, with data.shuffle_window


def mix(z: U64) -> U64:
    """A bijection of 64-bit integers.  Changing one input bit changes half of the output bits on average."""
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def keys(stream: Stream, seed: int, *counters: ArrayLike) -> U64:
    """Keys for arrays of counters, which are broadcast: (...), (...), … -> (...) uint64."""
    with np.errstate(over="ignore"):  # arithmetic is modulo 2**64
        key = mix(np.asarray([seed], np.int64).astype(np.uint64) + np.uint64(stream) * _GOLDEN)
        for counter in counters:
            key = mix(mix(key + _GOLDEN) ^ (np.asarray(counter).astype(np.uint64) * _MIX_2 + _GOLDEN))
    return key


def key(stream: Stream, seed: int, *counters: int) -> int:
    """A single key in [0, 2**63), valid for `torch.manual_seed`."""
    return int(keys(stream, seed, *counters)[0] >> np.uint64(1))


def uniform(key: U64, draw: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform number `draw` of each key, in [0, 1) with 53 bits; the arguments are broadcast: (...), (...) -> (...)."""
    with np.errstate(over="ignore"):
        bits = mix(key + np.asarray(draw + 1).astype(np.uint64) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
