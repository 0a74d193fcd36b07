"""From a config to a run folder that can be submitted: what is refused, what is done already, and what is frozen."""

import itertools
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

from jsonargparse import Namespace

from jobs.login.resources import relative
from jobs.node.train_job import TrainJob
from vit.config import schema
from vit.config.parser import load_config
from vit.config.schema import Config
from vit.data.dataset_manifest import check_classes
from vit.run.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vit", "jobs", "data_prep")
# A node sees its own, whatever the one that submits has there.
OF_ONE_NODE = ("/tmp", "/var/tmp", "/dev/shm", "/run")
LOCAL_TYPES = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay"}


def resolved(cfg: Config, options: Namespace, where: str, coming: Collection[Path] = ()) -> Config:
    """The config with absolute paths.  Raises ValueError for what cannot run as it is asked; `coming` are data sets
    that a job before it writes."""
    if options.nodes > 1 and where != "slurm":
        raise ValueError(f"--nodes {options.nodes}: without Slurm there is one node, this machine")
    if options.extend is not None:
        cfg = replace(cfg, epochs=options.extend)
    cfg.check_ranks(options.nodes * options.gpus)
    cfg = replace(cfg, data=replace(cfg.data, train=cfg.data.train.absolute(), val=cfg.data.val.absolute()))
    if cfg.init_from:
        cfg = replace(cfg, init_from=str(Path(cfg.init_from).expanduser().absolute()))
    if not options.dry_run:
        for path in (cfg.data.train, cfg.data.val):
            if path not in coming:
                _check_classes(path, cfg.model.num_classes)
    return cfg


_check_classes = cache(check_classes)  # a sweep asks for the same ones many times


def folder_of(options: Namespace, suffix: str = "") -> Path:
    """The run's folder, or the sweep's.  Raises ValueError for a name that a shell would not like."""
    name = options.name or Path(str(options.config[-1])).stem + suffix
    if not re.fullmatch(r"[\w.+=-]+", name):
        raise ValueError(f"--name {name!r}: letters, digits and . _ + = - only")
    folder = (options.runs_dir / name).absolute()
    again = (folder.with_name(f"{name}-{count}") for count in itertools.count(2))
    return next(new for new in again if not new.exists()) if options.restart and folder.exists() else folder


def accepted(options: Namespace) -> list[str]:
    """The settings that may differ from the run's."""
    return [*options.override_resume, *(["epochs"] if options.extend is not None else [])]


def check_same(cfg: Config, run: RunFolder, options: Namespace) -> None:
    """Raises ValueError if the folder holds a run with other settings, apart from those that are accepted."""
    if not run.config.exists():
        if options.extend is not None:
            new = "--epochs says it of a new one"
            raise ValueError(f"--extend {options.extend}: {relative(run.path)} is no run; {new}")
        return
    before, now = schema.recipe(load_config(run.config)), schema.recipe(cfg)
    if options.extend is not None and options.extend < before["epochs"]:
        raise ValueError(f"--extend {options.extend}: {relative(run.path)} has {before['epochs']} epochs; name more")
    may = accepted(options)
    changed = [f"{k}: {before[k]} there, {now[k]} now" for k in now if before[k] != now[k] and k not in may]
    if changed:
        raise ValueError(
            f"{run.path} is a run with other settings:\n  " + "\n  ".join(changed) + "\nGive this one another "
            "--name, or go on with --override-resume " + " ".join(c.split(":")[0] for c in changed)
        )


def is_complete(cfg: Config, run: RunFolder) -> bool:
    """Whether the run is finished, with these settings."""
    return run.finished() is not None and schema.recipe(load_config(run.config)) == schema.recipe(cfg)


def train_job(run: RunFolder, options: Namespace) -> TrainJob:
    """What is submitted."""
    return TrainJob(
        run=str(run.path),
        nodes=options.nodes,
        gpus=options.gpus,
        accepted=tuple(accepted(options)),
        restarts=options.max_restarts,
        requeues=options.max_requeues,
        same_step=options.max_same_step,
        stall_seconds=options.stall_seconds,
        health=not options.no_health_check,
    )


def freeze(run: RunFolder, text: str) -> None:
    """Copies config and source into the run folder: later edits of the checkout do not reach a queued run."""
    if run.finished():
        run.record("reopened")  # there is more to do than when it was finished
    run.config.write_text(text)
    shutil.rmtree(run.source, ignore_errors=True)
    with ThreadPoolExecutor() as beside:  # git looks at every file
        environment = beside.submit(_environment)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, run.source / package, ignore=shutil.ignore_patterns("__pycache__"))
    (run.path / "environment.txt").write_text(environment.result())


@cache
def _environment() -> str:
    """The command, the commit, and every package that is installed."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"] if shutil.which("git") else ["true"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"commit: {commit.stdout.strip() or 'not a git checkout'}",
        f"python: {platform.python_version()} ({sys.executable})",
        f"host: {platform.node()} ({platform.platform()})",
        *_packages(),
    ]
    return "\n".join(lines) + "\n"


def _packages() -> list[str]:
    """`name==version` of all that is installed, from the names of folders alone: reading each would take a while."""
    found = [info.name for path in sys.path if path for info in Path(path).glob("*.dist-info")]
    return sorted("==".join(name.removesuffix(".dist-info").rsplit("-", 1)) for name in found)


def unshared(path: Path) -> str:
    """Why the nodes may not see this folder, as far as that can be told from here; else nothing."""
    if any(path.is_relative_to(folder) for folder in OF_ONE_NODE):
        return f"{relative(path)} is on a disk that each node has for itself: choose a --runs-dir that all nodes share"
    kind = _file_system(path)
    if kind in LOCAL_TYPES:
        return f"{relative(path)} is on {kind}, a file system of this machine: the job fails unless its nodes mount it"
    return ""


def _file_system(path: Path) -> str:
    """The kind of file system that holds a path: `nfs4`, `lustre`, `ext4`, …"""
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, type_, *_ = line.split()
        mount = mount.replace("\\040", " ")
        if path.is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, type_
    return kind
