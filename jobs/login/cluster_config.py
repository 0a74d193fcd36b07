"""What jobs request from a cluster: one small YAML file per cluster, overridden by command-line options."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from jobs.node.slurm_job import STOP_SECONDS
from vit.config import own_files, yaml_text
from vit.config.help_texts import described_fields
from vit.config.paths import expand
from vit.config.user_error import UserError
from vit.config.values import WrongValueError, convert, describe, nearest, wrong_value

CLUSTERS_FOLDER = own_files.CONFIGS / "clusters"
LOCAL_FOLDER = Path("configs/clusters")  # in the working directory
# sbatch options that submit.py sets itself, and what determines each.
SET_ELSEWHERE = {
    **{"nodes": "--nodes", "gpus-per-node": "--gpus", "job-name": "--name", "array": "--sweep", "dependency": "--prep"},
    **{"cpus-per-task": "cpus_per_gpu", "output": "the run folder", "error": "the run folder", "ntasks": "--nodes"},
    **{"ntasks-per-node": "--nodes", "open-mode": "the run folder", "no-requeue": "requeue"},
    **{"clusters": "the variable SLURM_CLUSTERS", "M": "the variable SLURM_CLUSTERS"},
}


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What jobs request from a cluster.  Fields have the names of sbatch's options where there is one."""

    partition: str = ""  # partition, or several separated by commas; empty: the cluster's default
    account: str = ""  # account to charge
    qos: str = ""  # quality of service
    constraint: str = ""  # required features of the nodes, e.g. a100&nvlink
    exclude: str = ""  # nodes that must not be used, e.g. n1,n[5-7]
    reservation: str = ""  # reservation to use
    time: str = "24:00:00"  # time limit of one job, [D-]HH:MM:SS or minutes; at the limit the run saves and is requeued
    mem: str = ""  # memory per node, e.g. 240G; 0: all memory of the node; empty: the cluster's default
    cpus_per_gpu: int = 8  # CPU cores per GPU, for decoding images
    gres: str = ""  # how to request GPUs; gpu:a100: --gres=gpu:a100:N; empty: --gpus-per-node=N; none: not at all
    exclusive: bool = False  # allocate whole nodes
    requeue: bool = True  # requeue the job after preemption, at its time limit, and after failures
    signal: str = "USR2@120"  # USR2@SECONDS: how long before the time limit the run saves and is requeued
    modules: tuple[str, ...] = ()  # environment modules to load on each node (module load)
    setup: tuple[str, ...] = ()  # shell commands to run before the job, e.g. source env.sh, conda activate, export
    python: str = ""  # Python interpreter on the nodes; empty: the one that runs submit.py, or the container's python
    container: str = ""  # container image in which Python runs
    container_exec: str = "apptainer exec --nv"  # command that runs the container, with its options but not the image
    sbatch: dict[str, str] = field(default_factory=dict)  # other sbatch options by their long names, e.g. mail-type=END

    def __post_init__(self) -> None:
        time_limit(self.time)
        if self.cpus_per_gpu < 1:
            raise UserError(f"cpus_per_gpu must be at least 1, not {self.cpus_per_gpu}")
        if not re.fullmatch(r"USR2@[1-9]\d{0,4}", self.signal):
            raise UserError(f"signal must be USR2@SECONDS, not {self.signal!r}: a run saves only on USR2")
        if self.signal_seconds < STOP_SECONDS + 10:
            least = f"USR2@{STOP_SECONDS + 10}"
            raise UserError(
                f"signal {self.signal!r} is too late: a run may need {STOP_SECONDS} s to save; use {least} or more"
            )
        if self.mem and not re.fullmatch(r"\d+([KMGT]B?)?", self.mem):
            raise UserError(f"mem must be a number of megabytes or a number with a unit such as 240G, not {self.mem!r}")
        if self.gres not in {"", "none"} and not re.fullmatch(r"gpu(:[\w.-]*[A-Za-z][\w.-]*)?", self.gres):
            raise UserError(f"gres must be gpu, gpu:TYPE or none, not {self.gres!r}; --gpus sets the number of GPUs")
        for option in self.sbatch:
            if option in SET_ELSEWHERE or option in OPTIONS:
                setter = SET_ELSEWHERE.get(option) or option.replace("-", "_")
                raise UserError(f"sbatch.{option} is not allowed: it is set by {setter}")

    @property
    def minutes(self) -> int:
        """Time limit of one job."""
        return time_limit(self.time)

    @property
    def signal_seconds(self) -> int:
        """Seconds between the signal and the time limit."""
        return int(self.signal.partition("@")[2])

    def setup_commands(self) -> list[str]:
        """Shell commands to run before the job."""
        return [*([f"module load {shlex.join(self.modules)}"] if self.modules else []), *self.setup]


PATHS = {"python", "container"}  # expanded where the job is submitted, like the words of container_exec
OPTIONS = {f.name.replace("_", "-") for f in fields(ClusterConfig)}


def time_limit(text: str) -> int:
    """Minutes of a time limit: `[D-]HH:MM:SS` or a number of minutes; seconds are rounded up.  Raises UserError."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if match:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return (days * 24 + hours) * 60 + minutes + (seconds > 0)
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise UserError(f"time must be HH:MM:SS, D-HH:MM:SS or a number of minutes, not {text!r}")


def load(name: str | None, options: Mapping[str, Any]) -> ClusterConfig:
    """Reads a file, by its name in configs/clusters or its path, and applies command-line options.

    Options that are None were not given.  Raises UserError.
    """
    file = {} if name is None else read_file(name)
    given = {key: value for key, value in options.items() if value is not None}
    if "sbatch" in given:
        given["sbatch"] = split_pairs(given["sbatch"])
    overrides = parse_values(given, "--")
    if "sbatch" in overrides:
        overrides["sbatch"] = file.get("sbatch", {}) | overrides["sbatch"]
    return ClusterConfig(**(file | overrides))


def read_file(name: str) -> dict[str, Any]:
    """The values in a cluster's file.  Raises UserError, which lists the existing files if this one does not exist."""
    name = expand(name)
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    path = own_files.find_config(Path(name) if is_path else LOCAL_FOLDER / f"{name}.yaml")
    if not path.is_file():
        files = {file.stem for folder in (CLUSTERS_FOLDER, LOCAL_FOLDER) for file in folder.glob("*.yaml")}
        existing = ", ".join(sorted(files)) or "no files"
        raise UserError(f"--cluster-config {name}: {path} does not exist; configs/clusters has {existing}")
    # Values stay text: YAML would read 24:00:00 as 86,400, and an account of digits as a number.
    node = yaml_text.compose(yaml_text.read_text(str(path), "--cluster-config"), str(path))
    if node is None or yaml_text.is_null(node):
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise yaml_text.not_a_mapping(node, str(path), "partition: gpu")
    places = {key: f"{yaml_text.place(at, str(path))}: " for key, at, _ in yaml_text.entries(node, str(path))}
    return parse_values(yaml_text.plain(node, str(path)), f"{path}: ", places)


def parse_values(values: object, prefix: str, places: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Converts a mapping of text to valid keyword arguments of ClusterConfig.

    Raises UserError with a message that starts with the key's place, or with `prefix`.
    """
    if not isinstance(values, dict):
        raise UserError(f"{prefix}expected lines of the form `key: value`")
    types = get_type_hints(ClusterConfig)
    where = {key: f"{prefix}{key.replace('_', '-') if prefix == '--' else key}" for key in types}
    where |= {key: f"{place}{key}" for key, place in (places or {}).items()}
    for key in values.keys() - types.keys():
        if setter := SET_ELSEWHERE.get(key.replace("_", "-")):
            raise UserError(f"{places[key] if places else prefix}{key} is not allowed: it is set by {setter}")
        suggestion = nearest(str(key).replace("-", "_"), types, 0.5)
        at = places[key] if places else prefix
        suggestion = suggestion and f"; {suggestion}"
        raise UserError(f"{at}unknown key {key!r}{suggestion}  (known keys: {', '.join(types)})")
    out = {}
    try:
        for key, value in values.items():
            if value not in ("", [""]):
                out[key] = parse_value(key, value, types[key])
                ClusterConfig(**{key: out[key]})
    except ValueError as error:
        problem = str(error).removeprefix(key) if str(error).startswith(key) else f": {error}"
        raise UserError(f"{where[key]}{problem}  ({described_fields(ClusterConfig)[key][0]})") from None
    return out


def split_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """`["mail-type=END"]` -> `{"mail-type": "END"}`.  An option without a value gets an empty one."""
    return {name.removeprefix("--"): value for name, _, value in (pair.partition("=") for pair in pairs)}


def parse_value(key: str, value: object, kind: Any) -> Any:
    """Converts a value from YAML, where every scalar is text, to type `kind`.  Raises UserError."""
    if kind == dict[str, str]:
        if isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
            return {str(k).removeprefix("--").replace("_", "-"): v for k, v in value.items()}
        raise UserError(f"{key} must have lines of the form `option: value`, not {value!r}")
    if kind == tuple[str, ...]:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return tuple(items)
        raise UserError(f"{key} must be a list of strings, not {value!r}")
    if not isinstance(value, str):
        raise UserError(f"{key} must be a single value, not {value!r}")
    if kind in (bool, int):
        try:
            return convert(value, kind)
        except WrongValueError as error:
            raise wrong_value(key, describe(kind), value, str(error)) from None
    if key == "container_exec":
        try:
            return shlex.join(map(expand, shlex.split(value)))
        except ValueError as error:
            problem = "a quote is not closed" if "quotation" in str(error) else error
            raise UserError(f"{key} {value!r}: {problem}") from None
    return expand(value) if key in PATHS else value
