"""Writes a cluster's options as a YAML file with comments, for `doctor.py --write`."""

from dataclasses import fields
from pathlib import Path

import yaml

from jobs.login.cluster_config import CLUSTERS_FOLDER, LOCAL_FOLDER, ClusterConfig
from vit.config.own_files import is_checkout


def cluster_path(name: str) -> Path:
    """The file of a cluster: in a checkout, or else in the working directory."""
    return (CLUSTERS_FOLDER if is_checkout() else LOCAL_FOLDER) / f"{name}.yaml"


def write_cluster_file(name: str, cluster: ClusterConfig) -> Path:
    """Writes `configs/clusters/NAME.yaml` and returns its path.  Raises FileExistsError, OSError."""
    path = cluster_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x") as file:
        file.write(render(name, cluster))
    return path


def render(name: str, cluster: ClusterConfig) -> str:
    """The options that differ from the defaults, and `signal`; each with its comment in generic.yaml."""
    comments = _comments()
    rows = []
    for f in fields(cluster):
        value = getattr(cluster, f.name)
        default = f.default if f.default_factory is not dict else {}
        if f.name == "signal" or value != default:
            rows.append((f"{f.name}: {_scalar(value)}", comments.get(f.name, "")))
    width = max(len(setting) for setting, _ in rows)
    lines = [f"{setting:{width}}   # {comment}" if comment else setting for setting, comment in rows]
    head = f"# python jobs/submit.py --cluster-config {name} --config configs/vit_b16.yaml --nodes 1 --gpus 4"
    return "\n".join([head, "# Proposed by python jobs/doctor.py --preempt; all keys: generic.yaml", *lines]) + "\n"


def _comments() -> dict[str, str]:
    """The comment of each key in generic.yaml."""
    lines = (CLUSTERS_FOLDER / "generic.yaml").read_text().splitlines()
    split = [line.partition("#") for line in lines if line and not line.startswith("#")]
    return {setting.partition(":")[0]: " ".join(comment.split()) for setting, _, comment in split}


def _scalar(value: object) -> str:
    """A value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
