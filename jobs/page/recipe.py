"""The settings of a run, what the command line changed, and its environment."""

import itertools
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jobs.page.elements import Html, element
from jobs.page.run_data import RunData, shown
from vit.config.own_files import find_config
from vit.config.schema import Config, flatten
from vit.history.settings import flattened
from vit.run.counts import counted

GROUPS = {"": "run", "model": "model", "data": "data", "augment": "augmentation", "optim": "optimizer"}
GROUPS |= {"checkpoint": "checkpoints", "log": "logging"}


def recipe_section(run: RunData) -> Html | None:
    """All settings in groups; those that differ from the defaults stand out."""
    if not run.settings:
        return None
    defaults = {name: list(v) if isinstance(v, tuple) else v for name, v in flatten(Config()).items()}
    given = command_line_settings(run)
    changed = {name: v for name, v in run.settings.items() if name not in defaults or defaults[name] != v}
    return element(
        "section",
        element("h2", "Recipe"),
        _differences(run, given),
        element("p", "Not the default:", class_="lead") if changed else None,
        element("div", *_tables(changed, defaults, given, changed), class_="columns"),
        element(
            "details",
            element("summary", f"All {len(run.settings)} settings"),
            element("div", *_tables(run.settings, defaults, given, changed), class_="columns"),
        ),
        id="recipe",
    )


def _tables(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], given: Mapping[str, Any], changed: Mapping[str, Any]
) -> list[Html]:
    """A table for each group of settings; the defaults are gray."""
    groups: dict[str, list[Html]] = {}
    for name, value in settings.items():
        section, _, leaf = name.rpartition(".")
        default = f"default: {shown(defaults[name])}" if name in changed and name in defaults else None
        kind = "given" if name in given else "changed" if name in changed else "default"
        row = element("tr", element("th", leaf), element("td", shown(value), title=default), class_=kind)
        groups.setdefault(section, []).append(row)
    return [
        element("div", element("h3", GROUPS.get(section, section)), _table(rows), class_="settings")
        for section, rows in groups.items()
    ]


def _table(rows: list[Html]) -> Html:
    return element("table", element("tbody", *rows))


def command(run: RunData) -> str:
    """The command that submitted the run; empty if it is not known."""
    return next((line[9:] for line in run.environment if line.startswith("command: ")), "")


def words_of(text: str) -> list[str]:
    """The words of a command, which may have been recorded without its quotes."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def command_line_settings(run: RunData) -> dict[str, Any]:
    """The settings that the command line gave after its config file, with the run's values."""
    words = words_of(command(run))
    names = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    names |= {word.partition("=")[0] for before, word in itertools.pairwise(words) if before == "--sweep"}
    return {name: value for name, value in run.settings.items() if name in names}


def config_file(run: RunData) -> str:
    """The name of the config file as it was typed."""
    words = words_of(command(run))
    for i, word in enumerate(words):
        if word.startswith("--config="):
            return word.partition("=")[2]
        if word == "--config" and i + 1 < len(words):
            return words[i + 1]
    return ""


def _differences(run: RunData, given: Mapping[str, Any]) -> Html | None:
    name = config_file(run)
    if not name:
        return None
    if not given:
        return element(
            "p", "As in ", element("code", name), ", without other settings on the command line.", class_="lead"
        )
    file = _values_of(find_config(Path(name)))
    rows = []
    for setting, value in given.items():
        in_file = shown(file[setting]) if setting in file else "default" if file else "–"
        rows.append(element("tr", element("th", setting), element("td", shown(value)), element("td", in_file)))
    head = element("tr", element("th", "setting"), element("th", "this run"), element("th", "in the file"))
    return element(
        "div",
        element("p", "Given on the command line, beside ", element("code", name), ":", class_="lead"),
        element("table", element("thead", head), element("tbody", *rows), class_="differences"),
    )


def _values_of(path: Path) -> dict[str, Any]:
    """The settings in a config file as it is now; none if it cannot be read any more."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return flattened(values) if isinstance(values, dict) else {}


def environment_section(run: RunData) -> Html | None:
    """Command, commit, Python, machine; packages folded."""
    lines = [line for line in run.environment if line.strip()]
    if not lines:
        return None
    facts = [line.partition(": ")[::2] for line in lines if re.match(r"[a-z]+: ", line)]
    packages = [line for line in lines if not re.match(r"[a-z]+: ", line)]
    devices = sorted({a.device for a in run.attempts if a.device})
    facts += [("device", ", ".join(devices))] if devices else []
    return element(
        "section",
        element("h2", "Environment"),
        element(
            "dl",
            *(part for name, value in facts for part in (element("dt", name), element("dd", element("code", value)))),
            class_="facts",
        ),
        element(
            "details",
            element("summary", counted(len(packages), "package")),
            element(
                "p", *(part for package in packages for part in (element("code", package), " ")), class_="packages"
            ),
        )
        if packages
        else None,
        id="environment",
    )
