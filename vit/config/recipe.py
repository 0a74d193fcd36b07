"""The recipe of a run: what determines what it computes, and what may differ when it is resumed."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vit.config.paths import shell_word
from vit.config.schema import Config, flatten
from vit.config.user_error import UserError

# Settings that may change when a run is resumed: paths, threads, device and intervals, never what is computed.
NOT_IN_RECIPE = (
    *("data.train", "data.val", "data.workers", "data.prefetch", "data.cache", "data.on_bad", "data.verify"),
    *("data.stage", "device", "timeout_minutes", "optim.max_skipped", "activation_checkpointing", "cuda_graphs"),
)
NOT_IN_RECIPE_SECTIONS = ("checkpoint.", "checks.", "log.")
# Settings that determine which images each step uses, and the size of the data set: they can never change between two
# steps of a run, because some images would then count twice in an epoch and others not at all.
STREAM_SETTINGS = ("global_batch", "seed", "data.limit", "data.repeats", "data.shuffle_window", "data.samples")


# Settings that older versions did not have.  At their defaults they are not in the recipe, so that runs of older
# versions can be resumed.
ADDED_LATER = (
    "train_sizes",
    "epochs_count",
    "data.small_images",
    "augment.randaugment_ramp",
    "optim.momentum",
)


def recipe_of(config: Config) -> dict[str, Any]:
    """The values that determine what a run computes, as JSON types.  A resumed run must have the same ones."""
    out = {
        name: _as_json(value)
        for name, value in flatten(config).items()
        if name not in NOT_IN_RECIPE and not name.startswith(NOT_IN_RECIPE_SECTIONS)
    }
    for name in ADDED_LATER:
        if out[name] == _as_json(flatten(Config())[name]):
            del out[name]
    if config.init_from:  # absolute: independent of the working directory
        out["init_from"] = str(Path(config.init_from).absolute())
    if config.mix_distance > 1:  # older versions always mixed neighbors, which then were repeats of one image
        out["augment.mix_distance"] = config.mix_distance
    return out


def _as_json(value: Any) -> Any:
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings that differ, sorted by name, each with both values; None where there is none."""
    absent = object()
    names = [name for name in sorted({*before, *now}) if before.get(name, absent) != now.get(name, absent)]
    return {name: [before.get(name), now.get(name)] for name in names}


def check_recipe(
    run: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    allowed: Collection[str],
    has_begun: bool,
    alternative: str = "a new run folder",
) -> None:
    """Raises UserError if a run, or its checkpoint, has other settings than `now`, apart from the allowed changes.

    In a run that `has_begun`, changes of STREAM_SETTINGS are never allowed.  The message lists the differences,
    and names the `alternative` to resuming.
    """
    differing = list(differences(before, now))
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
            f"Start a new run (--name OTHER), if you like from the weights of this one: --init_from {shell_word(run)}"
        )
    else:
        advice = f"Use {alternative}, or accept the changes with --override-resume {' '.join(differing)}"
    raise UserError(f"{run} has different settings:\n  " + "\n  ".join(lines) + f"\n{advice}")
