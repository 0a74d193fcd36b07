"""The settings of a run, read from its folder without the config's parser.  Imports no torch.

A run of another version may have other settings, so nothing is checked here.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from vit.config.recipe import NOT_IN_RECIPE, NOT_IN_RECIPE_SECTIONS
from vit.config.schema import Config
from vit.config.sections import ModelConfig
from vit.config.user_error import UserError
from vit.run.disk_errors import naming, read_if_exists
from vit.run.folder import RunFolder

Settings = Mapping[str, Any]  # by their dotted names: `{"model.width": 768, …}`


def read_settings(run: RunFolder) -> Settings:
    """The settings in `config.yaml`; empty if there is none, or it is no YAML.  Raises OSError."""
    with naming(run.config):
        text = read_if_exists(run.config, run.config.read_bytes)
    return _parsed(text or b"")


def _parsed(text: bytes) -> dict[str, Any]:
    """The settings in a config; of the runs of a sweep, the parts that they have in common are parsed once."""
    if b"\n---" not in text and not re.search(rb"[&*!]", text):  # the parts depend on nothing outside of them
        parts = [_part(part) for part in re.split(rb"^(?=[A-Za-z_])", text, flags=re.M)]
        if all(part is not None for part in parts):
            return {name: value for part in parts if part for name, value in part.items()}
    return dict(_part(text) or {})


@cache
def _part(text: bytes) -> Mapping[str, Any] | None:
    """The settings in a text of YAML; none in comments and empty lines; None if it is something else."""
    import yaml

    try:
        loaded = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C: seven times as fast
    except yaml.YAMLError:
        return None
    if loaded is None:
        return {}
    return flattened(loaded) if isinstance(loaded, dict) else None


def flattened(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a config file by their dotted names; also those that this version does not know."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= flattened(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def apart_from_seed(settings: Settings) -> Settings:
    """The settings that determine what a run computes, without its seed: the same ones in repetitions of a run."""
    return {
        name: value
        for name, value in settings.items()
        if name not in ("seed", *NOT_IN_RECIPE) and not name.startswith(NOT_IN_RECIPE_SECTIONS)
    }


def model_of(settings: Settings) -> ModelConfig | None:
    """The model of a run; None if its settings are not those of a model."""
    given = {f.name: settings[f"model.{f.name}"] for f in fields(ModelConfig) if f"model.{f.name}" in settings}
    try:
        return ModelConfig(**given)
    except (UserError, TypeError):
        return None


def setting(settings: Settings, name: str) -> Any:
    """A setting, or its default; the default also of one that has the wrong type."""
    default: Any = Config()
    for part in name.split("."):
        default = getattr(default, part)
    value = settings.get(name, default)
    right = isinstance(value, int | float) if isinstance(default, float) else isinstance(value, type(default))
    return value if right else default
