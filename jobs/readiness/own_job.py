"""Small jobs of `doctor.py`: submitted with the options of a run, in a folder of their own, and canceled at the end."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from submitit.slurm.slurm import _make_sbatch_string

from jobs.login import sbatch
from jobs.login.resources import Resources
from jobs.login.sbatch_environment import sbatch_environment
from jobs.login.slurm_queries import (
    TIMEOUT_SECONDS,
    SlurmNotFoundError,
    SlurmUnreachableError,
    queued_jobs,
    rejection_message,
)
from jobs.slurm import client, scontrol, submission
from vit.run.folder import RunFolder

END_SECONDS, REMOVAL_SECONDS = 40.0, 5.0  # for a canceled job to end; for its last files to be removed


class OwnJobError(RuntimeError):
    """The job could not be run; the message says why."""


@contextmanager
def own_folder(runs: Path) -> Iterator[Path]:
    """A folder on the disk that the nodes share; removed afterwards.  Raises OwnJobError if it cannot be created."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=runs.absolute()))
    except OSError as error:
        raise OwnJobError(f"{runs} cannot be written: {error.strerror}") from None
    try:
        yield folder
    finally:
        deadline = time.monotonic() + REMOVAL_SECONDS
        while folder.exists() and time.monotonic() < deadline:  # processes of the job may still write
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.1)


def submit(resources: Resources, folder: Path, command: str, name: str) -> str:
    """Submits a job that runs a shell command on each node, and returns its id.  Raises OwnJobError."""
    options = sbatch.parameters(resources, [RunFolder(folder)])
    options |= {"job_name": name, "setup": resources.cluster.setup_commands(), "teardown": []}
    script = folder / "job.sh"
    script.write_text(_make_sbatch_string(command, folder, **options))
    with sbatch_environment({*options, *options["additional_parameters"]}):
        done = _run("sbatch", str(script))
    if done.returncode:
        raise OwnJobError(rejection_message(done.stderr, resources.cluster))
    accepted = submission.submitted_job(done.stdout)
    if accepted is None:
        raise OwnJobError(f"sbatch did not say the number of the job: {done.stdout.strip() or 'it printed nothing'}")
    return accepted.job


@contextmanager
def own_process(command: list[str], output: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs a command on this machine, with its output in a file; ends it and its children afterwards."""
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def end_job(job: str) -> None:
    """Cancels a job and waits until it has ended, for a limited time."""
    deadline = time.monotonic() + END_SECONDS
    with suppress(OwnJobError, SlurmNotFoundError, SlurmUnreachableError):
        call_slurm("scancel", job)
        while job in queued_jobs({job}) and time.monotonic() < deadline:
            time.sleep(0.3)


def why_not_running(job: str, folder: Path) -> str:
    """Slurm's reason for a job that waits, or the last lines of the output of one that has ended."""
    if (found := queued_jobs({job}).get(job)) is not None:
        return f"is {found.state.lower()} ({found.reason})"
    texts = []
    with suppress(OSError):
        texts = [file.read_text(errors="replace").strip() for file in sorted(folder.glob("*.out"))]
    if not texts:  # not even an empty file: the node could not create it
        where = _node_of(job)
        return f"ended without a file of its output: {where} probably does not see {folder.parent}; see sacct -j {job}"
    lines = [line for line in "\n".join(texts).splitlines() if line.strip()]
    return f"ended before Python ran: {'; '.join(lines[-3:]) or f'no output; see sacct -j {job}'}"


def _node_of(job: str) -> str:
    """The node on which a job's script ran, for messages."""
    facts = scontrol.facts_of(_run(*scontrol.JOB, job).stdout)
    return f"node {facts['BatchHost']}" if "BatchHost" in facts else "its node"


def call_slurm(*command: str) -> str:
    """Runs one of Slurm's commands; returns what it says if it fails."""
    done = _run(*command)
    return done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr.strip() else ""


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Raises SlurmNotFoundError, OwnJobError if Slurm does not respond."""
    try:
        return subprocess.run(
            command, env=client.environment(), capture_output=True, text=True, errors="replace",
            timeout=4 * TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmNotFoundError(f"Slurm is not installed on this machine: {command[0]} was not found") from None
    except subprocess.TimeoutExpired:
        raise OwnJobError(f"Slurm does not respond to `{' '.join(command)}`") from None
