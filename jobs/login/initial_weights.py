"""Checks `init_from` before a run is submitted: the weights exist, and fit the model.  Does not import torch."""

from collections.abc import Collection, Iterable
from pathlib import Path

from jsonargparse import Namespace

from jobs.login.run_folder import folder_path
from vit.checkpoint.format import find_checkpoints
from vit.checkpoint.initial_settings import InitialSettings, WeightSettings
from vit.checkpoint.weight_files import find_weights, read_array
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.model.weight_fit import check_fit, shortened
from vit.run.folder import RunFolder


def initial_settings(run: RunFolder | None = None, found: dict[Path, WeightSettings] | None = None) -> InitialSettings:
    """Completes the settings of a run at submission; `run` is its folder if it is not the one that the options name.

    A dry run does not need weights that do not exist yet, and of a sweep only the runs need them, which may share what
    was `found`.
    """

    def run_of(options: Namespace) -> RunFolder | None:
        named = options.config and not options.sweep
        return run or (RunFolder(folder_path(options)) if named else None)

    def may_fail(options: Namespace, source: Path) -> bool:
        return bool(options.sweep and run is None) or (options.dry_run and not source.exists())

    return InitialSettings(run_of, may_fail, found={} if found is None else found)


def check_number_of_classes(settings: InitialSettings, cfg: Config, pending_data: Collection[Path]) -> None:
    """Raises UserError if the number of classes is that of a data set that is still to be written."""
    if settings.assumes_classes and cfg.data.train in pending_data:
        text = "its number of classes is not known before it is written; give --model.num_classes N"
        raise UserError(f"{cfg.data.train}: {text}")


def check_initial_weights(
    runs: Iterable[tuple[RunFolder, Config]], settings: Iterable[InitialSettings], dry_run: bool
) -> None:
    """Prints what each new run takes from its initial weights.  Raises UserError if they cannot be used."""
    taken = dict.fromkeys(f"{'# ' if dry_run else ''}{line}" for each in settings for line in each.lines)
    for line in [*describe_initial_weights(runs, dry_run), *taken]:
        print(line)


def describe_initial_weights(runs: Iterable[tuple[RunFolder, Config]], dry_run: bool) -> list[str]:
    """What each new run will do with its initial weights.  Raises UserError if they are missing or do not fit.

    A run that has a checkpoint does not need them any more.  A dry run only reports weights that do not exist yet, as
    with data sets.
    """
    out = []
    new = [cfg for run, cfg in runs if cfg.init_from and not find_checkpoints(run.checkpoints)]
    for source, model, head in sorted({(cfg.init_from, cfg.model, cfg.init_head) for cfg in new}, key=str):
        try:
            found = find_weights(Path(source))
        except UserError as error:
            if dry_run and not Path(source).exists():
                out.append(f"# init_from: {error}")
                continue
            raise UserError(f"init_from: {error}") from None
        fit = check_fit(found.shapes, model, f"init_from: {source}", found.heads, head == "new")
        if fit.positions == "fixed" and (positions := read_array(found, "positions")) is not None:
            from vit.model.fixed_positions import check_fixed_positions  # not at the top: numpy takes time

            check_fixed_positions(positions, model.width, f"init_from: {source}")
        out.append(f"{'# ' if dry_run else ''}init_from: {source}: {shortened(found.report + fit.report)}")
    return out
