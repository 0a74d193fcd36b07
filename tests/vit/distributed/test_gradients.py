"""The fixed-order sum: the same bits on any number of ranks, and in the order that the documentation says."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.ranks import run_ranks
from vit.distributed import gradients
from vit.distributed.gradients import MicroBatchGradients, pairwise_sum_, same_tree, scratch_size
from vit.distributed.world import World

MICRO_BATCHES, FEATURES = 8, 37  # an odd number of features: parts are padded, buckets are uneven


def wild_numbers(micro_batch: int, count: int) -> Tensor:
    """Numbers of very different sizes, whose sum depends on its order: (count,)."""
    random = torch.Generator().manual_seed(micro_batch)
    return torch.randn(count, generator=random) * 10 ** (6 * torch.rand(count, generator=random) - 3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.GELU(), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 3))


def join_group() -> World:
    torch.distributed.init_process_group("gloo")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return World(rank=rank, size=size, local_size=size, device=torch.device("cpu"))


def gradients_of_steps(micro_batches: int, steps: int, anew: int = 0, exact: Any = "bits") -> list[list[Tensor]]:
    """The gradients of each step on this rank; the weights change between steps, as in training.

    At step `anew`, all that is not the model is made again, as it is when a run is resumed.
    """
    world, model = join_group(), network()
    mine = world.my_micro_batches(micro_batches)
    out = []
    for step in range(steps):
        if step in {0, anew}:
            gradients_of = MicroBatchGradients(model, world, exact)
        for j, micro_batch in enumerate(mine):
            images = wild_numbers(1000 * step + micro_batch, 4 * FEATURES).view(4, FEATURES)
            with gradients_of.micro_batch(j, len(mine)):
                gradients_of.model(images).square().mean().backward()
        out.append([p.grad.clone() for p in model.parameters()])
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(1e-6 * p.grad)
    return out


def summed_by_hand(micro_batches: int, steps: int) -> list[list[Tensor]]:
    """The same without DDP: each micro-batch's gradients by themselves, then a binary tree."""
    model = network()
    out = []
    for step in range(steps):
        terms = []
        for micro_batch in range(micro_batches):
            images = wild_numbers(1000 * step + micro_batch, 4 * FEATURES).view(4, FEATURES)
            terms.append(torch.autograd.grad(model(images).square().mean(), list(model.parameters())))
        out.append([pairwise_sum_(list(grads)) for grads in zip(*terms, strict=True)])
        with torch.no_grad():
            for p, grad in zip(model.parameters(), out[-1], strict=True):
                p.sub_(1e-6 * grad)
    return out


def same(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> bool:
    """Whether two lists of gradients have the same bits."""
    return all(torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("micro_batches", "ranks"), [(8, 1), (8, 2), (8, 4), (8, 8), (6, 1), (6, 3), (6, 6), (12, 3)])
def test_gradients_have_the_same_bits_on_any_number_of_ranks(micro_batches: int, ranks: int) -> None:
    """Three steps, as DDP rebuilds its buckets after the first: still the tree over all micro-batches, bit for bit."""
    assert same_tree(micro_batches, ranks)
    expected = summed_by_hand(micro_batches, 3)
    assert all(same(found, expected) for found in run_ranks(ranks, gradients_of_steps, micro_batches, 3))


@pytest.mark.parametrize(("micro_batches", "ranks"), [(6, 2), (12, 4)])
def test_where_ranks_have_a_tree_of_their_own_its_bits_stay_too(micro_batches: int, ranks: int) -> None:
    """Three micro-batches each make another sum, up to rounding; a run resumed on the same ranks keeps its bits."""
    assert not same_tree(micro_batches, ranks)
    straight, shared = run_ranks(ranks, gradients_of_steps, micro_batches, 3), summed_by_hand(micro_batches, 3)
    assert all(same(again, straight[0]) for again in run_ranks(ranks, gradients_of_steps, micro_batches, 3, 2))
    assert not same(straight[0], shared)
    assert all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(straight[0][0], shared[0], strict=True))


def test_without_exact_bits_the_sum_is_still_the_sum() -> None:
    """DDP's own all-reduce, of all micro-batches, up to rounding; and the same on all ranks."""
    expected = summed_by_hand(8, 1)
    first, *others = run_ranks(4, gradients_of_steps, 8, 1, 0, "samples")
    assert all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(first[0], expected[0], strict=True))
    assert not same(first, expected)
    assert all(same(other, first) for other in others)


def test_the_order_of_the_sum_matters() -> None:
    """The numbers of these tests would show a sum in another order; a test with kind numbers would not."""
    values = [wild_numbers(micro_batch, 1000) for micro_batch in range(MICRO_BATCHES)]
    moved = [v.clone() for v in values[::-1][1:] + values[-1:]]
    in_order = pairwise_sum_([v.clone() for v in values])
    assert not torch.equal(in_order, torch.stack(values).sum(0))
    assert not torch.equal(in_order, pairwise_sum_(moved))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_pairwise_sum_is_a_sum(count: int) -> None:
    """Any number of terms, each once."""
    values = [torch.tensor([2.0**i]) for i in range(count)]
    assert pairwise_sum_(values).item() == 2**count - 1


def summed_over_ranks(count: int, way: str) -> Tensor:
    world = join_group()
    values = wild_numbers(world.rank, count)
    scratch = torch.empty(scratch_size(values, world.size))
    if way == "collectives":  # what GPUs have; gloo has them too
        gradients._sum_by_collectives(values, world.size, scratch)
    else:
        gradients.sum_over_ranks(values, world.rank, world.size, scratch)
    return values


@pytest.mark.parametrize("way", ["messages", "collectives"])
@pytest.mark.parametrize("count", [1, 3, 4, 1001])
def test_ranks_are_summed_pairwise_in_their_order(count: int, way: str) -> None:
    """Also where four ranks do not divide the tensor: all ranks get ((0 + 1) + (2 + 3)), to the bit."""
    expected = pairwise_sum_([wild_numbers(rank, count) for rank in range(4)])
    assert all(torch.equal(result, expected) for result in run_ranks(4, summed_over_ranks, count, way))
