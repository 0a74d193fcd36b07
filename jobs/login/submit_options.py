"""The command-line options of submit.py, in addition to the settings of the run."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from jsonargparse import Namespace

from jobs.login import cluster_config
from jobs.login.cluster_config import ClusterConfig
from jobs.login.sizes import requested_sizes
from vit.config.parser import Parser, config_parser
from vit.config.paths import user_path
from vit.config.user_error import UserError
from vit.run.console import started_as


def submit_parser(description: str) -> Parser:
    """A parser for every setting of a run, and for the job that runs it."""
    out = config_parser(started_as("submit.py"), description, required=False)
    job = out.add_argument_group("job (where and how the run is executed)")
    _add_job_options(job)
    existing = out.add_argument_group("existing runs (submitting the same command again resumes a run)")
    _add_existing_run_options(existing)
    failures = out.add_argument_group("failures (when to restart, requeue or give up)")
    _add_failure_options(failures)
    add_cluster_options(out)
    general, groups = out._action_groups[:2], out._action_groups[2:]
    out._action_groups = [*general, *groups[-4:], *groups[:-4]]  # show them in --help before the run's settings
    return out


def add_cluster_options(parser: Parser) -> None:
    """Adds --cluster-config, and an option for each of its keys; `load_cluster` reads them."""
    cluster = parser.add_argument_group("cluster (what the job requests from Slurm)")
    cluster.add_argument(
        "--cluster-config",
        metavar="NAME",
        help="YAML file with the options below: a name in configs/clusters or a path; options given on the command "
        "line override it",
    )
    parser.option_classes = (*parser.option_classes, ClusterConfig)
    types = get_type_hints(ClusterConfig)
    for f in fields(ClusterConfig):
        multiple: dict[str, Any] = {"nargs": "+"} if types[f.name] not in (str, int, bool) else {}
        metavar = "OPTION=VALUE" if f.name == "sbatch" else "VALUE"
        # No `type`: cluster_config converts text from the command line and from files in the same way.
        cluster.add_argument(f"--{f.name.replace('_', '-')}", metavar=metavar, **multiple)


def add_size_options(group: Any) -> None:
    """Adds --nodes and --gpus."""
    group.add_argument(
        "--nodes", type=str, default="1", metavar="N", help="number of nodes, or a range such as 1-2 (default: 1)"
    )
    group.add_argument(
        "--gpus",
        type=str,
        default="1",
        metavar="N",
        help="GPUs per node; each runs one rank.  With a range such as 1-4, or types as in a100:4,v100:2, one job for "
        "each size is submitted, and the run uses whatever starts first (default: 1)",
    )


def add_runs_dir(group: Any) -> None:
    """Adds --runs-dir."""
    group.add_argument(
        "--runs-dir",
        type=user_path,
        default=Path("runs"),
        metavar="DIR",
        help="folder that holds the run folders; all nodes must share it (default: runs)",
    )


def _add_job_options(group: Any) -> None:
    add_size_options(group)
    group.add_argument(
        "--cluster",
        type=Literal["auto", "slurm", "local", "debug"],
        default="auto",
        help="slurm: submit to Slurm; local: run on this machine; debug: run in this process, for debuggers; auto: "
        "slurm if it is available, else local (default: auto)",
    )
    group.add_argument(
        "--name", metavar="NAME", help="name of the run and of its folder (default: name of the config file)"
    )
    add_runs_dir(group)
    group.add_argument(
        "--min-gain",
        type=float,
        default=5,
        metavar="MINUTES",
        help="with several sizes: a smaller job hands the run over to a larger one if the run then ends at least "
        "MINUTES earlier (default: 5)",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="print the config and the sbatch script without submitting"
    )
    group.add_argument(
        "--estimate",
        action="store_true",
        help="print time, GPU-hours, disk and time in the queue for each number of GPUs, and submit nothing",
    )
    group.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="SETTING=A,B",
        help="submit one run per value, as a job array; repeat the option to sweep over all combinations",
    )
    group.add_argument(
        "--max-parallel",
        type=int,
        metavar="N",
        help="maximum number of runs of a sweep that run at the same time (default: all)",
    )
    group.add_argument(
        "--prep",
        type=user_path,
        metavar="FILE",
        help="YAML file of data sets to write first, such as configs/imagenet.yaml; training waits for them",
    )


def _add_existing_run_options(group: Any) -> None:
    group.add_argument(
        "--override-resume",
        nargs="+",
        default=[],
        metavar="SETTING",
        help="resume the run although these settings differ from those it was started with",
    )
    group.add_argument(
        "--extend",
        type=int,
        metavar="EPOCHS",
        help="continue the run until EPOCHS epochs in total; from the current step on, the learning rate "
        "follows the schedule of a run of that length",
    )
    group.add_argument(
        "--restart", action="store_true", help="start again in a new folder (NAME-2, NAME-3, …) instead of resuming"
    )


def _add_failure_options(group: Any) -> None:
    group.add_argument(
        "--max-restarts",
        type=int,
        default=3,
        metavar="N",
        help="restarts in place after failures, without a new checkpoint in between; then the job is requeued, or "
        "without Slurm the run is given up (default: 3)",
    )
    group.add_argument(
        "--max-requeues",
        type=int,
        default=3,
        metavar="N",
        help="requeues after failures, without a new checkpoint in between; then the run is given up (default: 3)",
    )
    group.add_argument(
        "--max-same-step",
        type=int,
        default=2,
        metavar="N",
        help="failures at the same step, without a new checkpoint in between; then the run is given up.  Before the "
        "first step: failures with the same exception; then the job is requeued, up to N times (default: 2)",
    )
    group.add_argument(
        "--stall-seconds",
        type=float,
        default=60,
        metavar="S",
        help="restart the ranks if a step takes longer than S seconds, or than ten times the longest step so far if "
        "that is more; rare phases such as evaluation may take ten times as long (default: 60)",
    )
    group.add_argument(
        "--exclude-slow",
        action="store_true",
        help="requeue without the nodes whose ranks were slower than the others (default: they are only reported)",
    )
    group.add_argument(
        "--no-health-check", action="store_true", help="skip the check of GPUs, memory, disk and network on each node"
    )


def load_cluster(options: Namespace) -> ClusterConfig:
    """The cluster's file, overridden by command-line options.  Raises UserError."""
    return cluster_config.load(options.cluster_config, {f.name: options[f.name] for f in fields(ClusterConfig)})


def names_cluster(options: Namespace) -> bool:
    """Whether options make sense only on a cluster: a machine without Slurm must not train in its place."""
    return any(options[name] is not None for name in ("cluster_config", "partition", "account", "qos"))


def check_options(options: Namespace) -> None:
    """Raises UserError for invalid counts and for options that contradict each other."""
    if options.estimate:
        if not options.config:
            raise UserError("--estimate requires --config FILE: it estimates a training run")
        options.dry_run = True  # nothing is written, and data sets need not exist
    if options.extend is not None and options.restart:
        raise UserError("--extend continues a run and --restart starts a new one; use only one of them")
    requested = requested_sizes(options.nodes, options.gpus)
    at_least_one = ("max_parallel", "extend", "max_same_step")
    for name in (*at_least_one, "max_restarts", "max_requeues"):
        least = int(name in at_least_one)
        if options[name] is not None and options[name] < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {options[name]}")
    if not 0 < options.stall_seconds < math.inf:
        raise UserError(f"--stall-seconds must be positive, not {options.stall_seconds:g}")
    if not 0 <= options.min_gain < math.inf:
        raise UserError(f"--min-gain must be a number of minutes, at least 0, not {options.min_gain:g}")
    if options.max_parallel and not options.sweep:
        raise UserError("--max-parallel requires --sweep")
    if options.max_parallel and requested.is_elastic:
        raise UserError(
            f"--max-parallel {options.max_parallel} requires a single size: Slurm limits each job array alone, and "
            f"{requested.text} submits one for each size"
        )
    if not options.config and not options.prep:
        raise UserError("--config FILE is required")
    if options.sweep and not options.config:
        raise UserError("--sweep requires --config")
