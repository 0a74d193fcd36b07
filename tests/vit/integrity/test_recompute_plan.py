"""Who recomputes what in which step, and who is found to be wrong."""

from dataclasses import replace
from itertools import pairwise

import pytest

from vit.config.schema import Config
from vit.config.sections import ChecksConfig
from vit.integrity.recompute import judge
from vit.integrity.recompute_plan import is_due, recompute_plan

A, B, C, D = b"a", b"b", b"c", b"d"  # results of a micro-batch


def config(micro_batches: int, every: int = 10) -> Config:
    checks = ChecksConfig(recompute_every_steps=every)
    return Config(global_batch=2 * micro_batches, micro_batch=2, checks=checks)


@pytest.mark.parametrize(("ranks", "each"), [(1, 4), (2, 1), (2, 4), (3, 2), (4, 1), (4, 2), (4, 4), (5, 3), (8, 2)])
def test_over_time_each_rank_recomputes_each_micro_batch_of_all_others(ranks: int, each: int) -> None:
    """Every micro-batch of a step is recomputed by one rank at most, and none in the steps between."""
    cfg, seen = config(ranks * each), set()
    for step in range(9, 10 * each * max(1, ranks - 1), 10):
        plan = recompute_plan(cfg, [""] * ranks, step)
        assert sorted(plan.owners) == list(range(ranks))
        seen |= {(rank, plan.index(owner)) for rank, owner in enumerate(plan.owners)}
    others = {(r, i) for r in range(ranks) for i in range(ranks * each) if ranks == 1 or i // each != r}
    assert seen == others
    assert [step for step in range(40) if is_due(cfg, step)] == [9, 19, 29, 39]


def test_successive_checks_pair_other_ranks() -> None:
    """So that a rank whose partner has the same defect meets another one at the next check."""
    plans = [recompute_plan(config(8), [""] * 4, step) for step in (9, 19, 29)]
    assert all(a.owners != b.owners and a.j != b.j for a, b in pairwise(plans))


def test_ranks_with_another_kind_of_gpu_are_never_compared() -> None:
    """They may round differently.  The only one of its kind recomputes its own micro-batches."""
    kinds = ["H100", "A100", "H100", "H100", "V100", "A100"]
    for step in range(9, 100, 10):
        plan = recompute_plan(config(12), kinds, step)
        assert sorted(plan.owners) == list(range(6))
        assert all(kinds[rank] == kinds[owner] for rank, owner in enumerate(plan.owners))
        assert [rank for rank, owner in enumerate(plan.owners) if rank == owner] == [4]


def test_recomputing_can_be_turned_off() -> None:
    """By 0, and without exact bits."""
    for cfg in (config(4, every=0), replace(config(4, every=1), exact="samples")):
        assert not any(is_due(cfg, step) for step in range(100))


@pytest.mark.parametrize(
    ("again", "suspects", "settled"),
    [
        ({0: A, 1: A, 2: A, 3: A}, (1,), True),  # rank 1 was wrong once
        ({0: A, 1: B, 2: A, 3: A}, (1,), True),  # and again
        ({0: B, 1: B, 2: B, 3: B}, (0,), True),  # the owner was
        ({2: A}, (1,), True),  # the others had no memory for it
        ({0: A, 1: B, 2: C, 3: C}, (0, 1), True),  # both
        ({0: A, 1: B, 2: A, 3: D, 4: A}, (1, 3), True),  # another rank is wrong, too
        ({0: A, 1: B, 2: A, 3: B}, (0, 1), False),
        ({0: A, 1: B, 2: C}, (0, 1), False),
        ({0: A, 1: A}, (1,), True),  # there are only two
        ({0: B, 1: B}, (0,), True),
        ({0: A, 1: B}, (0, 1), False),
        ({0: C, 1: D}, (0, 1), False),
        ({}, (0, 1), False),
    ],
)
def test_ranks_that_are_neither_of_two_settle_which_is_wrong(
    again: dict[int, bytes], suspects: tuple[int, ...], settled: bool
) -> None:
    """Rank 0 used A in its step, and rank 1 recomputed B."""
    assert judge(0, 1, A, B, again) == (suspects, settled)


def test_a_rank_that_checks_itself_is_wrong_if_it_gets_another_result() -> None:
    """There is nobody else."""
    assert judge(2, 2, A, B, {2: A}) == ((2,), True)
