"""Small results of all ranks are gathered with all their bits."""

import torch
import torch.distributed as dist
from torch import Tensor

from tests.helpers.ranks import run_ranks
from vit.distributed.gather import gather_on_host
from vit.distributed.world import World


def tensors_of(rank: int, sizes: tuple[int, int]) -> list[Tensor]:
    """Any bits, such as those of NaN with a payload, as floats, and integers of 64 bits."""
    generator = torch.Generator().manual_seed(rank)
    words = torch.randint(-(2**31), 2**31, (sizes[0],), generator=generator, dtype=torch.int32)
    return [words.view(torch.float32), torch.randint(-(2**63), 2**63 - 1, (sizes[1],), generator=generator)]


def gathered_bits(sizes: tuple[int, int]) -> list[list[list[int]]]:
    dist.init_process_group("gloo")
    world = World(dist.get_rank(), dist.get_world_size(), 1, torch.device("cpu"))
    floats, integers = gather_on_host(world, tensors_of(world.rank, sizes))
    return [floats.view(torch.int32).tolist(), integers.tolist()]


def test_all_bits_of_all_ranks_arrive_whatever_the_sizes() -> None:
    """Of one rank and of several, with odd sizes and none."""
    for ranks, sizes in ((1, (3, 2)), (2, (5, 3)), (4, (7, 1)), (2, (0, 3)), (2, (3, 0))):
        expected = [tensors_of(rank, sizes) for rank in range(ranks)]
        bits = [[f.view(torch.int32).tolist() for f, _ in expected], [i.tolist() for _, i in expected]]
        assert run_ranks(ranks, gathered_bits, sizes) == [bits] * ranks
