"""A rank that is slower than the others is found, and what it is slow at, from the times of all ranks."""

import random
from collections.abc import Sequence

import pytest

from vit.run.slow_ranks import FIELDS, Change, SlowRanks, compare

USUAL = {"decode": 0.02, "data": 0.0, "augment": 0.01, "forward_backward": 0.2, "wait": 0.03, "update": 0.01}


def synchronous(*ranks: dict[str, float], steps: int = 10) -> list[list[float]]:
    """Totals of ranks with these differences from USUAL, which wait for the slowest one in the sum."""
    each = [USUAL | rank for rank in ranks]
    own = [rank["data"] + rank["augment"] + rank["forward_backward"] + rank["update"] for rank in each]
    waits = [USUAL["wait"] + max(own) - mine for mine in own]
    return [
        [steps, *(steps * (rank | {"wait": wait})[name] for name in FIELDS[1:])]
        for rank, wait in zip(each, waits, strict=True)
    ]


def observed(found: SlowRanks, totals: Sequence[Sequence[float]], times: int = 40) -> list[tuple[int, str | None]]:
    changes: list[Change] = [change for _ in range(times) for change in found.observe(totals)]
    return [(change.rank, change.what) for change in changes]


def test_a_rank_is_slow_at_what_takes_it_longer_than_the_others() -> None:
    """Each is said once: when it becomes slow, when it is slow at something else, and when it has recovered."""
    found = SlowRanks(1.2, 60)
    assert observed(found, synchronous({}, {}, {}, {})) == []
    assert observed(found, synchronous({}, {}, {"forward_backward": 0.3}, {})) == [(2, "forward_backward")]
    late = {"data": 0.25, "decode": 0.45}
    assert observed(found, synchronous({}, {}, late, {})) == [(2, "data")]
    assert found.slow == {2: "data"}
    assert observed(found, synchronous({}, {}, {}, {})) == [(2, None)]
    assert found.slow == {}


@pytest.mark.parametrize(("what", "slow"), [("augment", 0.1), ("update", 0.09), ("forward_backward", 0.26)])
def test_the_ratio_is_that_of_the_time_of_a_step(what: str, slow: float) -> None:
    """0.25 s of a step, and so much longer if all ranks were like this one; the rest waits."""
    (_, second) = compare(synchronous({}, {what: slow}))
    assert second.ratio == pytest.approx((0.25 + slow - USUAL[what]) / 0.25)
    assert second.lost[what] == pytest.approx(slow - USUAL[what])


def test_a_whole_node_of_slow_ranks_is_found() -> None:
    """Half of the ranks: they are compared with the faster half."""
    slow = {"forward_backward": 0.3}
    assert observed(SlowRanks(1.2, 60), synchronous({}, {}, slow, slow)) == [
        (2, "forward_backward"),
        (3, "forward_backward"),
    ]


def test_a_rank_that_waits_for_images_as_slow_as_those_of_all_ranks_is_not_slow() -> None:
    """All decode 0.5 s: the last one by a hundredth waits for its images in each step, the others for the last one."""
    last = {"decode": 0.505, "data": 0.255}
    ranks = compare(synchronous({"decode": 0.5}, {"decode": 0.5}, last, {"decode": 0.5}))
    assert [round(rank.ratio, 2) for rank in ranks] == [1, 1, 1.01, 1]
    late = {"decode": 1.0, "data": 0.75}
    ranks = compare(synchronous({"decode": 0.5}, {"decode": 0.5}, late, {"decode": 0.5}))
    assert [round(rank.ratio, 2) for rank in ranks] == [1, 1, 2, 1]


def test_a_short_hiccup_is_not_reported() -> None:
    """Half a minute for one step of one rank, within a minute that is else undisturbed."""
    found = SlowRanks(1.2, 60)
    assert observed(found, synchronous({}, {}, {}, {})) == []
    assert observed(found, synchronous({}, {}, {}, {"forward_backward": 30.0}, steps=1), times=1) == []
    assert observed(found, synchronous({}, {}, {}, {})) == []


def test_noise_around_the_threshold_is_reported_once() -> None:
    """A rank that is 1.2 times slower on average, with an average noise of as much."""
    found, draw, changes = SlowRanks(1.2, 60), random.Random(0), []
    for _ in range(2000):
        slow = {"forward_backward": 0.26 + draw.uniform(-0.1, 0.1)}
        changes += found.observe(synchronous({}, {}, {}, slow))
    assert [(change.rank, change.what) for change in changes] == [(3, "forward_backward")]


def test_a_rank_is_slow_only_after_a_whole_window_and_enough_steps() -> None:
    """A minute of training, in records of 3 s; and at least 15 steps if they are long."""
    found = SlowRanks(1.2, 60)
    slow = synchronous({}, {"forward_backward": 0.25})
    assert [len(found.observe(slow)) for _ in range(20)] == [0] * 19 + [1]
    long = synchronous({}, {"forward_backward": 100.0}, steps=1)
    found = SlowRanks(1.2, 60)
    assert [len(found.observe(long)) for _ in range(15)] == [0] * 14 + [1]
