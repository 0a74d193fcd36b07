"""Findings in which no majority said which rank was wrong: settled when the run computes the same step again.

A step is a function of its number, so that whoever computes it again casts a vote: the rank whose checksums were the
same was right, the others were wrong.
"""

from typing import Any

from vit.distributed.world import World, on_rank_0
from vit.history.wrong_arithmetic import EVENT, SETTLED_EVENT
from vit.integrity.checksums import KINDS
from vit.integrity.device_kind import device_kind
from vit.integrity.finding import Suspect
from vit.run.folder import Event, RunFolder
from vit.run.progress import show


class EarlierFindings:
    """The findings since the run was submitted, read from the ledger."""

    def __init__(self, run: RunFolder, world: World) -> None:
        """Collective.  Raises OSError on all ranks if the ledger cannot be read."""
        self.run, self.world = run, world
        events: list[Event] = on_rank_0(world, lambda: _findings(run.events()))
        ours = tuple(KINDS.values())  # not a gradient: its values are no checksums of states
        decided = {e["step"] for e in events if e["event"] == SETTLED_EVENT or e.get("settled")}
        self._suspects: dict[int, list[Suspect]] = {}  # by step; those of several findings together
        device = device_kind(world.device)
        for event in events:
            known = event["event"] == EVENT and event["device"] == device and event["what"].startswith(ours)
            if known and event["step"] not in decided:
                self._suspects.setdefault(event["step"], []).extend(Suspect(**each) for each in event["suspects"])

    @property
    def undecided(self) -> set[int]:
        """The steps at which ranks differed, and nothing says which of them was wrong."""
        return {step for step, suspects in self._suspects.items() if any(each.value for each in suspects)}

    def values(self, step: int) -> list[str]:
        """What the suspects had computed at an undecided step."""
        return [each.value for each in self._suspects.get(step, []) if each.value]

    def decide(self, step: int, value: str) -> None:
        """Records which suspects were wrong, now that all ranks have computed the same value at this step."""
        suspects = [each for each in self._suspects.pop(step) if each.value]
        wrong = [each for each in suspects if each.value != value]
        if len(wrong) == len(suspects):  # another device, version or number of ranks may round differently
            wrong, outcome = [], "none of the ranks in question had these values: it remains open which one was wrong"
        else:
            outcome = f"{' and '.join(map(str, wrong))} had computed wrong values"
        if self.world.rank == 0:
            show(f"step {step:,} was computed again: {outcome}", lasting=True)
            self.run.record(SETTLED_EVENT, step=step, suspects=[vars(each) for each in wrong])


def _findings(events: list[Event]) -> list[dict[str, Any]]:
    """The events about wrong arithmetic since the run was submitted."""
    starts = [i for i, event in enumerate(events) if event["event"] == "submitted"]
    return [e for e in events[starts[-1] if starts else 0 :] if e["event"] in (EVENT, SETTLED_EVENT)]
