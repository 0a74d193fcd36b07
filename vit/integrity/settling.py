"""Findings in which no majority said which rank was wrong: settled when the run computes the same steps again.

A step is a function of its number, so that whoever computes it again casts a vote.  The rank that had the same
checksums was right.  Often none had: a wrong weight leads to wrong gradients, whose sum makes the states of all ranks
wrong.  But in the first step in which a loss was another one than now, only a rank with wrong weights had such losses.
This counts only if they differ by more than rounding: a small error may change the gradients, and no loss before all
ranks have it.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vit.distributed.world import World, on_rank_0
from vit.history.submissions import since_submitted
from vit.history.wrong_arithmetic import EVENT, SETTLED_EVENT
from vit.integrity.checksums import KINDS
from vit.integrity.device_kind import device_kind
from vit.integrity.finding import Suspect
from vit.run.folder import Event, RunFolder
from vit.run.progress import show

LOSS_DIFFERENCE = 1e-4  # relative


def losses_of(losses: Tensor, rank: int, ranks: int) -> tuple[float, ...]:
    """The losses of one rank's micro-batches, of those of all ranks: (micro-batches,) on the CPU."""
    return tuple(losses.view(ranks, -1)[rank].tolist())


class EarlierFindings:
    """The findings since the run was submitted that are not settled, read from the ledger."""

    def __init__(self, run: RunFolder, world: World) -> None:
        """Collective.  Raises OSError on all ranks if the ledger cannot be read."""
        self.run, self.world = run, world
        events: list[Event] = on_rank_0(world, lambda: _findings(run.events()))
        kinds = tuple(KINDS.values())  # not a gradient: its values are no checksums of states
        device = device_kind(world.device)
        decided = {e["step"] for e in events if e["event"] == SETTLED_EVENT or e.get("settled")}
        self._findings: dict[int, list[_Undecided]] = {}  # by step
        for event in events:
            known = event["event"] == EVENT and event["device"] == device and event["what"].startswith(kinds)
            if known and event["step"] not in decided:
                self._findings.setdefault(event["step"], []).append(_Undecided(event))

    @property
    def undecided(self) -> set[int]:
        """The steps at which ranks differed, and nothing says which of them was wrong."""
        return set(self._findings)

    def values(self, step: int) -> list[str]:
        """What the suspects had computed at an undecided step."""
        return [suspect.value for finding in self._findings.get(step, []) for suspect in finding.suspects]

    def note_losses(self, step: int, losses: Tensor) -> None:
        """Compares the losses of a step, (micro-batches,), with those of the suspects."""
        for finding in (each for of_step in self._findings.values() for each in of_step):
            finding.note_losses(step, losses)

    def decide(self, step: int, value: str) -> None:
        """Records which suspects were wrong, now that all ranks have computed the same value at this step."""
        findings = self._findings.pop(step)
        suspects = [suspect for finding in findings for suspect in finding.suspects]
        wrong = [suspect for suspect in suspects if suspect.value != value]
        if len(wrong) == len(suspects):
            wrong = [suspect for finding in findings for suspect in finding.wrong_losses]
        outcome = f"{' and '.join(map(str, wrong))} had computed wrong values"
        if not wrong:  # another version of a library, or number of ranks, may round differently
            outcome = "the ranks that differed all had other values than now: it remains open which one was wrong"
        if self.world.rank == 0:
            show(f"step {step:,} was computed again: {outcome}", lasting=True)
            places = [{"rank": each.rank, "node": each.node, "gpu": each.gpu} for each in wrong]
            self.run.record(SETTLED_EVENT, step=step, suspects=places)


class _Undecided:
    """One finding: its suspects, and which of them had other losses than now in the first step with any."""

    def __init__(self, event: Event) -> None:
        self.suspects = [Suspect(**each) for each in event["suspects"]]
        self.wrong_losses: list[Suspect] = []
        self._ranks, self._agreed = event["ranks"], event["agreed"]
        self._differed = False

    def note_losses(self, step: int, losses: Tensor) -> None:
        i = step - self._agreed - 1 if self._agreed is not None else -1
        same = len(losses) // self._ranks if len(losses) % self._ranks == 0 else -1
        if self._differed or not 0 <= i < len(self.suspects[0].losses) or len(self.suspects[0].losses[i]) != same:
            return
        now = {each.rank: losses_of(losses, each.rank, self._ranks) for each in self.suspects}
        others = [each for each in self.suspects if tuple(each.losses[i]) != now[each.rank]]
        clearly = [each for each in others if not _is_close(each.losses[i], now[each.rank])]
        self._differed = bool(others)
        if len(others) == len(clearly) < len(self.suspects):
            self.wrong_losses = clearly


def _is_close(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(math.isclose(x, y, rel_tol=LOSS_DIFFERENCE) for x, y in zip(a, b, strict=True))


def _findings(events: list[Event]) -> list[dict[str, Any]]:
    """The events about wrong arithmetic since the run was submitted."""
    return [event for event in since_submitted(events) if event["event"] in (EVENT, SETTLED_EVENT)]
