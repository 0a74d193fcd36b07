"""Random keys, and the order of samples: reproducible, uniform, in windows and with repeats."""

import math
from itertools import pairwise

import numpy as np
import pytest

from vit.data.order import BLOCK, Order
from vit.random_keys import Stream, key, keys, mix, uniform

# ---------------------------------------------------------------------------------------------------------------- keys

TWO_64 = 2**64
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # constants of SplitMix64


def mixed(z: int) -> int:
    """SplitMix64's mixer with Python integers."""
    z = (z ^ z >> 30) * MIX_1 % TWO_64
    z = (z ^ z >> 27) * MIX_2 % TWO_64
    return z ^ z >> 31


def unmixed(z: int) -> int:
    """The inverse of `mixed`."""
    z = (z ^ z >> 31 ^ z >> 62) * pow(MIX_2, -1, TWO_64) % TWO_64
    z = (z ^ z >> 27 ^ z >> 54) * pow(MIX_1, -1, TWO_64) % TWO_64
    return z ^ z >> 30 ^ z >> 60


def key_of(stream: int, seed: int, *counters: int) -> int:
    """`vit.random_keys.keys` with Python integers."""
    out = mixed((seed + stream * GOLDEN) % TWO_64)
    for counter in counters:
        out = mixed(mixed((out + GOLDEN) % TWO_64) ^ (counter * MIX_2 + GOLDEN) % TWO_64)
    return out


def test_the_mixer_is_splitmix64() -> None:
    """The first numbers of the published generator for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    seed = np.uint64(1234567)
    assert [int(mix(np.array([(1234567 + i * GOLDEN) % TWO_64], np.uint64))[0]) for i in (1, 2, 3, 4)] == published
    assert [int(uniform(np.array([seed]), i)[0] * 2**53) for i in range(4)] == [n >> 11 for n in published]


def test_keys_are_the_same_in_every_version() -> None:
    """Of this code and of numpy; otherwise a resumed run would draw other numbers."""
    assert [hex(key_of(s, 42, 3, 5)) for s in Stream] == [
        "0xb5bb87b8d07e7fdc",
        "0xeb4d285998951229",
        "0xa41181fce19a2491",
        "0xeae61a9c515785e4",
        "0x625696232f4173ed",
        "0xa093c6b8ce3134c0",
    ]
    samples = np.array([0, 1, 5, 1281166, 2**40])
    for stream in Stream:
        for seed in (0, 42, -1, 2**63 - 1):
            assert keys(stream, seed, 3, samples).tolist() == [key_of(stream, seed, 3, int(s)) for s in samples]
            assert key(stream, seed, 3, 5) == key_of(stream, seed, 3, 5) >> 1  # fits torch.manual_seed


def test_uniform_numbers_stay_below_one() -> None:
    """Also for the key whose bits are all ones, so that an index computed from it stays within its table."""
    highest = (unmixed(TWO_64 - 1) - GOLDEN) % TWO_64
    lowest = (unmixed(0) - GOLDEN) % TWO_64
    assert uniform(np.array([highest, lowest], np.uint64), 0).tolist() == [1 - 2**-53, 0.0]


@pytest.mark.parametrize("stream", Stream)
def test_uniform_numbers_are_uniform(stream: Stream) -> None:
    """Chi-square test over 256 bins: many samples of one epoch, many epochs of one sample, many draws of one key."""
    many = np.arange(50_000)
    one = keys(stream, 0, 0, 0)
    for numbers in (
        uniform(keys(stream, 0, 0, many), 0),
        uniform(keys(stream, 0, many, 0), 3),
        np.concatenate([uniform(one, draw) for draw in range(10_000)]),
    ):
        expected = len(numbers) / 256
        chi_square = ((np.bincount((numbers * 256).astype(int), minlength=256) - expected) ** 2 / expected).sum()
        assert 255 - 5 * math.sqrt(2 * 255) < chi_square < 255 + 5 * math.sqrt(2 * 255)


def test_keys_with_any_different_argument_are_independent() -> None:
    """A different stream, seed, epoch, sample or draw changes half of the bits and leaves no correlation."""
    many = np.arange(20_000)
    base = keys(Stream.CROP, 0, 1, many)
    others = [
        keys(Stream.ORDER, 0, 1, many),
        keys(Stream.CROP, 1, 1, many),
        keys(Stream.CROP, 0, 2, many),
        keys(Stream.CROP, 0, 1, many + 1),
        keys(Stream.CROP, 0, many, 1),  # epoch and sample swapped
        keys(Stream.CROP, 0, many),
    ]
    for other in others:
        assert abs(np.bitwise_count(base ^ other).mean() - 32) < 5 * 4 / math.sqrt(len(many))
        assert abs(np.corrcoef(uniform(base, 0), uniform(other, 0))[0, 1]) < 5 / math.sqrt(len(many))
    assert abs(np.corrcoef(uniform(base, 0), uniform(base, 1))[0, 1]) < 5 / math.sqrt(len(many))
    assert len(np.unique(np.concatenate([base, *others[:3]]))) == 4 * len(many)


# --------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("samples", [1, 2, 37, 1000])
def test_each_epoch_contains_each_sample_once(samples: int) -> None:
    """No sample is dropped, padded or repeated."""
    order = Order(3, samples)
    for epoch in (0, 1, 2, 500):
        assert np.array_equal(np.sort(order.permutation(epoch)), np.arange(samples))


def test_any_range_of_the_stream_is_computed_directly() -> None:
    """For every start and length, including ranges over several epochs and empty ranges."""
    N = 11
    order = Order(3, N)
    stream = np.concatenate([order.permutation(epoch) for epoch in range(5)])
    for start in range(3 * N):
        for stop in range(start, 5 * N):
            epochs, samples = order.at(np.arange(start, stop))
            assert np.array_equal(samples, stream[start:stop])
            assert np.array_equal(epochs, np.arange(start, stop) // N)


def test_the_order_is_the_same_in_every_version() -> None:
    """Otherwise a later version would resume a run with other samples."""
    order = Order(0, 10)
    assert order.permutation(0).tolist() == [2, 3, 6, 1, 0, 7, 5, 8, 4, 9]
    assert order.permutation(1).tolist() == [0, 2, 7, 6, 1, 3, 8, 9, 4, 5]
    assert Order(9, 500).permutation(4).tolist() == sorted(range(500), key=lambda i: key_of(Stream.ORDER, 9, 4, i))


def test_the_order_is_random() -> None:
    """Positions and neighbors are independent of those in the file, in another epoch and with another seed."""
    N = 10_000
    first = Order(0, N).permutation(0)
    for other in (np.arange(N), Order(0, N).permutation(1), Order(0, N).permutation(7), Order(1, N).permutation(0)):
        displacement = np.abs(np.argsort(first) - np.argsort(other)) / N
        assert abs(displacement.mean() - 1 / 3) < 5 * math.sqrt(1 / 18 / N)
        assert (displacement == 0).sum() < 10  # 1 is expected
        neighbors = set(pairwise(first.tolist())) & set(pairwise(other.tolist()))
        assert len(neighbors) < 10  # 1 is expected


@pytest.mark.parametrize("samples", [1, 64, 65, 1000])
@pytest.mark.parametrize("window", [64, 128, 6400])
@pytest.mark.parametrize("repeats", [1, 3])
def test_each_pass_in_windows_contains_each_sample_once(samples: int, window: int, repeats: int) -> None:
    """With repeats, each sample occurs that many times in a row, each time with another view number."""
    order = Order(3, samples, window, repeats)
    views, stream = order.at(np.arange(3 * samples * repeats))
    for index in range(3):
        one_pass = stream[index * samples * repeats : (index + 1) * samples * repeats]
        assert np.array_equal(one_pass[::repeats], order.permutation(index))
        assert np.array_equal(np.sort(one_pass), np.repeat(np.arange(samples), repeats))
    assert len(np.unique(np.stack([views, stream]), axis=1).T) == len(views)
    assert views.max() == 3 * repeats - 1


def test_a_window_reads_only_its_own_blocks() -> None:
    """Memory must hold only one window.  The windows of the next pass consist of other blocks."""
    order, window = Order(0, 100 * BLOCK, 10 * BLOCK), 10 * BLOCK
    blocks = [set((order.at(np.arange(w * window, (w + 1) * window)).samples // BLOCK).tolist()) for w in range(20)]
    assert all(len(each) == 10 for each in blocks)
    assert set().union(*blocks[:10]) == set().union(*blocks[10:]) == set(range(100))
    assert not any(first == second for first in blocks[:10] for second in blocks[10:])


def test_windows_mix_the_classes_of_a_file_that_is_sorted_by_class() -> None:
    """A fully shuffled batch of 256 contains 92.4 of 100 classes on average; windows limit that number."""
    labels = np.arange(51_200) // 512
    classes_per_batch = {}
    for window in (0, 2048, 8192):
        batches = labels[Order(0, len(labels), window).at(np.arange(len(labels))).samples].reshape(-1, 256)
        classes_per_batch[window] = float(np.mean([len(np.unique(batch)) for batch in batches]))
    assert abs(classes_per_batch[0] - 92.4) < 1
    assert classes_per_batch[2048] > 25  # the window has 32 blocks
    assert classes_per_batch[8192] > 65  # the window has 128 blocks
    position = np.argsort(Order(0, 51_200, 8192).permutation(0))
    distance = np.abs(np.diff(position))[np.arange(51_199) % BLOCK != BLOCK - 1]  # between neighbors in a block
    assert abs(distance.mean() / 8192 - 1 / 3) < 0.02  # as in a full shuffle of the window


def test_the_blocks_of_a_window_are_requested_before_they_are_read() -> None:
    """From any step on, with and without repeats."""
    for N, window, repeats in ((100 * BLOCK - 7, 10 * BLOCK, 1), (33 * BLOCK, 4 * BLOCK, 3)):
        order, B = Order(0, N, window, repeats), 96
        for begin in (0, 3, 50):
            requested: set[tuple[int, int]] = set()  # pass and block
            for step in range(begin, begin + 3 * N * repeats // B):
                start, stop = step * B, (step + 1) * B
                ahead = order.blocks_ahead(start, stop, step == begin)
                index = (start // repeats) // N
                requested |= {(index, block) for block in ahead} | {(index + 1, block) for block in ahead}
                views, samples = order.at(np.arange(start, stop))
                needed = set(zip((views // repeats).tolist(), (samples // BLOCK).tolist(), strict=True))
                assert needed <= requested
                assert len(ahead) <= -(-N // BLOCK)
    assert Order(0, 1000).blocks_ahead(0, 64) == []
