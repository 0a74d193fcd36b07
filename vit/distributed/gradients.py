"""Gradient sums in a fixed order: a binary tree over the micro-batches of a global batch.

Floating-point addition is not associative.  Stock DDP adds in an order that depends on the number of ranks and on its
bucket layout, which differs between the first backward pass of a process and the later ones; on three or more ranks, a
resumed run therefore does not end with the same bits as an uninterrupted one.  Here the micro-batches of one rank are
added pairwise, then the ranks pairwise, whatever the buckets.  Prior art: EasyScale,
https://doi.org/10.1145/3581784.3607054.

For V micro-batches on W ranks, the tree is the same for one rank and for every W where V / W is a power of two: 8
micro-batches give the same bits on 1, 2, 4 and 8 ranks, 6 micro-batches on 1, 3 and 6.  On 2 ranks, 6 micro-batches are
added in another, equally fixed order: the bits are reproducible as long as the number of ranks does not change.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from vit.distributed.world import World

# Gets parameters and gradients of a micro-batch, all at once or some at a time, before they are added to others.
Observer = Callable[[list[Tensor], list[Tensor]], None]
_LAST = -1  # the number of a rank's last micro-batch, as an observer's key


class MicroBatchGradients:
    """Runs a model by micro-batches, and leaves the sum over all micro-batches of all ranks in `.grad`.

    for j in range(n):  # this rank's micro-batches, in order
        with gradients.micro_batch(j, n):
            loss(gradients.model(images[j])).backward()

    `bits` sums in the fixed order; `samples` uses DDP's own method: accumulation in `.grad`, then an all-reduce.  A
    single rank does without DDP, which would only copy its gradients to buckets; the sum has the same bits.

    `ready` is called each time that gradients of this rank are complete, just before they are summed over all ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        exact: Literal["bits", "samples"] = "bits",
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.world, self._ready = world, ready
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._flat: tuple[Tensor, list[Tensor]] | None = None  # all gradients, and its part for each parameter
        self._tree_sum = _TreeSum(world) if exact == "bits" else None
        self._ddp = self._wrap(model) if world.size > 1 else None
        self.model = self._ddp or model

    def _wrap(self, model: nn.Module) -> DistributedDataParallel:
        constants = [name for name, _ in model.named_buffers()]  # the same on all ranks: DDP need not broadcast them
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, constants)
        ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
        # In each hundredth step DDP would wait for the GPU, to measure times that nobody reads.
        ddp._set_ddp_runtime_logging_sample_rate(2**31 - 1)
        # The hook must not refer to the model: DDP keeps it, and a reference cycle through C++ is never collected.
        ddp.register_comm_hook(self._ready, self._tree_sum.hook if self._tree_sum else _all_reduce)
        return ddp

    @contextmanager
    def micro_batch(self, j: int, count: int) -> Iterator[None]:
        """Context for forward and backward of the j-th of `count` micro-batches; the last one sums over all ranks."""
        if j == 0:
            self.clear()
        last = j == count - 1
        with self._ddp.no_sync() if self._ddp is not None and not last else nullcontext():
            yield
        if self._tree_sum is None or (last and self._ddp is not None):
            return
        gradients: dict[Tensor, Tensor] = {p: p.grad for p in self.parameters if p.grad is not None}
        if last:
            self._tree_sum.add_earlier(list(gradients), list(gradients.values()))
        else:
            self._tree_sum.add(gradients, j)
            self._clear_gradients()

    @torch.no_grad()
    def add(self, gradients: list[Tensor], j: int, count: int) -> None:
        """Adds the gradients of the j-th of `count` micro-batches, one for each parameter.

        For passes without DDP, e.g. CUDA graphs.  The next pass may overwrite the gradients: what is needed later is
        copied, but those of the last one.  That one sums over all ranks, in the order of `micro_batch`: the same bits.
        """
        if j == 0:
            self.clear()
        tree, last = self._tree_sum, j == count - 1
        if tree is not None and not last:
            if j % 2 == 0:  # kept until its right neighbor comes
                copies = [torch.empty_like(p) for p in self.parameters]
                torch._foreach_copy_(copies, gradients)
                gradients = copies
            tree.add(dict(zip(self.parameters, gradients, strict=True)), j)
            return
        if tree is None or self.world.size > 1:
            gradients = self._add_to_flat(gradients, first=tree is not None or j == 0, last=last)
        else:
            tree.add_earlier(self.parameters, gradients)
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient

    def _add_to_flat(self, gradients: list[Tensor], first: bool, last: bool) -> list[Tensor]:
        """Copies or adds gradients to parts of one tensor, which `last` sums over all ranks; returns the parts."""
        if self._flat is None:
            sizes, ranks = [p.numel() for p in self.parameters], self.world.size
            flat = self.parameters[0].new_zeros(-(-sum(sizes) // ranks) * ranks)  # equal parts for `sum_over_ranks`
            parts = flat[: sum(sizes)].split(sizes)
            self._flat = flat, [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]
        flat, views = self._flat
        (torch._foreach_copy_ if first else torch._foreach_add_)(views, gradients)
        if last:
            self._ready()
        if last and self._tree_sum is not None:
            self._tree_sum.reduce(flat, views, self.parameters)
        elif last:
            dist.all_reduce(flat)
        return views

    def clear(self) -> None:
        """Frees the gradients of the last step."""
        self._clear_gradients()
        if self._tree_sum is not None:
            self._tree_sum.partial_sums.clear()

    def _clear_gradients(self) -> None:
        for p in self.parameters:
            p.grad = None

    @contextmanager
    def observed(self, j: int, count: int, observer: Observer) -> Iterator[None]:
        """In this context `observer` sees the gradient of the j-th of `count` micro-batches, just before it is added.

        On GPUs it is called in the stream, on CPUs in the thread, in which the gradient is added.  Only for `bits`.
        """
        assert self._tree_sum is not None, "DDP's own sum does not keep micro-batches apart"
        self._tree_sum.observers = {_LAST if j == count - 1 else j: observer}
        try:
            yield
        finally:
            self._tree_sum.observers = {}


class _TreeSum:
    """DDP's communication hook: adds earlier micro-batches, stored here, to the last one, which is in the bucket."""

    def __init__(self, world: World) -> None:
        self.world = world
        # Sums of 1, 2, 4, … consecutive micro-batches that have no right neighbor yet, like digits of a binary counter.
        self.partial_sums: list[dict[Tensor, Tensor]] = []
        self.observers: dict[int, Observer] = {}  # of micro-batches, by their number
        self._scratch = torch.empty(0)
        # Buckets are summed one after the other, in the same order on all ranks, while the backward pass continues: on
        # a separate stream, or in a thread on CPUs.
        self._stream = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "gradients") if self._stream is None and world.size > 1 else None

    @torch.no_grad()
    def add(self, gradients: dict[Tensor, Tensor], j: int) -> None:
        """Takes ownership of the gradients of this rank's j-th micro-batch, and adds neighbors of the same size."""
        if observe := self.observers.get(j):
            observe(list(gradients), list(gradients.values()))
        pairs = j + 1
        while pairs % 2 == 0:  # a carry: the left neighbor of the same size exists
            left = self.partial_sums.pop()
            torch._foreach_add_(list(left.values()), list(gradients.values()))
            gradients, pairs = left, pairs // 2
        self.partial_sums.append(gradients)

    def hook(self, ready: Callable[[], None], bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Returns a future of the bucket, summed over all micro-batches of all ranks."""
        ready()
        buffer, gradients, parameters = bucket.buffer(), bucket.gradients(), bucket.parameters()
        if self._stream is None:
            future: torch.futures.Future[Tensor] = torch.futures.Future()
            assert self._thread is not None, "a single rank has no DDP"
            self._thread.submit(self._reduce_into, future, buffer, gradients, parameters)
            return future
        device = self.world.device
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            self.reduce(buffer, gradients, parameters)
            buffer.record_stream(self._stream)
            future = torch.futures.Future(devices=[device])  # carries the stream's event to DDP
            future.set_result(buffer)
        return future

    def _reduce_into(
        self, future: torch.futures.Future[Tensor], buffer: Tensor, gradients: list[Tensor], parameters: list[Tensor]
    ) -> None:
        try:
            self.reduce(buffer, gradients, parameters)
        except Exception as error:  # a lost rank: DDP raises it when it waits for the bucket
            future.set_exception(error)  # type: ignore[arg-type]  # torch's annotation is wrong
        else:
            future.set_result(buffer)

    @torch.no_grad()
    def add_earlier(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Adds the sums of all earlier micro-batches of this rank, in place, to those of its last one."""
        if observe := self.observers.get(_LAST):
            observe(parameters, gradients)
        for left in reversed(self.partial_sums):
            torch._foreach_add_(gradients, [left[p] for p in parameters])

    @torch.no_grad()
    def reduce(self, buffer: Tensor, gradients: list[Tensor], parameters: list[Tensor]) -> None:
        """Adds the earlier micro-batches to the last one, whose gradients are parts of `buffer`, then all ranks."""
        self.add_earlier(parameters, gradients)
        if self._scratch.numel() < scratch_size(buffer, self.world.size):
            self._scratch = buffer.new_empty(scratch_size(buffer, self.world.size))
        sum_over_ranks(buffer, self.world.rank, self.world.size, self._scratch)


def _all_reduce(ready: Callable[[], None], bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's default hook, without the division by the number of ranks."""
    ready()
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


def sum_over_ranks(values: Tensor, rank: int, ranks: int, scratch: Tensor) -> None:
    """Replaces a flat tensor by its sum over all ranks, added pairwise in the order of ranks.

    Each rank receives one part of every rank's tensor, sums it and sends the sum to all ranks: the traffic of a ring
    all-reduce.  `scratch` has at least `scratch_size(values, ranks)` elements.
    """
    if values.device.type == "cpu":
        _sum_point_to_point(values, rank, ranks, scratch)
    else:
        _sum_with_collectives(values, ranks, scratch)


def _sum_point_to_point(values: Tensor, rank: int, ranks: int, scratch: Tensor) -> None:
    """Uses send and receive: gloo's collectives copy more, and took 25 % more CPU time."""
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
    """Receives from and sends to the given ranks, all at once; skips empty tensors."""
    works = [dist.irecv(tensor, rank) for tensor, rank in incoming if len(tensor)]
    works += [dist.isend(tensor, rank) for tensor, rank in outgoing if len(tensor)]
    for work in works:
        assert work is not None
        work.wait()


def _sum_with_collectives(values: Tensor, ranks: int, scratch: Tensor) -> None:
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


def scratch_size(values: Tensor, ranks: int) -> int:
    """Elements that `sum_over_ranks` needs: as many as the tensor has, or about twice that if padding is needed."""
    padded = -(-len(values) // ranks) * ranks
    return padded if padded == len(values) else 2 * padded


def pairwise_sum_(values: list[Tensor]) -> Tensor:
    """((v0 + v1) + (v2 + v3)) + …, in place of v0; an odd last term is carried to the next round."""
    while len(values) > 1:
        for left, right in zip(values[::2], values[1::2], strict=False):
            left.add_(right)
        values = values[::2]
    return values[0]
