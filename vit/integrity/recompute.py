"""Each rank recomputes a micro-batch of another rank now and then, from its samples to its gradient.

All ranks have the same weights, also after one of them contributed a wrong gradient to the sum: comparing weights does
not find it.  In a step in which this is due, each rank records checksums of one of its micro-batches as they are used:
of the decoded pixels, the augmented images, the targets, and the gradient just before it is added to others.  Another
rank computes the same micro-batch from the file on, and all ranks compare.  They do so before the weights are updated,
so that no wrong gradient that is found gets into a checkpoint.

If two ranks disagree, all ranks compute the micro-batch once more: those that are neither of the two settle it.  If
there are only two, the one that does not get its own result again is wrong.  If both do, see `open_disputes.py`.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from vit.config.run_schedule import RunSchedule
from vit.distributed.gradients import MicroBatchGradients
from vit.distributed.world import World
from vit.integrity.device_kind import gather_kinds
from vit.integrity.finding import report
from vit.integrity.micro_batch_sums import GradientSums, first_difference
from vit.integrity.open_disputes import OpenDisputes
from vit.integrity.places import gather_places
from vit.integrity.recompute_plan import RecomputePlan, is_due, recompute_plan
from vit.run.folder import RunFolder
from vit.run.progress import show

# Computes a micro-batch, given by a step and its number in the global batch: its `MicroBatchSums.on_host`.
Recompute = Callable[[int, int], Tensor]
# The same of this rank's j-th micro-batch as it was used in this step, given j and the checksums of its gradient.
Used = Callable[[int, Tensor], Tensor]

EVENT, SKIPPED_EVENT = "recomputed", "not recomputed"  # in the ledger


@dataclass(frozen=True)
class Verdict:
    """Who computed wrong values of one micro-batch."""

    owner: int
    suspects: tuple[int, ...]
    settled: bool
    what: str  # differs first
    names: tuple[str, ...]  # of the samples or parameters that differ


class Recomputation:
    """Compares micro-batches with recomputed ones in the steps in which it is due; does nothing in other steps.

    `parameters` are the names of the trained parameters.
    """

    def __init__(
        self,
        run: RunFolder,
        world: World,
        schedule: RunSchedule,
        gradients: MicroBatchGradients,
        parameters: Sequence[str],
        recompute: Recompute,
    ) -> None:
        self.run, self.world, self.schedule = run, world, schedule
        self.gradients, self.parameters, self.recompute = gradients, parameters, recompute
        self._kinds: list[str] = []  # of all ranks, once they are known
        self._disputes: OpenDisputes | None = None

    def due(self, step: int) -> bool:
        """Whether micro-batches of this step are recomputed."""
        return is_due(self.schedule.config(step), step)

    @contextmanager
    def compared(self, step: int, used: Used) -> Iterator[None]:
        """Context for forward and backward of a step.  Collective.  Raises WrongArithmeticError on all ranks."""
        if not self.due(step):
            yield
            return
        start, plan = time.perf_counter(), self.plan(step)
        # Before the step's own passes: they then find the memory as in other steps, and nothing is overwritten.
        mine = self._recomputed(step, plan.index(plan.owners[self.world.rank]))
        seconds = time.perf_counter() - start
        sums = GradientSums(self.gradients.parameters)
        with self.gradients.observed(plan.j, plan.count, sums.add):
            yield
        start = time.perf_counter()
        self._compare(step, plan, used(plan.j, sums.sums()), mine)
        if self.world.rank == 0:
            self.run.note(EVENT, step=step + 1, seconds=round(seconds + time.perf_counter() - start, 3))

    def plan(self, step: int) -> RecomputePlan:
        """What each rank recomputes in a step that is due.  The first call is collective."""
        if self._disputes is None:
            self._kinds = gather_kinds(self.world)
            self._disputes = OpenDisputes(self.run, self.world, gather_places(self.world))
        return recompute_plan(self.schedule.config(step), self._kinds, step)

    def _recomputed(self, step: int, index: int) -> Tensor | None:
        """The sums of a recomputed micro-batch; None if the memory of the GPU is too small."""
        try:
            return self.recompute(step, index)
        except torch.OutOfMemoryError as error:
            problem = str(error).partition("\n")[0]
        show(f"micro-batch {index} of step {step + 1:,} was not recomputed for comparison: {problem}", lasting=True)
        self.run.note(SKIPPED_EVENT, step=step + 1, rank=self.world.rank, error=problem)
        return None

    def _compare(self, step: int, plan: RecomputePlan, used: Tensor, mine: Tensor | None) -> None:
        every = self._gather(torch.cat([used, self._padded(mine, used)]))
        first = [row[: len(used)] for row in every]
        checks = [row[len(used) :] for row in every]
        disputes = {
            rank: owner
            for rank, owner in enumerate(plan.owners)
            if checks[rank][0] and not checks[rank][1:].equal(first[owner])
        }
        verdicts = []
        for rank, owner in disputes.items():
            index = plan.index(owner)
            same = self._kinds[self.world.rank] == self._kinds[owner]
            again = self._gather(self._padded(self._recomputed(step, index) if same else None, used))
            votes = {r: row[1:] for r, row in enumerate(again) if row[0]}
            verdicts.append(self._judge(owner, rank, first[owner], checks[rank][1:], votes))
        assert self._disputes is not None, "made with the plan"
        if verdicts:
            self._report(step, plan, [self._known_before(self._disputes, verdict) for verdict in verdicts])
        self._disputes.agreed(step + 1)

    def _judge(self, owner: int, rank: int, used: Tensor, check: Tensor, again: Mapping[int, Tensor]) -> Verdict:
        what, names = first_difference(used, check, self.parameters) or ("", [])
        found = judge(owner, rank, _key(used), _key(check), {r: _key(sums) for r, sums in again.items()})
        return Verdict(owner, *found, what, tuple(names))

    def _known_before(self, disputes: OpenDisputes, verdict: Verdict) -> Verdict:
        """A verdict that earlier disputes settle, if they do."""
        again = () if verdict.settled else disputes.in_question_again(verdict.suspects)
        return replace(verdict, suspects=again, settled=True) if again else verdict

    def _report(self, step: int, plan: RecomputePlan, verdicts: Sequence[Verdict]) -> NoReturn:
        """A settled verdict explains others, which the same rank may have caused."""
        settled = [verdict for verdict in verdicts if verdict.settled]
        relevant = settled or verdicts
        first = next((v for v in relevant if v.owner in v.suspects), relevant[0])
        suspects = sorted({rank for verdict in relevant for rank in verdict.suspects})
        what = f"{first.what} of micro-batch {plan.index(first.owner)}"
        report(
            self.run, self.world, step=step + 1, what=what, tensors=first.names, suspects=suspects,
            settled=bool(settled),
        )  # fmt: skip

    def _padded(self, sums: Tensor | None, like: Tensor) -> Tensor:
        """Sums after a 1; zeros if there are none."""
        return like.new_zeros(len(like) + 1) if sums is None else torch.cat([like.new_ones(1), sums])

    def _gather(self, mine: Tensor) -> list[Tensor]:
        """A tensor of each rank, all of the same size."""
        rows = [torch.empty_like(mine) for _ in range(self.world.size)]
        dist.all_gather(rows, mine)
        return rows


def judge(owner: int, rank: int, used: bytes, check: bytes, again: Mapping[int, bytes]) -> tuple[tuple[int, ...], bool]:
    """Who of `owner` and `rank`, whose results for a micro-batch differ, is wrong; and whether that is certain.

    `again` are the results of all ranks that computed it once more.
    """
    if owner == rank:
        return (rank,), True
    first = {owner: used, rank: check}
    others = {r: value for r, value in again.items() if r not in first}
    if others:
        (value, count), *rest = Counter(others.values()).most_common(2)
        tie, alone = bool(rest) and rest[0][1] == count, count == 1 and value not in first.values()
        if tie or alone:
            return (owner, rank), False
        return tuple(r for r, result in (first | others).items() if result != value), True
    changed = tuple(r for r, result in first.items() if r in again and again[r] != result)
    return (changed, True) if len(changed) == 1 else ((owner, rank), False)


def _key(sums: Tensor) -> bytes:
    return sums.numpy().tobytes()
