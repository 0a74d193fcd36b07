"""The options of submit.py, beside the settings of the run."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from jobs.login import cluster_config
from jobs.login.cluster_config import ClusterConfig
from vit.config.parser import config_parser

BUDGET = "between two checkpoints; then the run is given up (default: 3)"


def submit_parser(about: str) -> ArgumentParser:
    """Every setting of a run, and where it is to run."""
    out = config_parser("submit.py", about, required=False)
    job = out.add_argument_group("job (where the run is to run)")
    job.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes (default: 1)")
    job.add_argument("--gpus", type=int, default=1, metavar="N", help="GPUs of each node, one rank each (default: 1)")
    job.add_argument(
        "--cluster",
        type=Literal["auto", "slurm", "local", "debug"],
        default="auto",
        help="auto: slurm where there is one, else local; debug: in this process (default: auto)",
    )
    job.add_argument("--name", metavar="NAME", help="name of the run and its folder (default: the config's name)")
    job.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (default: runs)"
    )
    job.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")
    job.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="SETTING=A,B",
        help="a run for each value, of several --sweep for each combination, in one job array",
    )
    job.add_argument(
        "--max-parallel", type=int, metavar="N", help="runs of a sweep that may run at a time (default: all)"
    )
    job.add_argument(
        "--prep", metavar="FILE", help="YAML file of the data sets to write first, as configs/imagenet.yaml"
    )
    job.add_argument(
        "--override-resume", nargs="+", default=[], metavar="SETTING", help="settings that may differ from the run's"
    )
    job.add_argument(
        "--extend",
        type=int,
        metavar="EPOCHS",
        help="train a run on to so many epochs in all; from there on the learning rate is that of the longer schedule",
    )
    job.add_argument("--restart", action="store_true", help="begin afresh in a new folder: NAME-2, NAME-3, …")
    job.add_argument("--max-restarts", type=int, default=3, metavar="N", help=f"in place, after failures, {BUDGET}")
    job.add_argument("--max-requeues", type=int, default=3, metavar="N", help=f"after failures, {BUDGET}")
    job.add_argument(
        "--max-same-step",
        type=int,
        default=2,
        metavar="N",
        help="failures at the same step between two checkpoints, then the run is given up; and by the same exception "
        "before the first step, then the job is requeued, so often too (default: 2)",
    )
    job.add_argument(
        "--stall-seconds",
        type=float,
        default=60,
        metavar="S",
        help="for which a step may stand still; ten times its usual time if that is more (default: 60)",
    )
    job.add_argument("--no-health-check", action="store_true", help="start the ranks without looking over the nodes")
    cluster = out.add_argument_group("cluster (what is asked of Slurm: by a file, and by flags, which go before it)")
    cluster.add_argument(
        "--cluster-config", metavar="NAME", help="a file of configs/clusters, or the path of one: the options below"
    )
    out.explained = (*out.explained, ClusterConfig)
    hints = get_type_hints(ClusterConfig)
    for f in fields(ClusterConfig):
        several: dict[str, Any] = {"nargs": "+"} if hints[f.name] not in (str, int, bool) else {}
        metavar = "OPTION=VALUE" if f.name == "sbatch" else "VALUE"
        # Text: cluster_config reads flags as it reads files.
        cluster.add_argument(f"--{f.name.replace('_', '-')}", metavar=metavar, **several)
    *others, job_group, cluster_group = out._action_groups
    out._action_groups = [*others[:2], job_group, cluster_group, *others[2:]]  # in --help before the run's settings
    return out


def cluster_of(options: Namespace) -> ClusterConfig:
    """What the file and the flags ask of the cluster.  Raises ValueError."""
    return cluster_config.load(options.cluster_config, {f.name: options[f.name] for f in fields(ClusterConfig)})


def check_options(options: Namespace) -> None:
    """Raises ValueError for counts, and for wishes, that make no sense."""
    if options.extend is not None and options.restart:
        raise ValueError("--extend goes on with a run and --restart begins another: choose one of them")
    for name in ("nodes", "gpus", "max_parallel"):
        if options[name] is not None and options[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {options[name]}")
    if options.max_parallel and not options.sweep:
        raise ValueError("--max-parallel is for a --sweep")
    if not options.config and not options.prep:
        raise ValueError("--config FILE is required")
    if options.sweep and not options.config:
        raise ValueError("--sweep needs a --config to sweep over")
