"""Checks a run against its folder: its settings, its data sets, and whether the nodes see the folder."""

import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from jsonargparse import Namespace

from jobs.login.resources import display_path
from jobs.login.sizes import Size
from jobs.node.train_job import TrainJob
from vit.checkpoint import saved_classes
from vit.checkpoint.format import checkpoints_lost, find_checkpoints
from vit.config.parser import load_config
from vit.config.recipe import check_recipe, recipe_of
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.dataset_manifest import check_data_sets, manifest_path, missing_file, missing_files, read_dataset_manifest
from vit.history.few_steps import few_steps_of
from vit.run.counts import counted
from vit.run.disk_errors import explained
from vit.run.folder import RunFolder, recorded_save

# Folders that differ from node to node, whatever file system they are on.
NODE_LOCAL_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
LOCAL_FILE_SYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay"}


def resolve_config(cfg: Config, options: Namespace, pending_data: Collection[Path] = ()) -> Config:
    """The config with absolute paths.  Raises UserError if it cannot run as requested.

    `pending_data` are the data sets that a --prep job will write first; they are not checked.
    """
    if options.extend is not None:
        cfg = replace(cfg, epochs=options.extend)
    cfg.check_mixing()
    cfg = replace(cfg, data=replace(cfg.data, train=cfg.data.train.absolute(), val=cfg.data.val.absolute()))
    if cfg.init_from:
        cfg = replace(cfg, init_from=str(Path(cfg.init_from).absolute()))
    data_sets = [path for path in (cfg.data.train, cfg.data.val) if path not in pending_data]
    try:
        if options.dry_run:  # may be used before the data sets are written, and says what is missing
            data_sets = [path for path in data_sets if not missing_file(path)]
        if data_sets:
            _check_data_sets(cfg.model.num_classes, *data_sets)
    except OSError as error:  # of the data, not of the run folder, for which submit.py has other advice
        raise UserError(explained(error)) from None
    return cfg


def print_remarks(
    runs: Sequence[tuple[RunFolder, Config]],
    options: Namespace,
    pending_data: Collection[Path],
    ranks: int,
    more: Sequence[str] = (),
) -> None:
    """Prints which data sets are missing in a dry run, which new runs have too few steps, and more; each line once."""
    paths = [path for _, cfg in runs for path in (cfg.data.train, cfg.data.val) if path not in pending_data]
    lines = missing_files(paths) if options.dry_run and not options.estimate else []  # which says what it assumes
    trained_on = {cfg.data.train for _, cfg in runs} - {*pending_data}  # once each: a sweep's runs share their data
    images = {path: read_dataset_manifest(path).samples for path in trained_on if not missing_file(path)}
    for run, cfg in runs:
        if cfg.data.train in images and not find_checkpoints(run.checkpoints):
            lines.append(few_steps_of(cfg, images[cfg.data.train], ranks))
    for line in filter(None, dict.fromkeys([*lines, *more])):
        print(f"{'# ' if options.dry_run and not options.estimate else ''}{line}")


_check_data_sets = cache(check_data_sets)  # the runs of a sweep share their data sets


def folder_path(options: Namespace, suffix: str = "") -> Path:
    """The folder of the run, or of the sweep.  Raises UserError for a name with characters that need quoting."""
    name = options.name or Path(str(options.config[-1])).stem + suffix
    if not re.fullmatch(r"(?!-)[\w.+=-]+", name) or name in {".", ".."}:
        raise UserError(f"--name {name!r}: use only letters, digits and . _ + = -, and do not begin with -")
    folder = (options.runs_dir / name).absolute()
    numbered = (folder.with_name(f"{name}-{count}") for count in itertools.count(2))
    return next(new for new in numbered if not _is_used(new)) if options.restart and _is_used(folder) else folder


def _is_used(folder: Path) -> bool:
    """Whether a folder is more than what a submission that failed has left: empty files and folders."""
    return folder.exists() and not (
        folder.is_dir() and {path.name for path in folder.iterdir()} <= {"owner", "submitter", "slurm"}
    )


def allowed_changes(options: Namespace) -> list[str]:
    """Settings that may differ from those of the existing run."""
    return [*options.override_resume, *(["epochs"] if options.extend is not None else [])]


def check_unchanged(cfg: Config, run: RunFolder, options: Namespace) -> None:
    """Raises UserError if the folder holds a run with other settings, or one that has lost its checkpoints.

    A run that never started has nothing to lose: its settings may change freely.
    """
    if not run.config.exists():
        if options.extend is not None:
            raise UserError(
                f"--extend {options.extend}: {display_path(run.path)} is not a run; use --epochs for a new run"
            )
        return
    if options.extend is None and not _has_started(run):
        return
    before, now = recipe_of(load_config(run.config)), recipe_of(cfg)
    if options.extend is not None and options.extend < before["epochs"]:
        raise UserError(
            f"--extend {options.extend}: {display_path(run.path)} has {counted(before['epochs'], 'epoch')}; "
            "use a larger number"
        )
    saved_step = recorded_save(run.events())
    check_recipe(run.path, before, now, allowed_changes(options), bool(saved_step), alternative="another --name")
    if saved_step and not is_complete(cfg, run) and not find_checkpoints(run.checkpoints):
        raise checkpoints_lost(run.checkpoints, saved_step)


def check_class_names(cfg: Config, run: RunFolder, options: Namespace) -> None:
    """Raises UserError if the training set has other classes than the run, or than the head that it would start with.

    A data set that does not exist yet, before a --prep job or in a dry run, is not checked.
    """
    if manifest_path(cfg.data.train).exists():
        saved_classes.check_class_names(run, cfg, allowed_changes(options))


def _has_started(run: RunFolder) -> bool:
    """Whether ranks have trained in this run, even if it has no checkpoint."""
    return run.last("started") is not None or bool(find_checkpoints(run.checkpoints))


def is_complete(cfg: Config, run: RunFolder) -> bool:
    """Whether the run has finished with these settings."""
    return run.finished() is not None and recipe_of(load_config(run.config)) == recipe_of(cfg)


def train_job(run: RunFolder, options: Namespace, size: Size) -> TrainJob:
    """The job to submit, in this size."""
    return TrainJob(
        run=str(run.path),
        nodes=size.nodes,
        gpus=size.gpus,
        gpu_type=size.gpu_type,
        min_gain_minutes=options.min_gain,
        exclude_slow=options.exclude_slow,
        accepted=tuple(allowed_changes(options)),
        restarts=options.max_restarts,
        requeues=options.max_requeues,
        same_step=options.max_same_step,
        stall_seconds=options.stall_seconds,
        health=not options.no_health_check,
    )


def shared_folder_warning(path: Path) -> str:
    """Why the compute nodes may not see this folder, as far as this machine can tell; "" if there is no sign of it."""
    if any(path.is_relative_to(folder) for folder in NODE_LOCAL_FOLDERS):
        return f"{display_path(path)} is on a node-local disk; use a --runs-dir that all nodes share"
    kind = file_system(path)
    if kind in LOCAL_FILE_SYSTEMS:
        return f"{display_path(path)} is on a local file system ({kind}); the job fails unless its nodes mount it too"
    return ""


def file_system(path: Path) -> str:
    """The type of the file system that holds a path: `nfs4`, `lustre`, `ext4`, …"""
    longest, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, type_, *_ = line.split()
        mount = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), mount)
        if path.is_relative_to(mount) and len(mount) >= len(longest):
            longest, kind = mount, type_
    return kind
