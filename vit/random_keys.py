"""One 64-bit key for each random draw, a pure function of what the draw belongs to.

Sample order and crops are keyed by (seed, epoch, sample), everything after them by (seed, step, micro-batch), so no
generator state is ever saved: a run resumed at any step, on any number of ranks, draws what it would have drawn. The
mixer is SplitMix64's finalizer: Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195.
"""

import enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Stream(enum.IntEnum):
    """What a key is drawn for; two streams with the same counters are independent."""

    ORDER = 1
    CROP = 2
    AUGMENT = 3
    MODEL = 4
    INIT = 5
    BLOCKS = 6


def mix(z: U64) -> U64:
    """A bijection of 64-bit integers that changes half of the bits when one changes."""
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def keys(stream: Stream, seed: int, *counters: ArrayLike) -> U64:
    """Keys for arrays of counters, which broadcast: (...), (...), … -> (...) uint64."""
    with np.errstate(over="ignore"):  # arithmetic is modulo 2**64
        key = mix(np.asarray([seed], np.int64).astype(np.uint64) + np.uint64(stream) * _GOLDEN)
        for counter in counters:
            key = mix(mix(key + _GOLDEN) ^ (np.asarray(counter).astype(np.uint64) * _MIX_2 + _GOLDEN))
    return key


def key(stream: Stream, seed: int, *counters: int) -> int:
    """One key, in [0, 2**63): what `torch.manual_seed` takes."""
    return int(keys(stream, seed, *counters)[0] >> np.uint64(1))


def uniform(key: U64, draw: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """The draw-th uniform number in [0, 1) of each key, exact to 53 bits; they broadcast: (...) -> (...)."""
    with np.errstate(over="ignore"):
        bits = mix(key + np.asarray(draw + 1).astype(np.uint64) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
