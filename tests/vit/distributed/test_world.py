"""Ranks, devices and their share of the work."""

import os

import pytest
import torch

from tests.helpers.ranks import run_ranks
from vit.config.schema import Config
from vit.distributed.agreement import Agreement
from vit.distributed.world import World, join, keep_bits, pick_device


def world(rank: int, size: int) -> World:
    return World(rank=rank, size=size, local_size=size, device=torch.device("cpu"))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_every_micro_batch_has_one_rank(size: int) -> None:
    """In order, without gaps, the same number for each rank."""
    shares = [world(rank, size).my_micro_batches(12) for rank in range(size)]
    assert [micro_batch for share in shares for micro_batch in share] == list(range(12))
    assert {len(share) for share in shares} == {12 // size}


def test_ranks_that_do_not_divide_the_micro_batches_are_refused_with_those_that_do() -> None:
    """Before a process group is formed, on every rank."""
    with pytest.raises(ValueError, match=r"3 ranks do not divide the 4 micro-batches .* use 1, 2, 4 ranks or another"):
        run_ranks(3, joined, Config(device="cpu"))


def joined(cfg: Config) -> tuple[int, int, int]:
    with join(cfg) as here:
        return here.rank, here.size, torch.get_num_threads()


def test_ranks_join_with_one_thread_each() -> None:
    """On a CPU the number of threads would change the order of sums."""
    assert run_ranks(4, joined, Config(device="cpu")) == [(rank, 4, 1) for rank in range(4)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_says_so() -> None:
    """And what else to ask for; `auto` takes the CPU."""
    with pytest.raises(ValueError, match=r"no GPU is visible here .* use device: cpu"):
        pick_device("cuda", 0)
    assert pick_device("auto", 0) == torch.device("cpu")


def exact_flags() -> dict[str, object]:
    keep_bits()
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn picks by time": torch.backends.cudnn.benchmark,
        "cudnn's attention": torch.backends.cuda.cudnn_sdp_enabled(),
        "cublas": os.environ["CUBLAS_WORKSPACE_CONFIG"],
        "nvls": os.environ["NCCL_NVLS_ENABLE"],
        "compiler picks by time": not torch._inductor.config.deterministic,
    }


def test_a_gpu_is_told_to_compute_the_same_bits_each_time() -> None:
    """All that torch's notes on reproducibility ask for, cuBLAS and NCCL too; nothing that only costs time."""
    (flags,) = run_ranks(1, exact_flags)
    assert flags == {
        "deterministic": True,
        "fills": False,
        "cudnn picks by time": False,
        "cudnn's attention": False,
        "cublas": ":4096:8",
        "nvls": "0",
        "compiler picks by time": False,
    }


def agreements(asked: list[tuple[int, int]], looks: int) -> list[tuple[bool, bool]]:
    """The answers to `looks` looks, where rank r asks for a save in look i for each (r, i) of `asked`."""
    with join(Config(device="cpu")) as here:
        agreement = Agreement(here)
        out = [agreement.look(save=(here.rank, i) in asked)[:2] for i in range(looks)]
        agreement.close()
        return out


def test_all_ranks_save_at_the_same_step_and_once() -> None:
    """Rank 2 asks until it is heard, one step later; the other ranks follow."""
    save, nothing = (False, True), (False, False)
    expected = [nothing, nothing, save, nothing, nothing, nothing, save, nothing]
    assert run_ranks(4, agreements, [(2, 1), (2, 2), (2, 5)], 8) == [expected] * 4
