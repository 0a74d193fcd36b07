"""Gradient sums in a fixed order: the same bits on any number of ranks."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.ranks import run_ranks
from vit.config.batches import has_canonical_order
from vit.distributed import gradients
from vit.distributed.gradients import MicroBatchGradients, pairwise_sum_, scratch_size
from vit.distributed.world import World

MICRO_BATCHES, FEATURES = 8, 37  # an odd number of features: parts need padding, and buckets have different sizes


def ill_conditioned(seed: int, count: int) -> Tensor:
    """Numbers of very different magnitudes, whose sum depends on the order: (count,)."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=random) * 10 ** (6 * torch.rand(count, generator=random) - 3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.GELU(), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 3))


def join_group() -> World:
    torch.distributed.init_process_group("gloo")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return World(rank=rank, size=size, local_size=size, device=torch.device("cpu"))


def gradients_of_steps(micro_batches: int, steps: int, resume_at: int = 0, exact: Any = "bits") -> list[list[Tensor]]:
    """The gradients of each step on this rank, with updates of the weights in between.

    At step `resume_at`, everything but the model is created anew, as when a run is resumed.
    """
    world, model = join_group(), network()
    mine = world.my_micro_batches(micro_batches)
    out = []
    for step in range(steps):
        if step in {0, resume_at}:
            micro_batch_gradients = MicroBatchGradients(model, world, exact)
        for j, micro_batch in enumerate(mine):
            images = ill_conditioned(1000 * step + micro_batch, 4 * FEATURES).view(4, FEATURES)
            with micro_batch_gradients.micro_batch(j, len(mine)):
                micro_batch_gradients.model(images).square().mean().backward()
        out.append([p.grad.clone() for p in model.parameters()])
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(1e-6 * p.grad)
    return out


def gradients_added(micro_batches: int, exact: Any) -> list[Tensor]:
    """The gradients of a step on this rank, whose micro-batches each overwrite those of the one before."""
    world, model = join_group(), network()
    micro_batch_gradients = MicroBatchGradients(model, world, exact)
    mine = world.my_micro_batches(micro_batches)
    static = [torch.empty_like(p) for p in model.parameters()]
    for _ in range(2):  # nothing of the first step is left in the second
        for j, micro_batch in enumerate(mine):
            images = ill_conditioned(micro_batch, 4 * FEATURES).view(4, FEATURES)
            torch._foreach_copy_(static, torch.autograd.grad(model(images).square().mean(), list(model.parameters())))
            micro_batch_gradients.add(static, j, len(mine))
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def reference_gradients(micro_batches: int, steps: int) -> list[list[Tensor]]:
    """The same without DDP: the gradients of each micro-batch alone, added in a binary tree."""
    model = network()
    out = []
    for step in range(steps):
        terms = []
        for micro_batch in range(micro_batches):
            images = ill_conditioned(1000 * step + micro_batch, 4 * FEATURES).view(4, FEATURES)
            terms.append(torch.autograd.grad(model(images).square().mean(), list(model.parameters())))
        out.append([pairwise_sum_(list(grads)) for grads in zip(*terms, strict=True)])
        with torch.no_grad():
            for p, grad in zip(model.parameters(), out[-1], strict=True):
                p.sub_(1e-6 * grad)
    return out


def same_bits(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return all(torch.equal(g, h) for x, y in zip(a, b, strict=True) for g, h in zip(x, y, strict=True))


@pytest.mark.parametrize(("micro_batches", "ranks"), [(8, 1), (8, 2), (8, 4), (8, 8), (6, 1), (6, 3), (6, 6), (12, 3)])
def test_gradients_have_the_same_bits_on_any_number_of_ranks(micro_batches: int, ranks: int) -> None:
    """For three steps, as DDP rebuilds its buckets after the first one."""
    assert has_canonical_order(micro_batches, ranks)
    expected = reference_gradients(micro_batches, 3)
    assert all(same_bits(found, expected) for found in run_ranks(ranks, gradients_of_steps, micro_batches, 3))


@pytest.mark.parametrize(("micro_batches", "ranks"), [(8, 1), (8, 4), (6, 3), (4, 4), (12, 4)])
def test_gradients_that_are_computed_outside_of_ddp_have_the_same_bits(micro_batches: int, ranks: int) -> None:
    """As those of CUDA graphs, which write each micro-batch's to the same memory."""
    expected = run_ranks(ranks, gradients_of_steps, micro_batches, 1)[0]
    assert all(same_bits([found], expected) for found in run_ranks(ranks, gradients_added, micro_batches, "bits"))


def test_gradients_outside_of_ddp_are_added_one_after_the_other_if_only_samples_are_exact() -> None:
    """In the order of the micro-batches of one rank, as DDP accumulates them."""
    expected = run_ranks(1, gradients_of_steps, 5, 1, 0, "samples")[0]
    assert same_bits(run_ranks(1, gradients_added, 5, "samples"), expected)


@pytest.mark.parametrize(("micro_batches", "ranks"), [(6, 2), (12, 4)])
def test_gradients_in_another_order_are_still_reproducible(micro_batches: int, ranks: int) -> None:
    """With three micro-batches per rank, the sum differs by rounding, but a resumed run has the same bits."""
    assert not has_canonical_order(micro_batches, ranks)
    expected = run_ranks(ranks, gradients_of_steps, micro_batches, 3)[0]
    assert all(same_bits(resumed, expected) for resumed in run_ranks(ranks, gradients_of_steps, micro_batches, 3, 2))
    canonical = reference_gradients(micro_batches, 3)
    assert not same_bits(expected, canonical)
    assert all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(expected[0], canonical[0], strict=True))


def uses_ddp(exact: Any) -> bool:
    """Also checks that the gradients of a single rank are autograd's own tensors, not parts of a bucket."""
    world, model = join_group(), network()
    micro_batch_gradients = MicroBatchGradients(model, world, exact)
    with micro_batch_gradients.micro_batch(0, 1):
        micro_batch_gradients.model(torch.ones(4, FEATURES)).sum().backward()
    storages = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
    own = len(storages) == len(list(model.parameters()))
    assert own == (micro_batch_gradients.model is model)
    return not own


@pytest.mark.parametrize("exact", ["bits", "samples"])
def test_a_single_rank_does_not_copy_its_gradients_to_the_buckets_of_ddp(exact: str) -> None:
    """Its sums have the bits of several ranks all the same, as the test above shows."""
    assert run_ranks(1, uses_ddp, exact) == [False]
    assert run_ranks(2, uses_ddp, exact) == [True, True]


def test_a_single_rank_sums_several_micro_batches_without_exact_bits() -> None:
    """Autograd adds them one after the other."""
    (found,) = run_ranks(1, gradients_of_steps, 8, 1, 0, "samples")
    expected = reference_gradients(8, 1)
    assert all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(found[0], expected[0], strict=True))


def test_without_exact_bits_gradients_are_summed_by_ddp() -> None:
    """Equal to the reference up to rounding, and the same on all ranks."""
    expected = reference_gradients(8, 1)
    first, *others = run_ranks(4, gradients_of_steps, 8, 1, 0, "samples")
    assert all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(first[0], expected[0], strict=True))
    assert not same_bits(first, expected)
    assert all(same_bits(other, first) for other in others)


def test_the_test_data_are_sensitive_to_the_order_of_sums() -> None:
    """Otherwise the tests above would not detect a wrong order."""
    values = [ill_conditioned(micro_batch, 1000) for micro_batch in range(MICRO_BATCHES)]
    reordered = [v.clone() for v in values[::-1][1:] + values[-1:]]
    in_order = pairwise_sum_([v.clone() for v in values])
    assert not torch.equal(in_order, torch.stack(values).sum(0))
    assert not torch.equal(in_order, pairwise_sum_(reordered))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_pairwise_sum_contains_each_term_once(count: int) -> None:
    values = [torch.tensor([2.0**i]) for i in range(count)]
    assert pairwise_sum_(values).item() == 2**count - 1


def sum_of_ranks(count: int, method: str) -> Tensor:
    world = join_group()
    values = ill_conditioned(world.rank, count)
    scratch = torch.empty(scratch_size(values, world.size))
    if method == "collectives":  # used on GPUs; gloo supports them too
        gradients._sum_with_collectives(values, world.size, scratch)
    else:
        gradients.sum_over_ranks(values, world.rank, world.size, scratch)
    return values


@pytest.mark.parametrize("method", ["point to point", "collectives"])
@pytest.mark.parametrize("count", [1, 3, 4, 1001])
def test_ranks_are_summed_pairwise_in_order(count: int, method: str) -> None:
    """All ranks get ((0 + 1) + (2 + 3)) to the bit, also if four ranks do not divide the tensor."""
    expected = pairwise_sum_([ill_conditioned(rank, count) for rank in range(4)])
    assert all(torch.equal(result, expected) for result in run_ranks(4, sum_of_ranks, count, method))
