"""What a run has recorded about its steps: settings, skipped steps, learning curve.  Only reads; imports no torch.

The run may be live.  Nothing in its folder is written, renamed, removed or locked.

Steps are counted from 1, as in the learning curve: step 1 is the update from the initial weights.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vit.checkpoint.format import DamagedCheckpointError, find_checkpoints, read_manifest
from vit.config.parser import config_from_text
from vit.config.paths import escape
from vit.config.recipe import recipe_of
from vit.config.schema import PATHS, Config
from vit.config.user_error import UserError
from vit.run.disk_errors import naming, read_if_exists
from vit.run.folder import Event, RunFolder
from vit.run.jsonl import Record, read_lines

Values = dict[str, Any]  # settings by their dotted names


@dataclass(frozen=True)
class SettingsChange:
    """Settings that were changed when the run was resumed at a step."""

    step: int  # the steps after it have the new values
    settings: dict[str, list[Any]]  # by name: the values before and since; None where there is none


@dataclass(frozen=True)
class KnownSettings:
    """A place where the run has stored its settings, which hold for the steps up to `step` (None: for the newest)."""

    source: Path
    step: int | None
    config: str  # YAML
    recipe: Values | None  # with the fingerprint of the data; None: not stored


class RecordedRun:
    """A run folder as it was when it was read.  Raises UserError if it is not a run, OSError if it cannot be read."""

    def __init__(self, path: Path, config: Path | None = None) -> None:
        if not path.is_dir():
            raise UserError(f"{path} is not a run folder" + ("" if path.exists() else ": it does not exist"))
        self.folder = RunFolder(path)
        self.events: list[Event] = self.folder.events()
        self.changes = settings_changes(self.events)
        self._known = _known_settings(self.folder, config)

    def config(self, step: int, data: Path | None = None) -> Config:
        """The config of a step, with the paths and other settings that are not in the recipe as they are now.

        `data` replaces data.train: the data set may have been moved.
        """
        known = self._known
        try:
            content = yaml.safe_load(known.config) or {}
        except yaml.YAMLError:
            content = None
        if not isinstance(content, dict):
            return config_from_text(known.config, str(known.source))  # raises UserError, which names the line
        for name, value in self._changed(step).items():
            _set(content, name, value)
        cfg = config_from_text(yaml.safe_dump(content), str(known.source))
        return cfg if data is None else replace(cfg, data=replace(cfg.data, train=data))

    def recipe(self, step: int) -> Values | None:
        """The recipe of a step, with the fingerprint of its data set; None if no checkpoint tells it."""
        if self._known.recipe is None:
            return None
        recipe = recipe_of(Config()) | self._known.recipe
        for name, value in self._changed(step).items():
            if value is None:
                recipe.pop(name, None)
            else:
                recipe[name] = value
        return recipe

    def change_after(self, step: int) -> int | None:
        """The step of the first change of settings at or after this step; None if there is none."""
        return min((change.step for change in self.changes if change.step >= step), default=None)

    def _changed(self, step: int) -> Values:
        """The settings of a step that differ from the stored ones."""
        known, out = self._known.step, Values()
        if known is None or step <= known:
            undone = [c for c in self.changes if c.step >= step and (known is None or c.step < known)]
            for change in reversed(undone):
                out |= {name: before for name, (before, _) in change.settings.items()}
        else:
            for change in self.changes:
                if known <= change.step < step:
                    out |= {name: now for name, (_, now) in change.settings.items()}
        return out

    def skipped(self, recipe_checksum: str) -> set[int]:
        """The steps that the run skips under a recipe, because they were not finite."""
        return {e["step"] for e in self.events if e["event"] == "skipped" and e["recipe"] == recipe_checksum}

    def why_skipped(self, step: int) -> str | None:
        """Why the run skipped a step under some recipe; None if it did not."""
        return next((e["why"] for e in reversed(self.events) if e["event"] == "skipped" and e["step"] == step), None)

    def attempt(self, step: int) -> Event | None:
        """The event `started` of the last attempt that may have trained a step: its ranks, its device."""
        return next((e for e in reversed(self.events) if e["event"] == "started" and e["step"] < step), None)

    @cached_property
    def curve(self) -> dict[int, Record]:
        """The records of training in the learning curve, by step."""
        return {record["step"]: record for record in read_lines(self.folder.metrics) if "loss" in record}

    @cached_property
    def newest_step(self) -> int:
        """The newest step of which anything is recorded."""
        saved = [e["step"] for e in self.events if e["event"] in ("checkpoint", "skipped")]
        return max([*self.curve, *saved], default=0)

    def logged_samples(self, step: int) -> dict[int, list[int]]:
        """The samples of each micro-batch of a step, if the run has recorded them (`log.samples`)."""
        return {r["shard"]: r["samples"] for r in read_lines(self.folder.samples) if r["step"] == step}


def settings_changes(events: Iterable[Event]) -> list[SettingsChange]:
    """The changes of settings, oldest first, that led to the steps as they are now.

    An attempt that resumes at a step repeats those after it, with its own settings: changes at later steps, and at this
    step by an earlier attempt, no longer count.
    """
    out: list[SettingsChange] = []
    noted: SettingsChange | None = None
    for event in events:
        if event["event"] == "settings changed":
            noted = SettingsChange(event["step"], event["settings"])
        elif event["event"] in ("started", "rolled back"):
            out = [change for change in out if change.step < event["step"]]
            out += [noted] if noted is not None and noted.step == event["step"] else []
            noted = None
    return out


def _known_settings(run: RunFolder, config: Path | None) -> KnownSettings:
    """The settings in the newest checkpoint whose manifest can be read, else those in a file.

    What is not part of the recipe, such as paths, is taken from the config of the folder, which may be newer.
    """
    path = config or run.config
    with naming(path):
        text = (read_if_exists(path, path.read_bytes) or b"").decode(errors="replace")
    if config is not None and not text:
        raise UserError(f"--config {config} does not exist, or is empty")
    problem: DamagedCheckpointError | None = None
    for checkpoint in find_checkpoints(run.checkpoints):
        try:
            manifest = read_manifest(checkpoint)
        except DamagedCheckpointError as error:  # or removed by the run since
            problem = error
            continue
        about = manifest["about"]
        stored = str(about.get("config") or text)
        return KnownSettings(checkpoint, manifest["step"], _with_paths(stored, text), about.get("recipe"))
    if not text and problem is None and not run.events():
        raise UserError(f"{run.path} is not a run folder: it has neither a ledger, a checkpoint nor {run.config.name}")
    if not text:
        why = f" ({problem})" if problem else ""
        raise UserError(
            f"{run.path} has neither an intact checkpoint{why} nor {run.config.name}; give the config that the run was "
            "started with: --config FILE"
        )
    return KnownSettings(path, None, text, None)


def _with_paths(stored: str, newer: str) -> str:
    """A stored config with the paths of data sets of a newer one, which may have been moved."""
    content = yaml.safe_load(stored)
    with suppress(yaml.YAMLError, AttributeError):
        paths = (yaml.safe_load(newer) or {}).get("data") or {}
        content.setdefault("data", {}).update({k: paths[k] for k in ("train", "val") if k in paths})
    return yaml.safe_dump(content)


def _set(content: dict[str, Any], name: str, value: Any) -> None:
    """Sets a setting by its dotted name, None to its default; names of the recipe that are no settings are left out."""
    section, _, leaf = name.rpartition(".")
    owner: Any = getattr(Config(), section) if section else Config()
    if not is_dataclass(owner) or leaf not in {f.name for f in fields(owner)}:
        return
    settings = content.setdefault(section, {}) if section else content
    if value is None:
        settings.pop(leaf, None)
    else:
        settings[leaf] = escape(value) if name in PATHS else value


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ, each with both values, for a message."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return [f"{name}: {before.get(name, '(absent)')} in the run, {now.get(name, '(absent)')} now" for name in names]
