"""Reads the YAML file of --prep: which data sets data_prep.write_beton is to write, with which options."""

import contextlib
import io
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.login import cluster_config
from jobs.node.prep_job import write_command
from jobs.node.search_path import search_path
from vit.config.paths import escape, expand, printable
from vit.config.user_error import UserError
from vit.config.yaml_text import compose, plain, read_text

DEFAULT_CPUS = 16
# Options of write_beton that are paths; all but the last must exist.
PATHS = ("tar", "devkit", "synsets", "classes", "path", "root", "out")


@dataclass(frozen=True)
class DataSet:
    """A .beton file to write."""

    out: Path  # absolute
    arguments: tuple[str, ...]  # of write_beton
    exists: bool  # whether it has been written already, with these options


@dataclass(frozen=True)
class PrepConfig:
    """The contents of a --prep file."""

    text: str  # of the file
    data_sets: tuple[DataSet, ...]
    job: Mapping[str, Any]  # overrides of ClusterConfig for this job
    cpus: int

    @property
    def pending(self) -> list[DataSet]:
        """Data sets that are not written yet."""
        return [data_set for data_set in self.data_sets if not data_set.exists]


def load_prep(path: Path) -> PrepConfig:
    """Reads and checks a --prep file.

    Raises UserError, which names the file and the data set, for invalid options and for sources that do not exist.
    """
    source = printable(path)
    try:
        text = read_text(str(path), "--prep")
    except UserError as error:
        raise UserError(f"{error}; see configs/imagenet.yaml for an example") from None
    node = compose(text, source)
    # Values stay text, which write_beton parses like its command line.
    values = node and plain(node, source)
    if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
        raise UserError(f"{source}: expected `train:` and `val:`, each with options of data_prep.write_beton below it")
    job = dict(values.pop("job", {}))
    cpus = str(job.pop("cpus_per_task", DEFAULT_CPUS))
    if not cpus.isdigit() or int(cpus) < 1:
        raise UserError(f"{path}: job: cpus_per_task must be a positive whole number, not {cpus!r}")
    if not values:
        raise UserError(f"{path}: no data sets; see configs/imagenet.yaml for an example")
    data_sets = tuple(_data_set(options, f"{path}: {name}: ") for name, options in values.items())
    return PrepConfig(text, data_sets, cluster_config.parse_values(job, f"{path}: job: "), int(cpus))


def _data_set(options: dict[str, Any], prefix: str) -> DataSet:
    """Checks the options of one data set.  Raises UserError with a message that starts with `prefix`."""
    # These import numpy and Pillow, which submitting a training does not need.
    from data_prep.options import parse_arguments
    from data_prep.publish import find_written

    for key, value in options.items():
        if not isinstance(value, str):
            raise UserError(f"{prefix}{key} must be a single value, not {value!r}")
        if key in PATHS:  # here, not on the node of the job
            try:
                options[key] = escape(expand(value))
            except UserError as error:
                raise UserError(f"{prefix}{key}: {error}") from None
    source = options.pop("source", "")
    arguments = [source, *([options.pop("path")] if "path" in options else [])]
    for key, value in options.items():
        if key == "shuffle" and value.lower() == "false":  # some sources do not shuffle by default
            arguments.append("--no-shuffle")
        elif value.lower() != "false":
            arguments += [f"--{key.replace('_', '-')}", *([] if value.lower() == "true" else [value])]
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            args = parse_arguments(arguments)
    except SystemExit:
        if "help" in options:
            raise UserError(f"{prefix}`help` is not an option") from None
        message = output.getvalue().strip().splitlines()[-1].partition(": ")[2]
        message = re.sub(r"  \((see )?--help.*", "", message)
        names = re.sub(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)", lambda match: match[1].replace("-", "_"), message)
        raise UserError(f"{prefix}{names.replace('SOURCE', 'source')}") from None
    for key in PATHS[:-1]:
        file = getattr(args, key, None)
        if file is not None and not file.exists() and not (key == "root" and args.may_download):
            raise UserError(f"{prefix}{file} does not exist; correct `{key}`, or put the file there")
    try:
        args.check_files()
        exists = find_written(args.out, args.recipe) is not None
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from None
    return DataSet(args.out.absolute(), tuple(arguments), exists)


def write_locally(prep: PrepConfig) -> int:
    """Writes the pending data sets on this machine; returns the exit code."""
    environment = os.environ | {"PYTHONPATH": search_path(Path(__file__).resolve().parents[2])}
    for data_set in prep.pending:
        command = write_command(data_set.arguments, len(os.sched_getaffinity(0)))
        done = subprocess.run(command, env=environment, check=False)
        if done.returncode:
            return done.returncode
    return 0
