"""A run that starts from weights has their settings, unless others are given.  Does not import torch.

Those that are taken: the architecture, and what turns pixels into the input of the model (mean, std, interpolation).
The number of classes is that of the training set.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from vit.checkpoint.format import DamagedCheckpointError, find_checkpoints, read_manifest
from vit.checkpoint.stored_settings import CLASSES, INPUT, MODEL, of_config
from vit.checkpoint.weight_files import find_weights
from vit.config.user_error import UserError
from vit.config.values import listed
from vit.data.dataset_manifest import manifest_path, read_dataset_manifest
from vit.model.weight_fit import FEATURES_PER_HEAD, foreign_parts, shown_settings
from vit.run.disk_errors import explained
from vit.run.folder import RunFolder


def _no_run(_: Namespace) -> RunFolder | None:
    return None


def _never(_: Namespace, __: Path) -> bool:
    return False


@dataclass(frozen=True)
class WeightSettings:
    """The settings that weights have, by dotted name, as far as they are known."""

    values: dict[str, Any]
    heads_by_rule: bool  # whether the number of heads is only assumed, from the width


@dataclass
class InitialSettings:
    """Completes the settings of a run with `init_from`: the `complete` of `parse_config`.

    A run that has a checkpoint of its own has the settings of its own config instead: what it started from may have
    been changed or deleted.  Nothing is read if all settings are given, as in the config of a run folder.
    """

    run_of: Callable[[Namespace], RunFolder | None] = _no_run  # the run, from the command's options
    may_fail: Callable[[Namespace, Path], bool] = _never  # whether the defaults may be used if the weights are missing
    lines: list[str] = field(default_factory=list)  # what was taken, for the user
    error: UserError | None = None  # why nothing could be taken, if that is allowed
    assumes_classes: bool = False  # the training set does not exist yet, so its number of classes is not known
    found: dict[Path, WeightSettings] = field(default_factory=dict)  # what was read

    def __call__(self, given: Mapping[str, Any], options: Namespace) -> Mapping[str, Any]:
        """The settings that are not given.  Raises UserError if the weights cannot be read or do not show them."""
        self.lines, self.error, self.assumes_classes = [], None, False
        names = [name for name in (*MODEL, *INPUT, CLASSES) if name not in given]
        if options["data.decoder"] == "ffcv" and "data.interpolation" in names:
            names.remove("data.interpolation")  # it has no filter to choose
        if not (given.get("init_from") and names):
            return {}
        train = Path(options["data.train"])
        if own := self._own(options):
            return {name: own[name] for name in names} | (_classes(train) if CLASSES in names else {})
        source = Path(given["init_from"]).absolute()
        try:
            if source not in self.found:
                self.found[source] = settings_of(source)
            known, by_rule = self.found[source].values, self.found[source].heads_by_rule
            if unknown := [name for name in MODEL if name in names and name not in known]:
                advice = f"give {' '.join(f'--{name} VALUE' for name in unknown)}"
                raise UserError(f"init_from: {source} does not show {listed(unknown, 'and')}; {advice}")
        except UserError as error:
            if not self.may_fail(options, source):
                raise
            self.error, known, by_rule = error, {}, False
            self.lines = [f"the defaults stand in for settings that will be taken from it: {', '.join(names)}"]
        taken = {name: known[name] for name in names if name in known}
        if shown := {name: value for name, value in taken.items() if name != CLASSES}:
            self.lines = [f"init_from: {source}: settings taken: {_described(shown, by_rule)}"]
        if CLASSES in names and not (classes := _classes(train)):
            self.assumes_classes = True
            self.lines.append(f"{train} does not exist yet; {CLASSES} will be its number of classes")
        return taken | (classes if CLASSES in names else {})

    def _own(self, options: Namespace) -> dict[str, Any]:
        """The settings of a run that has checkpoints; none if it has not."""
        run = self.run_of(options)
        if run is None:
            return {}
        with _explained():
            checkpoints = find_checkpoints(run.checkpoints)
            if checkpoints and run.config.exists():
                return of_config(run.config.read_text(encoding="utf-8"), str(run.config))
            for checkpoint in checkpoints:
                with suppress(DamagedCheckpointError):  # training reports it, and uses an older one
                    if text := read_manifest(checkpoint)["about"].get("config"):
                        return of_config(str(text), str(checkpoint))
        return {}


def _classes(train: Path) -> dict[str, Any]:
    """The number of classes of a training set; none if it does not exist yet."""
    with _explained():
        return {CLASSES: len(read_dataset_manifest(train).classes)} if manifest_path(train).exists() else {}


def settings_of(source: Path) -> WeightSettings:
    """What is stored with weights of their settings, else what their shapes show.

    Raises UserError if there are no weights, if they are damaged, of another architecture, or cannot be read.
    """
    with _explained("init_from: "):
        try:
            found = find_weights(source)
            stored = found.settings()
        except UserError as error:
            raise UserError(f"init_from: {error}") from None
    if parts := foreign_parts(found.shapes):
        raise UserError(f"init_from: {source} does not fit the model: {'; '.join(parts)}")
    shown = {f"model.{name}": value for name, value in shown_settings(found.shapes).items()}
    if "model.positions" not in stored and "model.image_size" in shown:
        stored.pop("model.image_size", None)  # another program may have resized the positions since it was written
    return WeightSettings(shown | stored, "model.heads" not in stored)


@contextmanager
def _explained(prefix: str = "") -> Iterator[None]:
    """Turns an error of the disk into one line that names the file: nothing has begun yet that could be continued."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{prefix}the settings of the run cannot be read: {explained(error)}") from None


def _described(settings: Mapping[str, Any], heads_by_rule: bool) -> str:
    """The settings in one line, by section."""
    sections: dict[str, list[str]] = {}
    for name, value in settings.items():
        section, _, leaf = name.partition(".")
        values = value if isinstance(value, tuple) else (value,)
        text = ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        text = f"[{text}]" if isinstance(value, tuple) else text
        rule = f" (of {FEATURES_PER_HEAD} features each, which is assumed)" if heads_by_rule else ""
        sections.setdefault(section, []).append(f"{leaf} {text}" + (rule if leaf == "heads" else ""))
    return "; ".join(f"{section}: {', '.join(texts)}" for section, texts in sections.items())
