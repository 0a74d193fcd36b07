"""Checks `init_from` before a run is submitted: the weights exist, and fit the model.  Does not import torch."""

from collections.abc import Iterable
from pathlib import Path

from vit.checkpoint.format import find_checkpoints
from vit.checkpoint.weight_files import find_weights, read_array
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.model.weight_fit import check_fit, shortened
from vit.run.folder import RunFolder


def check_initial_weights(runs: Iterable[tuple[RunFolder, Config]], dry_run: bool) -> None:
    """Prints what each new run will do with its initial weights.  Raises UserError if they cannot be used."""
    for line in describe_initial_weights(runs, dry_run):
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
