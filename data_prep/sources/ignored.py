"""What a source has left out at listing, because it is no image of the data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_EXAMPLES = 3  # names that are kept of each reason


@dataclass(frozen=True)
class Ignored:
    """Files and folders that a source has left out at listing: how many for each reason, and the first few names."""

    counts: Mapping[str, int] = field(default_factory=dict)  # reason -> number of files and folders
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # reason -> names, any bytes

    def manifest_entries(self) -> dict[str, dict[str, Any]]:
        """For a manifest: reason -> "count" and a list of "examples"."""
        return {
            reason: {"count": count, "examples": list(self.examples[reason])} for reason, count in self.counts.items()
        }


class IgnoredCounter:
    """Counts what is left out while a source is listed."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Counts one file or folder; a folder stands for all that is in it."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(name)

    def result(self) -> Ignored:
        """What was counted so far."""
        return Ignored(dict(self._counts), {reason: tuple(names) for reason, names in self._examples.items()})
