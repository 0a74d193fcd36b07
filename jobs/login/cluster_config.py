"""What jobs ask of a cluster: a small YAML file for each cluster, and the command line, which overrides it."""

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from jobs.node.slurm_job import STOP_SECONDS

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "clusters"
# What submit.py sets itself, and where it is said.
SET_ELSEWHERE = {
    **{"nodes": "--nodes", "gpus-per-node": "--gpus", "job-name": "--name", "array": "--sweep", "dependency": "--prep"},
    **{"cpus-per-task": "cpus_per_gpu", "output": "the run folder", "error": "the run folder", "ntasks": "--nodes"},
    **{"ntasks-per-node": "--nodes", "open-mode": "the run folder", "no-requeue": "requeue"},
}


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What jobs ask of a cluster; names are sbatch's where it has one."""

    partition: str = ""  # the partition, or several with commas between; empty: the cluster's default
    account: str = ""  # whom the hours are charged to
    qos: str = ""  # quality of service
    constraint: str = ""  # features that a node must have
    exclude: str = ""  # nodes to keep off: n1,n[5-7]
    reservation: str = ""  # a reservation to run in
    time: str = "24:00:00"  # limit of one job: [D-]HH:MM:SS or minutes; the run is requeued there and goes on
    mem: str = ""  # memory of each node: 240G; 0 is all of it; empty: the cluster's default
    cpus_per_gpu: int = 8  # CPU cores for each GPU, for decoding
    gres: str = ""  # how GPUs are asked for: gpu:a100 becomes --gres=gpu:a100:4; empty: --gpus-per-node=4; none: not
    exclusive: bool = False  # whole nodes, whatever else is asked for
    requeue: bool = True  # the job goes back into the queue when it is preempted or out of time
    signal: str = "USR2@120"  # seconds before its time limit at which a job saves and is requeued
    modules: tuple[str, ...] = ()  # loaded on each node by `module load`
    setup: tuple[str, ...] = ()  # shell commands before the job: source, conda activate, export
    python: str = ""  # the interpreter on the nodes; empty: the one that submits, or the container's own
    container: str = ""  # image that Python runs in
    container_exec: str = "apptainer exec --nv"  # the command and its options, to which the image is added
    sbatch: dict[str, str] = field(default_factory=dict)  # more options of sbatch's, by their long names

    def __post_init__(self) -> None:
        time_limit(self.time)
        if self.cpus_per_gpu < 1:
            raise ValueError(f"cpus_per_gpu must be at least 1, not {self.cpus_per_gpu}")
        if not re.fullmatch(r"USR2@[1-9]\d{0,4}", self.signal):
            raise ValueError(f"signal {self.signal!r}: write USR2@SECONDS; a run saves on no other signal of a limit")
        if self.signal_seconds < STOP_SECONDS + 10:
            least = f"USR2@{STOP_SECONDS + 10}"
            raise ValueError(f"signal {self.signal!r}: a run may need {STOP_SECONDS} s to save; write {least}, or more")
        if self.mem and not re.fullmatch(r"\d+[KMGT]?B?", self.mem):
            raise ValueError(f"mem {self.mem!r}: write megabytes or a number with its unit, as in 240G")
        if self.gres not in {"", "none"} and not re.fullmatch(r"gpu(:[\w.-]*[A-Za-z][\w.-]*)?", self.gres):
            raise ValueError(f"gres {self.gres!r}: write gpu, gpu:TYPE or none; --gpus says how many")
        for option in self.sbatch:
            if option in SET_ELSEWHERE or option in OWN_KEYS:
                where = SET_ELSEWHERE.get(option) or option.replace("-", "_")
                raise ValueError(f"sbatch.{option}: this is set by {where}")

    @property
    def minutes(self) -> int:
        """Limit of one job."""
        return time_limit(self.time)

    @property
    def signal_seconds(self) -> int:
        """Seconds before its limit at which a job is told."""
        return int(self.signal.partition("@")[2])

    def prologue(self) -> list[str]:
        """Shell commands before the job."""
        return [*([f"module load {shlex.join(self.modules)}"] if self.modules else []), *self.setup]


OWN_KEYS = {f.name.replace("_", "-") for f in fields(ClusterConfig)}


def time_limit(text: str) -> int:
    """Minutes of a limit as Slurm writes it: `[D-]HH:MM:SS`, `HH:MM:SS` or minutes.  Raises ValueError."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if match:
        days, hours, rest, seconds = (int(part or 0) for part in match.groups())
        return (days * 24 + hours) * 60 + rest + (seconds > 0)
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise ValueError(f"time {text!r}: write 24:00:00, 2-00:00:00 or a number of minutes")


def load(name: str | None, given: Mapping[str, Any]) -> ClusterConfig:
    """The file of this name in configs/clusters, or at this path, and the flags that were given.  Raises ValueError."""
    file = {} if name is None else of_file(name)
    flags = {key: value for key, value in given.items() if value is not None}
    if "sbatch" in flags:
        flags["sbatch"] = pairs(flags["sbatch"])
    said = checked(flags, "--")
    if "sbatch" in said:
        said["sbatch"] = file.get("sbatch", {}) | said["sbatch"]
    return ClusterConfig(**(file | said))


def of_file(name: str) -> dict[str, Any]:
    """The values in a file.  Raises ValueError, for a file that is not there with those that are."""
    path = Path(name) if "/" in name or name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml"))) or "none"
        raise ValueError(f"--cluster-config {name}: there is no {path}; configs/clusters has {known}")
    try:
        # As text: YAML itself would read 24:00:00 as 86,400, and an account of digits as a number.
        values = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    return checked({} if values in (None, "") else values, f"{path}: ")


def checked(values: object, where: str) -> dict[str, Any]:
    """A mapping of text as the values of ClusterConfig.  Raises ValueError that begins with `where`."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}write lines of `key: value`")
    hints = get_type_hints(ClusterConfig)
    for key in values.keys() - hints.keys():
        near = difflib.get_close_matches(str(key).replace("-", "_"), hints, 1, cutoff=0.5)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}unknown key {key!r}{meant}  (known are {', '.join(hints)})")
    try:
        out = {key: typed(key, value, hints[key]) for key, value in values.items() if value not in ("", [""])}
        ClusterConfig(**out)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None
    return out


def pairs(words: Sequence[str]) -> dict[str, str]:
    """`["mail-type=END"]` -> `{"mail-type": "END"}`.  An option without a value has none here either."""
    return {name.removeprefix("--"): value for name, _, value in (word.partition("=") for word in words)}


def typed(key: str, value: object, kind: Any) -> Any:
    """A value as it stood in YAML, as this kind.  Raises ValueError."""
    if kind == dict[str, str]:
        if isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
            return {str(k).removeprefix("--").replace("_", "-"): v for k, v in value.items()}
        raise ValueError(f"{key}: write a line `option: value` for each, not {value!r}")
    if kind == tuple[str, ...]:
        words = [value] if isinstance(value, str) else value
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return tuple(words)
        raise ValueError(f"{key}: write a list of words, not {value!r}")
    if not isinstance(value, str):
        raise ValueError(f"{key}: write one value, not {value!r}")
    if kind is bool:
        if value.lower() not in {"true", "false", "yes", "no"}:
            raise ValueError(f"{key}: true or false, not {value!r}")
        return value.lower() in {"true", "yes"}
    if kind is int:
        if not value.isdigit():
            raise ValueError(f"{key}: write a whole number, not {value!r}")
        return int(value)
    return value
