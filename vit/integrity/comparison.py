"""Compares the state of all ranks by checksums, every n steps and before each checkpoint.

The checksums of a step are computed on the device after its update, and stay there.  They are gathered together with
the losses, when these are checked anyway (StepRunner.check_finite): at log steps and before each save.  So no step
waits for them, and no checkpoint is made of a state that was not compared.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from vit.config.schema import Config
from vit.distributed.gather import gather_on_host
from vit.distributed.world import World
from vit.integrity.checksums import KINDS, kind_checksums, tensor_checksums
from vit.integrity.device_kind import gather_kinds
from vit.integrity.finding import outvoted, report
from vit.integrity.settling import EarlierFindings, losses_of
from vit.run.folder import RunFolder
from vit.run.progress import show


class RankComparison:
    """One rank's part in the comparison.  `tensors` returns the state, by the names of a checkpoint.

    Collective: all ranks must call the methods at the same steps.
    """

    def __init__(self, run: RunFolder, world: World, cfg: Config, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        self.run, self.world, self.tensors, self.every_steps = run, world, tensors, cfg.checks.checksum_every_steps
        if self.every_steps and (why := _not_comparable(cfg, world)):
            self.every_steps = 0
            if world.rank == 0:
                show(f"the ranks' states are not compared: {why}", lasting=True)
        self.earlier = EarlierFindings(run, world) if self.every_steps else None
        self._pending: list[tuple[int, Tensor]] = []  # steps that are not compared yet, and their checksums
        self._agreed: int | None = None  # the newest step that was compared
        self._losses: dict[int, Tensor] = {}  # of the steps since then: (micro-batches of all ranks,) float32 each

    def after_update(self, step: int) -> None:
        """Computes the checksums of a step that is to be compared; does not wait for the device."""
        if self.every_steps and (step % self.every_steps == 0 or self._decides(step)):
            self._compute(step)

    def before_save(self, step: int) -> None:
        """Computes the checksums of the state that is to be saved: now, as it may differ from that after its update."""
        if self.every_steps:
            self._compute(step)

    def _compute(self, step: int) -> None:
        """A single rank has nobody to compare itself with, but decides about earlier findings."""
        if self.world.size > 1 or self._decides(step):
            self._pending.append((step, kind_checksums(self.tensors(), self.world.device)))

    def _decides(self, step: int) -> bool:
        return self.earlier is not None and step in self.earlier.undecided

    def take_pending(self) -> tuple[list[int], list[Tensor]]:
        """The steps that are not compared yet, and one tensor of their checksums, on the device, if there are any."""
        steps, values = [step for step, _ in self._pending], [value for _, value in self._pending]
        self._pending = []
        return steps, [torch.cat(values)] if values else []

    def note_losses(self, step: int, losses: Tensor) -> None:
        """Takes the losses of all micro-batches of a step, (micro-batches,), as evidence for a finding."""
        if self.earlier is not None and (self.world.size > 1 or self.earlier.undecided):
            self._losses[step] = losses
            self.earlier.note_losses(step, losses)

    def check(self, steps: Sequence[int], gathered: Tensor, before: int | None = None) -> None:
        """Raises WrongArithmeticError, on all ranks, for the first of the steps in which ranks differ.

        `gathered` has what `take_pending` returned on each rank: (ranks, steps · kinds).  Steps from `before` on are
        not checked: their values are not finite, and NaN has many bit patterns.
        """
        of_steps = gathered.view(self.world.size, len(steps), len(KINDS)).transpose(0, 1)
        for step, of_ranks in zip(steps, of_steps.tolist(), strict=True):
            if before is not None and step >= before:
                return
            if any(each != of_ranks[0] for each in of_ranks):
                self._report(step, of_ranks)
            if self._decides(step) and self.earlier is not None:
                self.earlier.decide(step, _text(of_ranks[0]))
            self._agreed = step
            self._losses = {noted: losses for noted, losses in self._losses.items() if noted > step}

    def _report(self, step: int, of_ranks: list[list[int]]) -> NoReturn:
        different = [i for i in range(len(KINDS)) if len({each[i] for each in of_ranks}) > 1]
        values = [_text(each) for each in of_ranks]
        votes = self.earlier.values(step) if self.earlier is not None else []
        suspects, settled = outvoted(values, votes)
        kinds = [list(KINDS.values())[i] for i in different]
        losses = {rank: self._losses_of(rank, step) for rank in suspects} if not settled else {}
        report(
            self.run, self.world, step=step, what=" and ".join(kinds), suspects=suspects, settled=settled,
            tensors=self._different_tensors([list(KINDS)[i] for i in different]),
            values=dict(enumerate(values)), losses=losses, agreed=self._agreed,
        )  # fmt: skip

    def _losses_of(self, rank: int, step: int) -> tuple[tuple[float, ...], ...]:
        """The losses of a rank's micro-batches in each step since the ranks agreed, if all are known."""
        since = range(self._agreed + 1, step + 1) if self._agreed is not None else ()
        if not self._losses.keys() >= set(since):
            return ()
        return tuple(losses_of(self._losses[each], rank, self.world.size) for each in since)

    def _different_tensors(self, prefixes: Sequence[str]) -> list[str]:
        """The names of the tensors that differ now: some steps later, but gradients are the same on all ranks."""
        tensors = {name: each for name, each in self.tensors().items() if name.partition(".")[0] in prefixes}
        (values,) = gather_on_host(self.world, [tensor_checksums(tensors.values(), self.world.device)])
        same = (values == values[0]).all(dim=0).tolist()
        return [name for name, equal in zip(tensors, same, strict=True) if not equal]

    def discard(self) -> None:
        """Forgets checksums that were not compared; called after a rollback, which undoes their steps."""
        self._pending, self._agreed, self._losses = [], None, {}


def _text(values: Sequence[int]) -> str:
    """The checksums of a state in the ledger, in hexadecimal digits."""
    return " ".join(f"{value % 2**64:016x}" for value in values)


def _not_comparable(cfg: Config, world: World) -> str:
    """Why ranks without any fault may have different bits; "" if they have the same.  Collective."""
    kinds = sorted(set(gather_kinds(world)))
    if len(kinds) > 1:
        return f"they run on different devices ({', '.join(kinds)}), which round differently"
    if cfg.exact == "samples" and cfg.optim.optimizer == "muon" and world.device.type == "cuda":
        return "with exact: samples, the matrix products of Muon may differ in their last bits"
    return ""
