"""The sum of gradients in one fixed order: a binary tree over the micro-batches of a batch.

Floating-point addition is not associative, and stock DDP adds in an order that depends on the number of ranks and on
how it lays out its buckets, which differs between the first backward pass of a process and the later ones: on three
ranks or more, a resumed run does not end with the bits of the run that was left alone.  Here the micro-batches of one
rank are added pairwise, then the ranks pairwise, whatever the buckets.  Prior art: EasyScale,
https://doi.org/10.1145/3581784.3607054.

Of V micro-batches on W ranks, the tree is the same one wherever V / W is a power of two, and on one rank: 8
micro-batches have the same bits on 1, 2, 4 and 8 ranks, 6 micro-batches on 1, 3 and 6.  On 2 ranks, 6 micro-batches are
added in another order, which is as fixed: the bits stay the same as long as the number of ranks does.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from vit.distributed.world import World


class MicroBatchGradients:
    """Runs a model micro-batch by micro-batch under DDP; leaves the sum over all of them, of all ranks, in `.grad`.

    for j in range(n):  # this rank's micro-batches, in order
        with gradients.micro-batch(j, n):
            loss(gradients.model(images[j])).backward()

    `bits` sums in the fixed order, `samples` by DDP's own means: added up in `.grad`, then an all-reduce.
    """

    def __init__(self, model: nn.Module, world: World, exact: Literal["bits", "samples"] = "bits") -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        constants = [name for name, _ in model.named_buffers()]  # the same everywhere: DDP need not send them
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, constants)
        self.model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        # The hook must not know the model: DDP keeps the hook, and a circle through C++ is never collected.
        self._sum = _BucketSum(world) if exact == "bits" else None
        self.model.register_comm_hook(None, self._sum.hook if self._sum else _all_reduce)

    @contextmanager
    def micro_batch(self, j: int, count: int) -> Iterator[None]:
        """Forward and backward of the j-th of this rank's `count` micro-batches; the last one sums over the ranks."""
        if j == 0:
            self._clear()
        last = j == count - 1
        with nullcontext() if last else self.model.no_sync():
            yield
        if self._sum is not None and not last:
            self._sum.keep({p: p.grad for p in self.parameters if p.grad is not None}, j)
            self._clear(waiting=False)

    def _clear(self, waiting: bool = True) -> None:
        for p in self.parameters:
            p.grad = None
        if waiting and self._sum is not None:
            self._sum.waiting.clear()


class _BucketSum:
    """DDP's communication hook: the last micro-batch's gradients lie in the bucket, those of the others wait here."""

    def __init__(self, world: World) -> None:
        self.world = world
        # Sums of 1, 2, 4, … consecutive micro-batches that wait for a right neighbor, like the digits of a binary
        # counter.
        self.waiting: list[dict[Tensor, Tensor]] = []
        self._scratch = torch.empty(0)
        # Buckets are summed one after the other, in the same order on all ranks, while backward goes on: on a stream
        # of their own, or where there are no streams in a thread.
        self._stream = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "gradients") if self._stream is None and world.size > 1 else None

    @torch.no_grad()
    def keep(self, gradients: dict[Tensor, Tensor], j: int) -> None:
        """Takes over the gradients of this rank's j-th micro-batch, and adds what has its neighbor."""
        pairs = j + 1
        while pairs % 2 == 0:  # a carry: the left neighbor of the same size is there
            left = self.waiting.pop()
            torch._foreach_add_(list(left.values()), list(gradients.values()))
            gradients, pairs = left, pairs // 2
        self.waiting.append(gradients)

    def hook(self, _: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """The future of the bucket, summed over all micro-batches of all ranks."""
        buffer, gradients, parameters = bucket.buffer(), bucket.gradients(), bucket.parameters()
        if self._stream is None:
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            if self._thread is None:
                self._complete(done, buffer, gradients, parameters)
            else:
                self._thread.submit(self._complete, done, buffer, gradients, parameters)
            return done
        device = self.world.device
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            self._reduce(buffer, gradients, parameters)
            buffer.record_stream(self._stream)
            done = torch.futures.Future(devices=[device])  # it carries the stream's event to DDP
            done.set_result(buffer)
        return done

    def _complete(
        self, done: torch.futures.Future[Tensor], buffer: Tensor, gradients: list[Tensor], parameters: list[Tensor]
    ) -> None:
        try:
            self._reduce(buffer, gradients, parameters)
        except Exception as error:  # a lost rank: DDP raises it where it waits for the bucket
            done.set_exception(error)  # type: ignore[arg-type]  # torch's annotation is wrong
        else:
            done.set_result(buffer)

    @torch.no_grad()
    def _reduce(self, buffer: Tensor, gradients: list[Tensor], parameters: list[Tensor]) -> None:
        for left in reversed(self.waiting):
            torch._foreach_add_(gradients, [left[p] for p in parameters])
        if self.world.size > 1:
            if self._scratch.numel() < scratch_size(buffer, self.world.size):
                self._scratch = buffer.new_empty(scratch_size(buffer, self.world.size))
            sum_over_ranks(buffer, self.world.rank, self.world.size, self._scratch)


def _all_reduce(_: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """What DDP does by itself, without its division by the number of ranks."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


def sum_over_ranks(values: Tensor, rank: int, ranks: int, scratch: Tensor) -> None:
    """Replaces a flat tensor by its sum over all ranks, added pairwise in the order of ranks.

    Each rank receives one part of everybody's tensor, sums it and sends the sum to all: the bytes of a ring all-reduce.
    `scratch` has at least `scratch_size(values, ranks)` elements.
    """
    if values.device.type == "cpu":
        _sum_from_rank_to_rank(values, rank, ranks, scratch)
    else:
        _sum_by_collectives(values, ranks, scratch)


def _sum_from_rank_to_rank(values: Tensor, rank: int, ranks: int, scratch: Tensor) -> None:
    """By single messages: gloo's collectives copy more, and took a quarter more of the processors."""
    part = -(-len(values) // ranks)
    parts = [values[r * part : (r + 1) * part] for r in range(ranks)]  # the last ones may be shorter, or empty
    mine, others = parts[rank], [r for r in range(ranks) if r != rank]
    received = [mine if r == rank else scratch[r * part :][: len(mine)] for r in range(ranks)]
    _exchange([(received[r], r) for r in others], [(parts[r], r) for r in others])
    total = pairwise_sum_(received)
    if total is not mine:
        mine.copy_(total)
    _exchange([(parts[r], r) for r in others], [(mine, r) for r in others])


def _exchange(incoming: list[tuple[Tensor, int]], outgoing: list[tuple[Tensor, int]]) -> None:
    """Receives and sends what is not empty, from and to ranks, all at once."""
    works = [dist.irecv(tensor, rank) for tensor, rank in incoming if len(tensor)]
    works += [dist.isend(tensor, rank) for tensor, rank in outgoing if len(tensor)]
    for work in works:
        assert work is not None
        work.wait()


def _sum_by_collectives(values: Tensor, ranks: int, scratch: Tensor) -> None:
    part = -(-len(values) // ranks)
    received, padded = scratch[: part * ranks], values
    if part * ranks > len(values):
        padded = scratch[part * ranks : 2 * part * ranks]
        padded[: len(values)].copy_(values)
    dist.all_to_all_single(received, padded)
    mine = pairwise_sum_(list(received.view(ranks, part).unbind()))
    dist.all_gather_into_tensor(padded, mine)
    if padded is not values:
        values.copy_(padded[: len(values)])


def same_tree(micro_batches: int, ranks: int) -> bool:
    """Whether this many ranks add the micro-batches in the one order that most numbers of ranks share."""
    mine = micro_batches // ranks
    return ranks == 1 or mine & (mine - 1) == 0


def scratch_size(values: Tensor, ranks: int) -> int:
    """Elements that `sum_over_ranks` needs: as many as the tensor has, or twice that if `ranks` does not divide it."""
    whole = -(-len(values) // ranks) * ranks
    return whole if whole == len(values) else 2 * whole


def pairwise_sum_(values: list[Tensor]) -> Tensor:
    """((v0 + v1) + (v2 + v3)) + … in place of v0; an odd one out waits for the next round."""
    while len(values) > 1:
        for left, right in zip(values[::2], values[1::2], strict=False):
            left.add_(right)
        values = values[::2]
    return values[0]
