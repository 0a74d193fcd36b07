"""The sum of gradients in one fixed order: a binary tree over the shards of a batch.

Floating-point addition is not associative, and stock DDP adds in an order that depends on the number of ranks and on
how it lays out its buckets, which differs between the first backward pass of a process and the later ones: on three
ranks or more, a resumed run does not end with the bits of the run that was left alone.  Here the shards of one rank are
added pairwise, then the ranks pairwise, whatever the buckets: where the numbers of shards and ranks are powers of two
it is the same tree for every number of ranks.  Prior art: EasyScale, https://doi.org/10.1145/3581784.3607054.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from vit.world import World


class ShardedGradients:
    """Runs a model shard by shard under DDP, and leaves the sum over all shards of all ranks in `.grad`.

    for j in range(n):  # this rank's shards, in order
        with gradients.shard(j, n):
            loss(gradients.model(images[j])).backward()
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        constants = [name for name, _ in model.named_buffers()]  # the same everywhere: DDP need not send them
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, constants)
        self.model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        # The hook must not know the model: DDP keeps the hook, and a circle through C++ is never collected.
        self._sum = _BucketSum(world)
        self.model.register_comm_hook(None, self._sum.hook)

    @contextmanager
    def shard(self, j: int, count: int) -> Iterator[None]:
        """Forward and backward of the j-th of this rank's `count` shards; the last one sums over the ranks."""
        if j == 0:
            self._sum.waiting.clear()
            for p in self.parameters:
                p.grad = None
        last = j == count - 1
        with nullcontext() if last else self.model.no_sync():
            yield
        if not last:
            self._keep(j)

    @torch.no_grad()
    def _keep(self, j: int) -> None:
        total: dict[Tensor, Tensor] = {p: p.grad for p in self.parameters if p.grad is not None}
        for p in self.parameters:
            p.grad = None
        pairs = j + 1
        while pairs % 2 == 0:  # a carry: the left neighbour of the same size is there
            left = self._sum.waiting.pop()
            torch._foreach_add_(list(left.values()), list(total.values()))
            total, pairs = left, pairs // 2
        self._sum.waiting.append(total)


class _BucketSum:
    """DDP's communication hook: the last shard's gradients lie in the bucket, those of the others wait here."""

    def __init__(self, world: World) -> None:
        self.world = world
        # Sums of 1, 2, 4, … consecutive shards that wait for a right neighbour, like the digits of a binary counter.
        self.waiting: list[dict[Tensor, Tensor]] = []
        self._stream = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None

    def hook(self, _: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """The future of the bucket, summed over all shards of all ranks."""
        device = self.world.device
        if self._stream is None:
            self._reduce(bucket)
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done
        # A stream of its own lets backward go on; the future carries the stream's event to DDP.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            self._reduce(bucket)
            bucket.buffer().record_stream(self._stream)
            done = torch.futures.Future(devices=[device])
            done.set_result(bucket.buffer())
        return done

    def _reduce(self, bucket: GradBucket) -> None:
        for left in reversed(self.waiting):
            torch._foreach_add_(bucket.gradients(), [left[p] for p in bucket.parameters()])
        if self.world.size > 1:
            sum_over_ranks(bucket.buffer(), self.world.size)


def sum_over_ranks(values: Tensor, ranks: int) -> None:
    """Replaces a flat tensor by its sum over all ranks, added pairwise in the order of ranks.

    Each rank receives one part of everybody's tensor, sums it and sends the sum to all: the bytes of a ring all-reduce.
    """
    part = -(-values.numel() // ranks)
    padded = (
        values if part * ranks == values.numel() else torch.nn.functional.pad(values, (0, part * ranks - len(values)))
    )
    received = torch.empty_like(padded)
    dist.all_to_all_single(received, padded)
    mine = pairwise_sum(list(received.view(ranks, part).unbind()))
    dist.all_gather_into_tensor(received, mine)
    values.copy_(received[: values.numel()])


def pairwise_sum(values: list[Tensor]) -> Tensor:
    """((v0 + v1) + (v2 + v3)) + …; an odd one out waits for the next round."""
    while len(values) > 1:
        values = [sum(values[i : i + 2][1:], start=values[i]) for i in range(0, len(values), 2)]
    return values[0]
