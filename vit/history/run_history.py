"""Everything that is known of a run: what its reports and notes are made from.  Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from vit.history.attempts import Attempt, read_attempts
from vit.history.learning_curve import number, read_curve, top1
from vit.history.resources import Usage, read_usage
from vit.history.settings import Settings, read_settings
from vit.history.time_spent import TimeSpent, time_spent
from vit.run.folder import Event, RunFolder
from vit.run.jsonl import Record


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """The history of a run; without arguments, that of a run of which nothing is known."""

    events: Sequence[Event] = ()
    attempts: Sequence[Attempt] = ()
    curve: Sequence[Record] = ()
    settings: Settings = field(default_factory=dict)
    usage: Sequence[Usage] = ()

    @cached_property
    def spent(self) -> TimeSpent:
        """Where its time went."""
        return time_spent(self.attempts)

    @cached_property
    def training(self) -> list[Record]:
        """The records of training steps, with a loss that is a number."""
        return [record for record in self.curve if number(record, "loss") is not None]

    @cached_property
    def evaluations(self) -> list[Record]:
        """The records of evaluations."""
        return [record for record in self.curve if top1(record) is not None]


def read_history(run: RunFolder, attempts: Sequence[Attempt] | None = None) -> RunHistory:
    """Reads the files of a run; `attempts`, if they are known already.  Raises OSError."""
    events, curve = [e for e in run.events() if isinstance(e["event"], str)], read_curve(run.metrics)
    if attempts is None:
        attempts = read_attempts(events, curve[-1] if curve else None)
    settings, usage = read_settings(run), read_usage(run)
    return RunHistory(events=events, attempts=attempts, curve=curve, settings=settings, usage=usage)
