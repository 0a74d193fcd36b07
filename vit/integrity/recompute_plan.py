"""Which micro-batches are recomputed, when, and by whom: a function of config, step and ranks.  Imports no torch."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from vit.config.schema import Config


@dataclass(frozen=True)
class RecomputePlan:
    """What each rank recomputes in one step: the j-th micro-batch of the rank `owners[rank]`."""

    j: int  # number of the micro-batch on its owner
    count: int  # micro-batches of each rank
    owners: tuple[int, ...]

    def index(self, owner: int) -> int:
        """The micro-batch's number in the global batch."""
        return owner * self.count + self.j


def is_due(cfg: Config, step: int) -> bool:
    """Whether a micro-batch of each rank is recomputed in this step.  Without exact bits it would have others."""
    every = cfg.checks.recompute_every_steps
    return cfg.exact == "bits" and every > 0 and (step + 1) % every == 0


def recorded_micro_batch(cfg: Config, ranks: int, step: int) -> int:
    """The number j of the micro-batch of each rank that is recomputed in a step that `is_due`."""
    turns, turn = divmod(_turn(cfg, step), max(1, ranks - 1))
    return (turns + turn) % (cfg.micro_batches // ranks)


def recompute_plan(cfg: Config, kinds: Sequence[Hashable], step: int) -> RecomputePlan:
    """The plan of a step that `is_due`.

    `kinds`: the kind of processor or GPU of each rank.  Another kind may round differently, so each rank recomputes a
    micro-batch of a rank of its own kind: of each in turn, or its own if it is the only one.
    """
    ranks = len(kinds)
    owners = []
    for rank, kind in enumerate(kinds):
        same = [other for other in range(ranks) if kinds[other] == kind]
        distance = 1 + _turn(cfg, step) % (len(same) - 1) if len(same) > 1 else 0
        owners.append(same[(same.index(rank) + distance) % len(same)])
    return RecomputePlan(recorded_micro_batch(cfg, ranks, step), cfg.micro_batches // ranks, tuple(owners))


def _turn(cfg: Config, step: int) -> int:
    return (step + 1) // cfg.checks.recompute_every_steps - 1
