"""submit.py in a process of its own, with stand-ins for Slurm's commands, in which a chosen change of a file fails.

Python reports every change of a file to an audit hook before it is made: the hook counts, raises or kills.
"""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TextIO

from tests.helpers.paths import CHECKOUT

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Accepts each job, unless there is a file `reject`; no job stays in the queue.
SBATCH = """#!/bin/sh
cd "$(dirname "$0")"
echo sbatch >> calls
[ ! -e reject ] || { echo 'sbatch: error: Invalid account or account/partition combination specified' >&2; exit 1; }
n=$(($(cat number 2>/dev/null || echo 100) + 1)); echo $n > number
echo "Submitted batch job $n"
"""

# The controller does not respond any more once there are as many jobs as the file `responds` says.
DOWN = """#!/bin/sh
cd "$(dirname "$0")"
if [ $(ls queue 2>/dev/null | wc -l) -ge $(cat responds 2>/dev/null || echo 1000) ]; then
  echo 'error: Unable to contact slurm controller (connect failure)' >&2; exit 1
fi
"""
# Jobs stay in the queue until they are canceled; `--hold` holds them until they are released.
QUEUE = {
    "sbatch": DOWN
    + """
n=$(($(cat number 2>/dev/null || echo 100) + 1)); echo $n > number
mkdir -p queue
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
ids=$n
[ -z "$last" ] || ids=$(seq -f ${n}_%g 0 $last)
for id in $ids; do
  echo "$1" > queue/$id
  if grep -q '^#SBATCH --hold' "$1"; then touch held-$id; fi
done
echo "Submitted batch job $n"
""",
    "squeue": DOWN
    + """
all=$*
jobs=${all##*--jobs }
for job in $(ls queue 2>/dev/null); do
  case "$all" in *--jobs*) case ",$jobs," in *,$job,*|*,${job%_*},*) ;; *) continue ;; esac ;; esac
  reason=None; [ ! -e held-$job ] || reason=JobHeldUser
  case "$all" in *%o*) echo "$job|$(cat queue/$job)" ;; *) echo "$job|PENDING|$reason||N/A" ;; esac
done
""",
    "scancel": DOWN
    + """
for job in "$@"; do rm -f queue/$job queue/${job}_* held-$job held-${job}_*; done
""",
    "scontrol": DOWN
    + """
for job in $(echo "$2" | tr , ' '); do rm -f held-$job held-${job}_*; done
""",
    "sinfo": "#!/bin/sh\n",
}

Effect = Literal["fail once", "fail from then on", "kill"]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int  # negative: the signal that ended it
    printed: str
    changes: list[str]  # that it made or tried to make in the run folder, and calls of sbatch and scontrol


def install_slurm(folder: Path, keeps_jobs: bool = False) -> dict[str, str]:
    """Writes stand-ins for Slurm's commands; returns the environment in which they are found.

    With `keeps_jobs` there is a queue: a file for each job, in `queue`.
    """
    folder.mkdir()
    if keeps_jobs:
        for name, text in QUEUE.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        return {"PATH": f"{folder}:{os.environ['PATH']}"}
    for name in ("sbatch", "sinfo", "squeue", "scancel", "scontrol"):
        (folder / name).write_text(
            SBATCH if name == "sbatch" else f'#!/bin/sh\necho {name} >> "$(dirname "$0")/calls"\n'
        )
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


class FaultySubmit:
    """Runs submit.py in forks of one process that has imported it.  Source code is copied from `checkout`.

    `prefix` is a command that starts the process with other privileges.
    """

    def __init__(self, checkout: Path, prefix: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.helpers.faulty_submit", str(checkout)],
            cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def submit(
        self,
        arguments: Sequence[str],
        cwd: Path,
        run: Path,
        environment: Mapping[str, str],
        fault: tuple[int, Effect] | None = None,
    ) -> Outcome:
        """Runs the command; with a fault, its n-th change of a file of the run (counted from 0) does not happen."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        stdin.write(json.dumps([list(arguments), str(cwd), str(run), dict(environment), fault]) + "\n")
        stdin.flush()
        return Outcome(**json.loads(stdout.readline()))

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def main(checkout: Path) -> None:
    """The process: one command for each line of its standard input."""
    from jobs import submit as command
    from jobs.login import held_jobs, run_files
    from vit.config import parser
    from vit.run.folder import RunFolder

    run_files.ROOT, held_jobs.RELEASE_SECONDS = checkout, 1.0
    run_files._environment()
    # Forks inherit what is parsed here, which takes most of the command's time.
    parse = cache(lambda words: parser.parse_config(command.submit_parser(""), list(words)))
    command.parse_config = lambda _, words, complete=None: parse(tuple(words))
    parser.config_parser = cache(parser.config_parser)
    for line in sys.stdin:
        arguments, cwd, run, environment, fault = json.loads(line)
        parse(tuple(arguments))
        parser.config_parser(str(RunFolder(Path(run)).config))
        with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as changes:
            if (child := os.fork()) == 0:
                os.chdir(cwd)
                os.environ.update(environment)
                os.dup2(printed.fileno(), 1)
                os.dup2(printed.fileno(), 2)
                sys.addaudithook(_hook(run, changes, *(fault or (-1, ""))))
                try:
                    os._exit(command.main(arguments))
                except SystemExit as ended:
                    os._exit(int(str(ended.code)))
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                finally:
                    sys.stdout.flush()
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            texts = []
            for file in (printed, changes):
                file.seek(0)
                texts.append(file.read())
        answer = {"code": code, "printed": texts[0], "changes": texts[1].splitlines()}
        print(json.dumps(answer), flush=True)


def _hook(run: str, changes: TextIO, number: int, effect: str) -> Callable[[str, tuple[Any, ...]], None]:
    count = itertools.count()

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if change := _change(event, values, run):
            done = next(count)
            os.write(changes.fileno(), f"{change}\n".encode())
            if done == number and effect == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if done == number or (done > number >= 0 and effect == "fail from then on"):
                raise OSError(errno.EIO, os.strerror(errno.EIO), change)

    return hook


def _change(event: str, values: tuple[Any, ...], run: str) -> str:
    """What is about to be changed in the run folder, or ""."""
    program = str(values[0]).rpartition("/")[2] if values else ""
    if event == "subprocess.Popen" and program in ("sbatch", "scontrol") and "show" not in values[1]:
        return program
    path = str(values[0]) if values else ""
    if event == "open" and isinstance(values[2], int) and values[2] & WRITING and path.startswith(run):
        return f"write {path.removeprefix(run)}"
    if event in CHANGES and path.startswith(run):
        return f"{event.removeprefix('os.')} {path.removeprefix(run)}"
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
