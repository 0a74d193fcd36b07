"""Runs Slurm's commands from inside of a job; in a container that has none, its batch script runs them.

A command is a file `N.sh` in a folder that both see; the batch script answers with `N.out`, `N.err` and `N.code`.
"""

import itertools
import os
import shlex
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from jobs.slurm import client, errors

COMMAND_SECONDS = 60  # timeout of one command
POLL_SECONDS = 0.1
FOLDER_VARIABLE = "VIT_SLURM_COMMANDS"  # the folder of this job's commands
# Lines of the batch script of a job in a container, for `sbatch.py`; `$source` is a folder in the run folder.  The
# commands go on after SIGTERM: that is when a job that ends tells the others.  Slurm kills the loop with the job.
RUN_COMMANDS = (
    f'export {FOLDER_VARIABLE}="${{source%/source}}/slurm/commands-$SLURM_JOB_ID"',
    f'mkdir -p "${FOLDER_VARIABLE}"',
    "run_commands() {",
    "  trap '' TERM",
    f'  while cd "${FOLDER_VARIABLE}"; do',
    "    for file in *.sh; do",
    '      [ -e "$file" ] || continue',
    '      name=${file%.sh}; sh "$file" >"$name.out" 2>"$name.err"; echo $? >"$name.new"',
    '      rm -f "$file"; mv "$name.new" "$name.code"',
    "    done",
    "    sleep 0.2",
    "  done",
    "}",
    "run_commands &",
)
_numbers = itertools.count()


def has_commands() -> bool:
    """Whether this process can run Slurm's commands, by itself or by its batch script."""
    return shutil.which("scontrol") is not None or FOLDER_VARIABLE in os.environ


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Runs one of Slurm's commands; one that does not end in COMMAND_SECONDS has failed."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and shutil.which(command[0]) is None:
        with suppress(OSError):
            return _run_outside(Path(folder), command)
        return subprocess.CompletedProcess(command, 1, "", f"{folder} cannot be used")
    try:
        return subprocess.run(
            command, env=client.environment(), capture_output=True, text=True, errors="replace",
            timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no response within {COMMAND_SECONDS} s")
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def refusal(*command: str) -> str:
    """Runs one of Slurm's commands; returns why Slurm refused, or ""."""
    done = run(*command)
    return errors.refusal(done.returncode, done.stderr)


def _run_outside(folder: Path, command: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
    name = f"{os.getpid()}-{next(_numbers)}"
    files = {suffix: folder / f"{name}.{suffix}" for suffix in ("sh", "out", "err", "code")}
    aside = folder / f"{name}.tmp"
    aside.write_text(f"{shlex.join(command)}\n")
    aside.rename(files["sh"])
    deadline = time.monotonic() + COMMAND_SECONDS
    try:
        while files["code"].name not in os.listdir(folder):  # a client of NFS may know an old list of names
            if time.monotonic() > deadline:
                return subprocess.CompletedProcess(command, 1, "", f"no response within {COMMAND_SECONDS} s")
            time.sleep(POLL_SECONDS)
        code = int(files["code"].read_text())
        return subprocess.CompletedProcess(command, code, files["out"].read_text(), files["err"].read_text())
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)
