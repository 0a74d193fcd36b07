"""What a comparison between ranks found: which ranks computed wrong values, on which nodes and GPUs."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch.distributed as dist

from vit.distributed.world import World
from vit.history.wrong_arithmetic import EVENT
from vit.integrity.device_kind import device_kind
from vit.integrity.places import gather_places
from vit.run.folder import RunFolder

SHOWN_TENSORS = 3  # in a message; the ledger has all


@dataclass(frozen=True)
class Suspect:
    """A rank that computed wrong values, or that may have."""

    rank: int
    node: str
    gpu: str = ""  # UUID of its GPU; empty on a CPU
    value: str = ""  # what it computed, e.g. its checksums
    losses: tuple[tuple[float, ...], ...] = ()  # of its micro-batches in each step after `agreed`; see settling.py

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.node}" + (f" ({self.gpu})" if self.gpu else "")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Ranks that should have the same values do not."""

    step: int  # steps done, counted as in the learning curve
    what: str  # "weights", "optimizer state", "gradient", …
    tensors: tuple[str, ...] = ()  # the names of those that differ
    suspects: tuple[Suspect, ...]
    settled: bool  # whether all suspects computed wrong values; else at least one of them did
    ranks: int
    agreed: int | None = None  # the last step in which the ranks had the same values, if that is known
    device: str  # kind of the ranks' devices: others may round differently

    def __str__(self) -> str:
        names = ", ".join(self.tensors[:SHOWN_TENSORS]) + (", …" if len(self.tensors) > SHOWN_TENSORS else "")
        where = f" ({names})" if names else ""
        who = (" and " if self.settled else " or ").join(map(str, self.suspects))
        return f"ranks differ in the {self.what} of step {self.step:,}{where}: {who} computed wrong values"

    def event(self) -> dict[str, Any]:
        """The fields of its event in the ledger."""
        return asdict(self)


class WrongArithmeticError(RuntimeError):
    """Hardware computed wrong values; all ranks raise it at the same step."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def outvoted(values: Sequence[Hashable], earlier: Sequence[Hashable] = ()) -> tuple[list[int], bool]:
    """Ranks whose value differs from the most common one, and True; all ranks and False if there is no such value.

    `earlier` are values of the same step when it was computed before.  That two ranks compute the same wrong value is
    as good as impossible with checksums of 64 bits.
    """
    (value, count), *others = Counter([*values, *earlier]).most_common()
    if others and count == others[0][1]:
        return list(range(len(values))), False
    return [rank for rank, each in enumerate(values) if each != value], True


def report(
    run: RunFolder,
    world: World,
    *,
    step: int,
    what: str,
    suspects: Sequence[int],
    settled: bool,
    tensors: Sequence[str] = (),
    values: Mapping[int, str] | None = None,
    losses: Mapping[int, tuple[tuple[float, ...], ...]] | None = None,
    agreed: int | None = None,
) -> NoReturn:
    """Records a finding in the ledger and raises WrongArithmeticError.

    Collective: all ranks call it at the same step, with the same arguments.  `suspects` are numbers of ranks, `values`
    what they computed, `losses` those of their micro-batches in each step since they `agreed`.
    """
    places = gather_places(world)
    found = tuple(
        Suspect(rank, *places[rank], (values or {}).get(rank, ""), (losses or {}).get(rank, ())) for rank in suspects
    )
    finding = Finding(
        step=step, what=what, tensors=tuple(tensors), suspects=found, settled=settled, ranks=world.size,
        agreed=agreed, device=device_kind(world.device),
    )  # fmt: skip
    error = WrongArithmeticError(finding)
    if world.rank == 0:
        try:
            run.record(EVENT, **finding.event())
        except OSError as problem:
            error.add_note(f"This finding could not be recorded: {problem}")
    dist.barrier()  # no rank leaves, and ends the others, before it is recorded
    raise error
