"""Ranks that disagreed about a recomputed micro-batch when nothing told which of them was wrong: two ranks, usually.

The run then goes on without one of them.  If the other one is in such a dispute again, with a new partner, it computes
wrong values.  If it agrees with its new partner about the same step, the one that is gone did.
"""

from collections.abc import Sequence

from vit.distributed.world import World, on_rank_0
from vit.history.submissions import since_submitted
from vit.history.wrong_arithmetic import SETTLED_EVENT, known_findings
from vit.integrity.micro_batch_sums import WHAT
from vit.integrity.places import Place
from vit.run.folder import Event, RunFolder
from vit.run.progress import show


class OpenDisputes:
    """Those since the run was submitted, read from the ledger.  `places` are those of the ranks."""

    def __init__(self, run: RunFolder, world: World, places: Sequence[Place]) -> None:
        """Collective.  Raises OSError on all ranks if the ledger cannot be read."""
        self.run, self.world, self.places = run, world, places
        self._open: list[Event] = on_rank_0(world, lambda: _open_disputes(run.events()))

    def in_question_again(self, suspects: Sequence[int]) -> tuple[int, ...]:
        """The suspects that were some before, unless these are all of them or none."""
        before = {place for event in self._open for place in _places(event)}
        again = tuple(rank for rank in suspects if self.places[rank] in before)
        return again if len(again) < len(suspects) else ()

    def agreed(self, step: int) -> None:
        """Records who was wrong in a dispute about this step, in which all ranks agree now."""
        for event in [event for event in self._open if event["step"] == step]:
            gone = [
                {"rank": suspect.get("rank"), "node": place.node, "gpu": place.gpu}
                for suspect, place in zip(event["suspects"], _places(event), strict=True)
                if place not in self.places
            ]
            if not gone or len(gone) == len(event["suspects"]):
                continue
            self._open.remove(event)
            if self.world.rank == 0:
                wrong = " and ".join(f"rank {each['rank']} on {each['node']}" for each in gone)
                show(f"step {step:,} was recomputed again: {wrong} had computed wrong values", lasting=True)
                self.run.record(SETTLED_EVENT, step=step, suspects=gone)


def _open_disputes(events: list[Event]) -> list[Event]:
    found = known_findings(since_submitted(events))
    ours = tuple(WHAT.values())
    return [event for event in found if not event.get("settled") and str(event.get("what")).startswith(ours)]


def _places(event: Event) -> list[Place]:
    return [Place(suspect["node"], str(suspect.get("gpu", ""))) for suspect in event["suspects"]]
