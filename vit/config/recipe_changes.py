"""What may differ between a run and its continuation.  A recipe is `schema.recipe` and the fingerprint of the data."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vit.config.user_error import UserError

# Settings that determine which images each step uses, and the size of the data set: they can never change between two
# steps of a run, because some images would then count twice in an epoch and others not at all.
STREAM_SETTINGS = ("global_batch", "seed", "data.limit", "data.repeats", "data.shuffle_window", "data.samples")


def check_recipe(
    run: Path, before: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str], has_begun: bool
) -> None:
    """Raises UserError if a run, or its checkpoint, has other settings than `now`, apart from the allowed changes.

    In a run that `has_begun`, changes of STREAM_SETTINGS are never allowed.  The message lists the differences.
    """
    absent = object()
    differing = [name for name in sorted({*before, *now}) if before.get(name, absent) != now.get(name, absent)]
    fixed = [name for name in differing if has_begun and name in STREAM_SETTINGS]
    differing = [name for name in differing if name in fixed or name not in allowed]
    if not differing:
        return
    lines = [
        f"{name}: {before.get(name, '(absent)')} in the run, {now.get(name, '(absent)')} now" for name in differing
    ]
    if fixed:
        reason = "determine" if len(fixed) > 1 else "determines"
        advice = (
            f"{', '.join(fixed)} {reason} which images each step uses, and cannot change in a run that has begun.\n"
            f"Start a new run, if you like from the weights of this one: --init_from {run}"
        )
    else:
        advice = f"Use a new run folder, or accept the changes with --override-resume {' '.join(differing)}"
    raise UserError(f"{run} has different settings:\n  " + "\n  ".join(lines) + f"\n{advice}")
