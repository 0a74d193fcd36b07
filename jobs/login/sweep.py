"""The runs of a sweep: one for each combination of the swept values, named after them."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vit.config.parser import Completion, Parser, parse_config
from vit.config.schema import Config
from vit.config.user_error import UserError


@dataclass(frozen=True)
class SweepPoint:
    """One combination of the swept values."""

    name: str  # of the run folder, e.g. lr=1e-3,seed=0
    values: tuple[tuple[str, str], ...]  # settings and their values, as typed

    def arguments(self) -> list[str]:
        """The values as command-line arguments."""
        return [argument for key, value in self.values for argument in (f"--{key}", value)]


def sweep_points(sweeps: Sequence[str]) -> list[SweepPoint]:
    """Expands --sweep options: `["optim.lr=1e-3,3e-3", "seed=0,1"]` gives four points.  Raises UserError."""
    settings: dict[str, list[str]] = {}
    for text in sweeps:
        key, sign, listed = text.partition("=")
        values = split_values(listed)
        if not (key and sign) or "" in values:
            raise UserError(f"--sweep {text}: expected SETTING=VALUE,VALUE, as in --sweep optim.lr=1e-3,3e-3")
        if key in settings:
            raise UserError(f"--sweep {text}: {key} is swept twice; give all of its values in one --sweep")
        if duplicates := {value for value in values if values.count(value) > 1}:
            raise UserError(f"--sweep {text}: duplicate value {sorted(duplicates)[0]}")
        settings[key] = values
    short = short_names(list(settings))
    out = []
    for combination in itertools.product(*settings.values()):
        chosen = tuple(zip(settings, combination, strict=True))
        out.append(SweepPoint(",".join(f"{short[key]}={safe_name(value)}" for key, value in chosen), chosen))
    if len({point.name for point in out}) < len(out):
        raise UserError("two runs of this sweep would have the same name; use values that differ in letters or digits")
    return out


def sweep_configs(
    parser: Parser, argv: Sequence[str], points: Sequence[SweepPoint], complete: Sequence[Completion]
) -> list[Config]:
    """The config of each run of a sweep.  Raises UserError that names the swept values."""
    parser.exits = False
    out = []
    for point, completion in zip(points, complete, strict=True):
        try:
            out.append(parse_config(parser, [*argv, *point.arguments()], completion)[0])
        except UserError as error:
            values = " ".join(f"{key}={value}" for key, value in point.values)
            raise UserError(f"--sweep {values}: {str(error).removeprefix('--')}") from None
    return out


def split_values(listed: str) -> list[str]:
    """Splits at commas outside of brackets: `[0.5,1],[0.6,1]` and `[[0.5,128],[0.5,224]],[]` are two values each."""
    out, depth = [""], 0
    for character in listed:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and depth <= 0:
            out.append("")
        else:
            out[-1] += character
    return out


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Shortens `optim.lr` to `lr`, unless another swept key ends in the same word."""
    leaves = [key.rpartition(".")[2] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)}


def safe_name(value: str) -> str:
    """A value as part of a folder name, without characters that are special to a shell."""
    return re.sub(r"[^\w.+-]+", "_", value).strip("_") or "none"
