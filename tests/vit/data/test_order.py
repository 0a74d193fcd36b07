"""Keys and order: which samples, wherever a run is and however it is spread; uniform, in windows, repeated."""

import math
from itertools import pairwise

import numpy as np
import pytest

from vit.data.order import BLOCK, Order
from vit.random_keys import Stream, key, keys, mix, uniform

# ---------------------------------------------------------------------------------------------------------------- keys

TWO_64 = 2**64
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of the SplitMix64 paper


def mixed(z: int) -> int:
    """The mixer in Python's integers."""
    z = (z ^ z >> 30) * MIX_1 % TWO_64
    z = (z ^ z >> 27) * MIX_2 % TWO_64
    return z ^ z >> 31


def unmixed(z: int) -> int:
    """Its inverse."""
    z = (z ^ z >> 31 ^ z >> 62) * pow(MIX_2, -1, TWO_64) % TWO_64
    z = (z ^ z >> 27 ^ z >> 54) * pow(MIX_1, -1, TWO_64) % TWO_64
    return z ^ z >> 30 ^ z >> 60


def key_of(stream: int, seed: int, *counters: int) -> int:
    """`vit.random_keys.keys` in Python's integers."""
    out = mixed((seed + stream * GOLDEN) % TWO_64)
    for counter in counters:
        out = mixed(mixed((out + GOLDEN) % TWO_64) ^ (counter * MIX_2 + GOLDEN) % TWO_64)
    return out


def test_the_mixer_is_splitmix64() -> None:
    """The first numbers that the published generator gives for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    seed = np.uint64(1234567)
    assert [int(mix(np.array([(1234567 + i * GOLDEN) % TWO_64], np.uint64))[0]) for i in (1, 2, 3, 4)] == published
    assert [int(uniform(np.array([seed]), i)[0] * 2**53) for i in range(4)] == [n >> 11 for n in published]


def test_keys_never_change() -> None:
    """A key is the same in every version of this code and of numpy: else a resumed run would draw something else."""
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
    """Also for the key whose bits are all ones: an index made of it stays inside its table."""
    highest = (unmixed(TWO_64 - 1) - GOLDEN) % TWO_64
    lowest = (unmixed(0) - GOLDEN) % TWO_64
    assert uniform(np.array([highest, lowest], np.uint64), 0).tolist() == [1 - 2**-53, 0.0]


@pytest.mark.parametrize("stream", Stream)
def test_uniform_numbers_are_uniform(stream: Stream) -> None:
    """Chi-square over 256 bins, for many samples of one epoch, many epochs of one sample, many draws of one key."""
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


def test_draws_that_differ_in_anything_are_independent() -> None:
    """Stream, seed, epoch, sample and draw: each changes half of the bits, and none undoes another."""
    many = np.arange(20_000)
    base = keys(Stream.CROP, 0, 1, many)
    others = [
        keys(Stream.ORDER, 0, 1, many),
        keys(Stream.CROP, 1, 1, many),
        keys(Stream.CROP, 0, 2, many),
        keys(Stream.CROP, 0, 1, many + 1),
        keys(Stream.CROP, 0, many, 1),  # epoch and sample exchanged
        keys(Stream.CROP, 0, many),
    ]
    for other in others:
        assert abs(np.bitwise_count(base ^ other).mean() - 32) < 5 * 4 / math.sqrt(len(many))
        assert abs(np.corrcoef(uniform(base, 0), uniform(other, 0))[0, 1]) < 5 / math.sqrt(len(many))
    assert abs(np.corrcoef(uniform(base, 0), uniform(base, 1))[0, 1]) < 5 / math.sqrt(len(many))
    assert len(np.unique(np.concatenate([base, *others[:3]]))) == 4 * len(many)


# --------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("samples", [1, 2, 37, 1000])
def test_each_epoch_is_each_sample_once(samples: int) -> None:
    """Nothing is dropped, padded or repeated."""
    order = Order(3, samples)
    for epoch in (0, 1, 2, 500):
        assert np.array_equal(np.sort(order.permutation(epoch)), np.arange(samples))


def test_any_piece_of_the_stream_is_found_without_walking_there() -> None:
    """At every place and length, over the ends of one and of many epochs, and of length 0."""
    N = 11
    order = Order(3, N)
    stream = np.concatenate([order.permutation(epoch) for epoch in range(5)])
    for start in range(3 * N):
        for stop in range(start, 5 * N):
            epochs, samples = order.at(np.arange(start, stop))
            assert np.array_equal(samples, stream[start:stop])
            assert np.array_equal(epochs, np.arange(start, stop) // N)


def test_the_order_never_changes() -> None:
    """It is the order of the keys, and these: a later version must not resume a run with other samples."""
    order = Order(0, 10)
    assert order.permutation(0).tolist() == [2, 3, 6, 1, 0, 7, 5, 8, 4, 9]
    assert order.permutation(1).tolist() == [0, 2, 7, 6, 1, 3, 8, 9, 4, 5]
    assert Order(9, 500).permutation(4).tolist() == sorted(range(500), key=lambda i: key_of(Stream.ORDER, 9, 4, i))


def test_the_order_is_random() -> None:
    """No sample stays near its place or its neighbor, in the file or in another epoch or under another seed."""
    N = 10_000
    first = Order(0, N).permutation(0)
    for other in (np.arange(N), Order(0, N).permutation(1), Order(0, N).permutation(7), Order(1, N).permutation(0)):
        place, place_there = np.argsort(first), np.argsort(other)
        displacement = np.abs(place - place_there) / N
        assert abs(displacement.mean() - 1 / 3) < 5 * math.sqrt(1 / 18 / N)
        assert (displacement == 0).sum() < 10  # 1 is expected
        neighbors = set(pairwise(first.tolist())) & set(pairwise(other.tolist()))
        assert len(neighbors) < 10  # 1 is expected


@pytest.mark.parametrize("samples", [1, 64, 65, 1000])
@pytest.mark.parametrize("window", [64, 128, 6400])
@pytest.mark.parametrize("repeats", [1, 3])
def test_each_pass_in_windows_is_each_sample_once(samples: int, window: int, repeats: int) -> None:
    """With repeats each sample so many times, one after the other, and each time as another view."""
    order = Order(3, samples, window, repeats)
    views, shown = order.at(np.arange(3 * samples * repeats))
    for turn in range(3):
        now = slice(turn * samples * repeats, (turn + 1) * samples * repeats)
        assert np.array_equal(shown[now][::repeats], order.permutation(turn))
        assert np.array_equal(np.sort(shown[now]), np.repeat(np.arange(samples), repeats))
    assert len(np.unique(np.stack([views, shown]), axis=1).T) == len(views)
    assert views.max() == 3 * repeats - 1


def test_a_window_is_what_memory_must_hold() -> None:
    """Up to its end the stream reads no more of the file than the window's blocks; and the next pass has others."""
    order, window = Order(0, 100 * BLOCK, 10 * BLOCK), 10 * BLOCK
    blocks = [set((order.at(np.arange(w * window, (w + 1) * window)).samples // BLOCK).tolist()) for w in range(20)]
    assert all(len(each) == 10 for each in blocks)
    assert set().union(*blocks[:10]) == set().union(*blocks[10:]) == set(range(100))
    assert not any(first == second for first in blocks[:10] for second in blocks[10:])


def test_windows_mix_a_file_that_is_sorted_by_class() -> None:
    """A batch of 256 from windows of 2,048 holds nearly as many classes as one of a full shuffle, and never the same.

    100 classes of 512 images: a full shuffle shows 92.4 of them in a batch on average.
    """
    labels = np.arange(51_200) // 512
    seen = {}
    for window in (0, 2048, 8192):
        shown = labels[Order(0, len(labels), window).at(np.arange(len(labels))).samples].reshape(-1, 256)
        seen[window] = float(np.mean([len(np.unique(batch)) for batch in shown]))
    assert abs(seen[0] - 92.4) < 1
    assert seen[2048] > 25  # of at most 32 blocks
    assert seen[8192] > 65  # of at most 128
    place = np.argsort(Order(0, 51_200, 8192).permutation(0))
    distance = np.abs(np.diff(place))[np.arange(51_199) % BLOCK != BLOCK - 1]  # of neighbors in the file
    assert abs(distance.mean() / 8192 - 1 / 3) < 0.02  # as in a full shuffle of the window


def test_what_a_window_holds_is_asked_for_in_time() -> None:
    """Each block is hinted at before it is read, once a pass, shared out over the ranks of a node; from any step."""
    for N, window, repeats in ((100 * BLOCK - 7, 10 * BLOCK, 1), (33 * BLOCK, 4 * BLOCK, 3)):
        order, B = Order(0, N, window, repeats), 96
        for begin in (0, 3, 50):
            asked: set[tuple[int, int]] = set()
            many = -(-N // BLOCK)
            for step in range(begin, begin + 3 * N * repeats // B):
                start, stop = step * B, (step + 1) * B
                coming = order.coming(start, stop, step == begin)
                turn = (start // repeats) // N
                asked |= {(turn, block) for block in coming} | {(turn + 1, block) for block in coming}
                views, samples = order.at(np.arange(start, stop))
                needed = set(zip((views // repeats).tolist(), (samples // BLOCK).tolist(), strict=True))
                assert needed <= asked
                assert len(coming) <= many
    assert Order(0, 1000).coming(0, 64) == []
