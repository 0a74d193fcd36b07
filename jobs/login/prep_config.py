"""The job that writes the data sets: what a YAML file asks of data_prep.write_beton, and how it survives Slurm."""

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import yaml
from submitit.helpers import DelayedSubmission

from jobs.login import cluster_config
from jobs.node import slurm_job
from jobs.node.restart_policy import wordless
from jobs.node.signals import back_to_queue
from vit.run.folder import RunFolder

CPUS = 16  # where the file says nothing
MAX_WORDLESS = 3  # starts in a row that were killed from outside; then the job is given up


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


def load(path: Path) -> Prep:
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
    from data_prep.manifest import already_there  # numpy and Pillow, which training's submission does without
    from data_prep.options import parsed

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


def command(arguments: Sequence[str], cpus: int) -> list[str]:
    """What writes a data set, or goes on with it."""
    workers = [] if "--workers" in arguments else ["--workers", str(cpus)]
    return [sys.executable, "-u", "-m", "data_prep.write_beton", *arguments, *workers]


def here(prep: Prep) -> int:
    """Writes what is left on this machine; returns the exit code."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for one in prep.left:
        done = subprocess.run(command(one.arguments, len(os.sched_getaffinity(0))), env=environment, check=False)
        if done.returncode:
            return done.returncode
    return 0


class PrepFailedError(RuntimeError):
    """A data set could not be written."""


@dataclass(frozen=True)
class PrepJob:
    """One task.  `write_beton` goes on where it was, whatever ended it: all there is to do is to call it again."""

    run: str  # its folder
    sets: tuple[tuple[str, ...], ...]  # the arguments of write_beton for each
    cpus: int

    def __call__(self) -> str:
        """Writes what is left; returns "finished" or "stopped".  Raises PrepFailedError."""
        folder = RunFolder(Path(self.run))
        if (killed := wordless(folder.events())) > MAX_WORDLESS:
            self._give_up(
                f"{killed} starts in a row were killed from outside; perhaps they need more memory (job: mem)"
            )
        folder.record("supervising", life=slurm_job.life(), node=slurm_job.node())
        stopped: list[int] = []

        def stop(number: int, _: FrameType | None) -> None:
            stopped.append(number)
            _terminate()

        signal.signal(signal.SIGTERM, stop)
        for arguments in self.sets:
            code = 0 if stopped else _write(command(arguments, int(os.environ.get("SLURM_CPUS_PER_TASK", self.cpus))))
            if stopped:
                folder.record("stopped")
                back_to_queue()
                return "stopped"
            if code:
                self._give_up(
                    f"write_beton {shlex.join(arguments)} ended with {code}; {folder.jobs} holds what it said"
                )
        folder.record("finished")
        return "finished"

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit at preemption or near the time limit: what is written stays, the same job goes on."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _terminate()
        while any(_alive(process.pid) for process in _writers):  # not `wait`, whose lock the interrupted one holds
            time.sleep(0.05)
        RunFolder(Path(self.run)).record("stopped")
        if slurm_job.is_mute() or not slurm_job.answers():
            os._exit(slurm_job.REQUEUED)  # submitit asks once: the batch script does it, as soon as it is heard
        return DelayedSubmission(self)

    def _give_up(self, why: str) -> None:
        RunFolder(Path(self.run)).record("gave up", why=why)
        raise PrepFailedError(why)


_writers: list["subprocess.Popen[bytes]"] = []


def _write(words: Sequence[str]) -> int:
    # Slurm signals all processes of a job: the writer ignores the signal that is meant for submitit.
    _writers[:] = [subprocess.Popen(["sh", "-c", f"trap '' USR2; exec {shlex.join(words)}"])]
    return _writers[0].wait()


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _terminate() -> None:
    """Ends the writer, which keeps what it has."""
    for process in _writers:
        process.terminate()
