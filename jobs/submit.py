"""Submits a training run, or goes on with it: to Slurm where there is one, else on this machine.

python jobs/submit.py --config configs/vit_b16.yaml --nodes 1 --gpus 4
"""

import platform
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script, with jobs/ in the first place
    sys.path[0] = str(ROOT)

import submitit  # noqa: E402
from jsonargparse import ArgumentParser, Namespace  # noqa: E402

from jobs import clusters  # noqa: E402
from jobs.clusters import Resources  # noqa: E402
from jobs.follow import follow, in_foreground, summary  # noqa: E402
from jobs.job import TrainJob  # noqa: E402
from vit import config, settings  # noqa: E402
from vit.config import Config  # noqa: E402
from vit.data.manifest import check_classes  # noqa: E402
from vit.ledger import InUseError, RunFolder  # noqa: E402

BUDGET = "between two checkpoints; then the run is given up (default: 3)"
PACKAGES = ("vit", "jobs", "data_prep")


def parser() -> ArgumentParser:
    """Every setting of a run, and where it is to run."""
    out = settings.parser("submit.py", (__doc__ or "").partition("\n")[0])
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
    job.add_argument(
        "--time",
        default="24:00:00",
        metavar="LIMIT",
        help="limit of one job: [D-]HH:MM:SS or minutes (default: 24:00:00)",
    )
    job.add_argument("--partition", metavar="NAME", help="Slurm's")
    job.add_argument("--account", metavar="NAME", help="Slurm's")
    job.add_argument("--qos", metavar="NAME", help="Slurm's")
    job.add_argument("--constraint", metavar="FEATURES", help="Slurm's: features that a node must have")
    job.add_argument(
        "--cpus-per-gpu", type=int, default=8, metavar="N", help="CPU cores for each GPU, for decoding (default: 8)"
    )
    job.add_argument(
        "--override-resume", nargs="+", default=[], metavar="SETTING", help="settings that may differ from the run's"
    )
    job.add_argument("--max-restarts", type=int, default=3, metavar="N", help=f"in place, after failures, {BUDGET}")
    job.add_argument("--max-requeues", type=int, default=3, metavar="N", help=f"after failures, {BUDGET}")
    job.add_argument(
        "--max-same-step",
        type=int,
        default=2,
        metavar="N",
        help="failures at the same step between two checkpoints; then the run is given up (default: 2)",
    )
    job.add_argument(
        "--stall-seconds",
        type=float,
        default=60,
        metavar="S",
        help="for which a step may stand still; ten times its usual time if that is more (default: 60)",
    )
    job.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")
    *others, job_group = out._action_groups
    out._action_groups = [*others[:2], job_group, *others[2:]]  # in --help before the settings of the run
    return out


def main(args: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    command = parser()
    cfg, options = settings.parse(command, args)
    try:
        where = clusters.detect() if options.cluster == "auto" else options.cluster
        run, cfg = prepare(cfg, options, where)
        asked = resources(cfg, options)
        if options.dry_run:
            print(clusters.preview(cfg, run, asked, where))
            return 0
        if said := nothing_to_do(cfg, run, where):
            print(said)
            return 0
        job = TrainJob(
            run=str(run.path),
            nodes=options.nodes,
            gpus=options.gpus,
            accepted=tuple(options.override_resume),
            restarts=options.max_restarts,
            requeues=options.max_requeues,
            same_step=options.max_same_step,
            stall_seconds=options.stall_seconds,
        )
        with run.owned():
            if said := nothing_to_do(cfg, run, where):  # by now, after another command at the same moment
                print(said)
                return 0
            freeze(cfg, run)
            if where == "slurm":
                return to_slurm(job, run, asked)
    except (ValueError, InUseError, OSError) as error:
        print(f"submit.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, InUseError) else 2
    return follow(job, run, clusters.local(run, asked)) if where == "local" else in_foreground(job, run)


def prepare(cfg: Config, options: Namespace, where: str) -> tuple[RunFolder, Config]:
    """The run folder and the config with absolute paths.  Raises ValueError for what cannot run as it is asked."""
    for name in ("nodes", "gpus", "cpus_per_gpu"):
        if options[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {options[name]}")
    if options.nodes > 1 and where != "slurm":
        raise ValueError(f"--nodes {options.nodes}: without Slurm there is one node, this machine")
    cfg.check_ranks(options.nodes * options.gpus)
    cfg = replace(cfg, data=replace(cfg.data, train=cfg.data.train.absolute(), val=cfg.data.val.absolute()))
    if cfg.init_from:
        cfg = replace(cfg, init_from=str(Path(cfg.init_from).expanduser().absolute()))
    name = options.name or Path(str(options.config[-1])).stem
    if not re.fullmatch(r"[\w.+=-]+", name):
        raise ValueError(f"--name {name!r}: letters, digits and . _ + = - only")
    run = RunFolder((options.runs_dir / name).absolute())
    if not options.dry_run:
        for path in (cfg.data.train, cfg.data.val):
            check_classes(path, cfg.model.num_classes)
    if run.config.exists():
        before, now = config.recipe(settings.load(run.config)), config.recipe(cfg)
        accepted = set(options.override_resume)
        changed = [f"{k}: {before[k]} there, {now[k]} now" for k in now if before[k] != now[k] and k not in accepted]
        if changed:
            raise ValueError(
                f"{run.path} is a run with other settings:\n  " + "\n  ".join(changed) + "\nGive this one another "
                "--name, or go on with --override-resume " + " ".join(c.split(":")[0] for c in changed)
            )
    return run, cfg


def nothing_to_do(cfg: Config, run: RunFolder, where: str) -> str:
    """Why there is nothing to submit: the run is complete, or Slurm has it already; else nothing."""
    if (event := run.finished()) and config.recipe(settings.load(run.config)) == config.recipe(cfg):
        return f"{run.path} is complete.\n{summary(run, event)}"
    if where == "slurm" and (queued := clusters.in_queue(run)):
        return f"{run.path} is in the queue already.\n{hints(run, queued)}"
    return ""


def resources(cfg: Config, options: Namespace) -> Resources:
    """What the job asks of the cluster.  Raises ValueError for a time limit that cannot be read."""
    return Resources(
        nodes=options.nodes,
        gpus=options.gpus,
        cpus=options.gpus * options.cpus_per_gpu,
        gpu_devices=cfg.device != "cpu",
        minutes=time_limit(options.time),
        partition=options.partition,
        account=options.account,
        qos=options.qos,
        constraint=options.constraint,
    )


def time_limit(text: str) -> int:
    """Minutes of a limit as Slurm writes it: `[D-]HH:MM:SS`, `HH:MM:SS` or minutes.  Raises ValueError."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if match:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return (days * 24 + hours) * 60 + minutes + (seconds > 0)
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise ValueError(f"--time {text!r}: write 24:00:00, 2-00:00:00 or a number of minutes")


def freeze(cfg: Config, run: RunFolder) -> None:
    """Copies config and source into the run folder: later edits of the checkout do not reach a queued run."""
    run.config.write_text(config.to_yaml(cfg))
    shutil.rmtree(run.source, ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, run.source / package, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"] if shutil.which("git") else ["true"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    packages = sorted(f"{d.name}=={d.version}" for d in metadata.distributions())
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"commit: {commit.stdout.strip() or 'not a git checkout'}",
        f"python: {platform.python_version()} ({sys.executable})",
        f"host: {platform.node()} ({platform.platform()})",
        *packages,
    ]
    (run.path / "environment.txt").write_text("\n".join(lines) + "\n")


def to_slurm(job: TrainJob, run: RunFolder, asked: Resources) -> int:
    """Submits, and says what to do next."""
    try:
        submitted = clusters.slurm(run, asked).submit(job)
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        print(f"submit.py: Slurm took no job (--cluster local runs it here):\n{error}", file=sys.stderr)
        return 1
    run.record("submitted", job=submitted.job_id)
    print(f"submitted; the job goes on by itself until the run is finished\n{hints(run, submitted.job_id)}")
    return 0


def hints(run: RunFolder, job: str) -> str:
    """What to type while a job waits or runs."""
    return (
        f"  job     {job}\n"
        f"  watch   tail -F {clusters.relative(run.logs)}/rank-0.log\n"
        f"  queue   squeue --jobs {job}\n"
        f"  stop    scancel {job}   (the same command goes on with the run)"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped before anything was submitted; the same command starts it again")
        sys.exit(130)
