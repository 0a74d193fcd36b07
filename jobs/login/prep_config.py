"""What a YAML file of --prep asks of data_prep.write_beton."""

import contextlib
import io
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jobs.login import cluster_config
from jobs.node.prep_job import write_command

CPUS = 16  # where the file says nothing


@dataclass(frozen=True)
class DataSet:
    """One file to write."""

    out: Path  # absolute
    arguments: tuple[str, ...]  # of write_beton
    there: bool  # whether it is written already


@dataclass(frozen=True)
class Prep:
    """What a file asks for."""

    text: str
    sets: tuple[DataSet, ...]
    job: Mapping[str, Any]  # what it asks of the cluster, as ClusterConfig has it
    cpus: int

    @property
    def left(self) -> list[DataSet]:
        """What is not written yet."""
        return [one for one in self.sets if not one.there]


def load_prep(path: Path) -> Prep:
    """Reads what is to be written.  Raises ValueError that names the file and the set, also for sources not there."""
    try:
        text = path.read_text()
        values = yaml.load(text, Loader=yaml.BaseLoader)  # as text: write_beton reads it as it reads its command line
    except FileNotFoundError:
        raise ValueError(f"--prep {path}: there is no such file; configs/imagenet.yaml is one") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
        raise ValueError(f"{path}: write `train:` and `val:`, and below each the options of data_prep.write_beton")
    job = dict(values.pop("job", {}))
    cpus = str(job.pop("cpus_per_task", CPUS))
    if not cpus.isdigit() or int(cpus) < 1:
        raise ValueError(f"{path}: job: cpus_per_task must be a whole number from 1, not {cpus!r}")
    if not values:
        raise ValueError(f"{path}: there is nothing to write; name a data set, as in configs/imagenet.yaml")
    sets = tuple(_data_set(name, options, f"{path}: {name}: ") for name, options in values.items())
    return Prep(text, sets, cluster_config.checked(job, f"{path}: job: "), int(cpus))


def _data_set(name: str, options: dict[str, str], where: str) -> DataSet:
    from data_prep.options import parsed
    from data_prep.publish import already_there  # numpy and Pillow, which training's submission does without

    source = options.pop("source", "")
    words = [source, *([options.pop("path")] if "path" in options else [])]
    for key, value in options.items():
        if value.lower() != "false":
            words += [f"--{key.replace('_', '-')}", *([] if value.lower() == "true" else [value])]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            args = parsed(words)
    except SystemExit:
        raise ValueError(f"{where}{said.getvalue().strip().splitlines()[-1].partition('error: ')[2]}") from None
    for key in ("tar", "devkit", "synsets", "path", "root"):
        found = getattr(args, key, None)
        if found is not None and not found.exists() and source != "fashion-mnist":
            raise ValueError(f"{where}{found} does not exist; say where it is, or put it there")
    try:
        there = already_there(args.out, args.recipe)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None
    return DataSet(args.out.absolute(), tuple(words), there)


def write_here(prep: Prep) -> int:
    """Writes what is left on this machine; returns the exit code."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for one in prep.left:
        done = subprocess.run(write_command(one.arguments, len(os.sched_getaffinity(0))), env=environment, check=False)
        if done.returncode:
            return done.returncode
    return 0
