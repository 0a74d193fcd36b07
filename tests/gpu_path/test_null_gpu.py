"""The null GPU behaves as a GPU does where the tests on it rely on that."""

import ctypes
import os
from pathlib import Path

import torch
import torch.distributed as dist

from tests.helpers import null_gpu_counts
from tests.helpers.null_gpu_counts import Counts
from tests.helpers.null_gpu_ranks import NullGpu

GIB = 2**30
INITIALIZATION_ERROR = 3  # CUDA's number


def multiply_and_read() -> tuple[Counts, float, list[int]]:
    null_gpu_counts.watch()
    a = torch.ones(8, 8, device="cuda")
    null_gpu_counts.reset()
    product = (a @ a)[0, 0].item()
    known = torch.tensor([3, 4, 5]).cuda().tolist()
    return null_gpu_counts.read(), product, known


def test_launches_copies_and_the_line_that_waits_for_the_gpu_are_recorded(null_gpu: NullGpu) -> None:
    """What kernels compute is zero; what was only copied comes back."""
    ((counts, product, known),) = null_gpu.run(multiply_and_read)
    ((stream, kernel),) = counts.kernels
    assert counts.launches == 1 and stream == "stream 0"
    assert kernel.startswith("cublas") and kernel.endswith("8x8x8")
    assert (product, known) == (0, [3, 4, 5])
    assert counts.events["copy to the device pageable"] == 1
    lines = Path(__file__).read_text().splitlines()
    first = next(i for i, line in enumerate(lines, 1) if ".item()" in line)
    place = "tests/gpu_path/test_null_gpu.py:{} multiply_and_read"
    assert {where.caller for where in counts.synchronizations} == {place.format(first), place.format(first + 1)}


def allocate(gib: list[int]) -> list[str]:
    outcomes = []
    for size in gib:
        try:
            torch.empty(size * GIB, dtype=torch.uint8, device="cuda")
            outcomes.append("allocated")
        except torch.OutOfMemoryError as error:
            outcomes.append(str(error).partition(".")[0])
    return outcomes


def test_a_card_has_its_own_amount_of_memory(null_gpu: NullGpu) -> None:
    """More is refused with torch's own error.  Only the addresses are taken, not this machine's memory."""
    assert null_gpu.run(allocate, [30, 60], memory_gb=40, card="a100") == [["allocated", "CUDA out of memory"]]
    assert null_gpu.run(allocate, [30, 60], memory_gb=80) == [["allocated", "allocated"]]


def use_in_fork(first: bool) -> int:
    if first:
        torch.ones(1, device="cuda")
    child = os.fork()
    if child == 0:
        # torch itself refuses too, if it knows that CUDA was initialized; this asks the driver.
        os._exit(ctypes.CDLL(os.environ["LD_PRELOAD"]).cudaSetDevice(0))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_cuda_cannot_be_used_in_the_fork_of_a_process_that_has_used_it(null_gpu: NullGpu) -> None:
    """As with NVIDIA's driver; else these tests could not show that the fork server leaves the GPU alone."""
    assert null_gpu.run(use_in_fork, False) == [0]
    assert null_gpu.run(use_in_fork, True) == [INITIALIZATION_ERROR]


def lose_the_other_rank() -> str:
    dist.init_process_group("gloo")
    dist.barrier()
    if dist.get_rank() == 1:
        dist.destroy_process_group()
        return ""
    try:
        dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        return str(error)
    return "the sum of both"


def test_a_lost_rank_is_an_error_of_the_others(null_gpu: NullGpu) -> None:
    """The preloaded library must leave torch's C++ exceptions, here those of gloo's thread, to torch's C++ runtime."""
    error, _ = null_gpu.run(lose_the_other_rank, ranks=2)
    assert "Connection" in error
