"""The runs of a sweep: a run for each combination of values, named by what differs."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str  # lr=1e-3,seed=0: of its folder
    values: tuple[tuple[str, str], ...]  # settings and their values, as typed

    def arguments(self) -> list[str]:
        """The values as on the command line."""
        return [word for key, value in self.values for word in (f"--{key}", value)]


def points(asked: Sequence[str]) -> list[Point]:
    """`["optim.lr=1e-3,3e-3", "seed=0,1"]`: four runs.  Raises ValueError for what is not of this form."""
    settings: dict[str, list[str]] = {}
    for text in asked:
        key, sign, listed = text.partition("=")
        values = split(listed)
        if not (key and sign) or "" in values:
            raise ValueError(f"--sweep {text}: write SETTING=VALUE,VALUE, as in --sweep optim.lr=1e-3,3e-3")
        if key in settings:
            raise ValueError(f"--sweep {text}: {key} is swept already; give all of its values in one list")
        if twice := {value for value in values if values.count(value) > 1}:
            raise ValueError(f"--sweep {text}: {sorted(twice)[0]} is there twice")
        settings[key] = values
    short = short_names(list(settings))
    out = []
    for combination in itertools.product(*settings.values()):
        chosen = tuple(zip(settings, combination, strict=True))
        out.append(Point(",".join(f"{short[key]}={safe(value)}" for key, value in chosen), chosen))
    if len({point.name for point in out}) < len(out):
        raise ValueError(
            "two runs of this sweep would have the same name; give values that differ in letters or digits"
        )
    return out


def split(listed: str) -> list[str]:
    """The values between commas; those within brackets belong to one value: `[0.5,1],[0.6,1]` are two."""
    return re.findall(r"(?:\[[^\]]*\]|[^,\[])+|(?<=,)(?=,|$)|^$", listed)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """`optim.lr` is `lr`, unless another key of the sweep ends so too."""
    leaves = [key.rpartition(".")[2] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)}


def safe(value: str) -> str:
    """A value in the name of a folder that no shell asks questions about."""
    return re.sub(r"[^\w.+-]+", "_", value).strip("_") or "none"
