"""Time, memory and file operations of the commands in a runs folder as months of work leave it.

    python benchmarks/many_runs.py [--quick] [--runs N] [--ledger LINES] [--checkpoints N]

The folder has 1,000 runs with learning curves of 3,000 records; one of them has a ledger of 10,000 lines and 1,000
checkpoint folders.  Slurm's commands are stand-ins that answer at once.  `seconds` is processor time, which other load
on the machine disturbs less than the time that passes; `imports` is what the same command needs for `--help`.  `opens`
and `stats` count files that are opened or listed, and those whose size or time is asked, by `strace` if it is
installed: on a file server they take longer than all else.  The last line is one JSON object.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from benchmarks.measured.machine import machine, save_figures
from benchmarks.on_gpu.images import make_data
from tests.helpers.faulty_submit import install_slurm
from tests.helpers.many_runs import LONG, write_long_run, write_many_runs
from vit.config.parser import load_config
from vit.run.command import run_command

SECONDS, MEGABYTES = 1.0, 200.0  # the bounds
# What is measured inside of a process that has imported what it needs, as a rank or a supervisor has.
INSIDE = """
import json, resource, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
{imports}
from vit.run.folder import RunFolder
run, runs = RunFolder(Path(sys.argv[2]) / {long!r}), Path(sys.argv[2])
{before}
began = time.process_time()
{measured}
print(json.dumps([time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""
SUPERVISOR = (
    "from jobs.node.restart_policy import *",
    "",
    "events = run.events(); count_silent_starts(events); run.finished()\n"
    "decide(events, Failure(kind='signal', node='n1', rank=0, reason='killed', step=5), RetryLimits(), '7.1', True)",
)
TRAINER = (
    "from vit.checkpoint.format import find_checkpoints, remove_partial_saves\n"
    "from vit.run.folder import recorded_save\nfrom vit.run.metrics import MetricsLog\n"
    "from vit.config.parser import load_config",
    "cfg = load_config(run.config)",
    "recorded_save(run.events()); remove_partial_saves(run.checkpoints); found = find_checkpoints(run.checkpoints)\n"
    "assert found\nMetricsLog(run, cfg, int(found[0].name[5:]), repeats_evaluation=False)",
)
REFRESH = (
    "from jobs.watch.overview import SlurmJobs, look",
    "slurm = SlurmJobs(); look([runs], slurm)",
    "look([runs], slurm)",
)


@dataclass(frozen=True)
class Figures:
    """What one command took."""

    name: str
    seconds: float  # of processor time
    passed: float  # seconds that passed
    imports: float | None  # processor seconds of `--help`
    megabytes: float
    opens: int | None
    stats: int | None

    @property
    def within(self) -> bool:
        """Whether it keeps the bounds; there is none for a report, whose pictures take seconds."""
        return "report" in self.name or (self.seconds < SECONDS and self.megabytes < MEGABYTES)


def call(command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> tuple[float, float, float]:
    """Runs a command; returns processor seconds, seconds that passed, and the peak of memory in MB.

    Of the largest of its processes.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=output)
        _, code, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(command)}: {output.read().decode()}")
    return used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / 1000


def file_operations(command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> tuple[int, int] | None:
    """How many files it opened and looked at below its folder; None without strace."""
    if shutil.which("strace") is None:
        return None
    with tempfile.NamedTemporaryFile("r") as log:
        trace = ["strace", "-f", "-qq", "-y", "-o", log.name, "-e", "trace=open,openat,stat,lstat,newfstatat,statx"]
        subprocess.run([*trace, *command], cwd=cwd, env=environment, capture_output=True, check=False)
        lines = [line for line in log.read().splitlines() if re.search(r'"runs[/"]', line) or f'"{cwd}/runs' in line]
    opens = sum(re.search(r"\bopen(at)?\(", line) is not None for line in lines)
    return opens, len(lines) - opens


def measure(name: str, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> Figures:
    """One row of the table; the command runs twice."""
    used, passed, megabytes = call(command, cwd, environment)
    imports = call([*command[:2], "--help"], cwd, environment)[0]
    counts = file_operations(command, cwd, environment)
    return Figures(name, used, passed, imports, megabytes, *(counts or (None, None)))


def measure_inside(name: str, code: tuple[str, str, str], cwd: Path, environment: Mapping[str, str]) -> Figures:
    """The same for a part of a process that has already started."""
    imports, before, measured = code
    text = INSIDE.format(imports=imports, before=before, measured=measured, long=LONG)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", text, str(ROOT), "runs"], cwd=cwd, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    used, peak = json.loads(done.stdout.splitlines()[-1])
    return Figures(name, used, time.monotonic() - began, None, peak / 1000, None, None)


def rows(folder: Path, runs: int, ledger: int, checkpoints: int) -> list[Figures]:
    """Builds the runs folder, and measures all commands in it."""
    environment = os.environ | install_slurm(folder / "slurm", keeps_jobs=True)
    make_data(folder, {"train": 64, "val": 16})
    python, found = sys.executable, list[Figures]()
    submit = [python, str(ROOT / "jobs/submit.py"), "--config", str(ROOT / "configs/demo.yaml"), "--cluster", "slurm"]
    submit += ["--data.train", str(folder / "train.beton"), "--data.val", str(folder / "val.beton")]
    call([*submit, "--name", LONG], folder, environment)
    cfg = load_config(folder / "runs" / LONG / "config.yaml")
    shutil.rmtree(folder / "runs")
    write_many_runs(folder / "runs", runs, ledger, checkpoints, cfg)
    status, report = str(ROOT / "jobs/status.py"), str(ROOT / "jobs/report.py")

    def add(name: str, *command: str) -> None:
        found.append(measure(name, command, folder, environment))

    add("status.py", python, status)
    add("status.py --rank", python, status, "--rank")
    add(f"status.py runs/{LONG}", python, status, f"runs/{LONG}")
    add(f"report.py runs/{LONG}", python, report, f"runs/{LONG}", "--out", str(folder / "report.html"))
    add("submit.py --dry-run", *submit, "--name", "another", "--dry-run")
    add("submit.py, resumes a run", *submit, "--name", LONG)
    shutil.rmtree(folder / "slurm" / "queue")
    add("submit.py, new run", *submit, "--name", "new")
    write_long_run(folder / "runs" / "again", ledger, checkpoints, cfg)
    for name, code in (
        ("status.py --watch, one refresh", REFRESH),
        ("a supervisor reads the ledger", SUPERVISOR),
        ("a rank finds its checkpoint", TRAINER),
    ):
        found.append(measure_inside(name, code, folder, environment))
    return found


def main() -> int:
    """The command line; returns the exit code: 1 if a bound is not kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="50 runs, 1,000 ledger lines, 100 checkpoints")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--ledger", type=int, metavar="LINES")
    parser.add_argument("--checkpoints", type=int)
    options = parser.parse_args()
    usual = (50, 1_000, 100) if options.quick else (1_000, 10_000, 1_000)
    sizes = [a or b for a, b in zip((options.runs, options.ledger, options.checkpoints), usual, strict=True)]
    with tempfile.TemporaryDirectory(prefix="many-runs-") as folder:
        found = rows(Path(folder), *sizes)
    print(f"{sizes[0]:,} runs, {sizes[1]:,} ledger lines, {sizes[2]:,} checkpoints")
    print(f"{'':34}{'seconds':>8}{'imports':>9}{'passed':>8}{'MB':>6}{'opens':>8}{'stats':>8}")
    for row in found:
        counts = ["-" if each is None else f"{each:,}" for each in (row.opens, row.stats)]
        imports = "-" if row.imports is None else f"{row.imports:.2f}"
        print(
            f"{row.name:34}{row.seconds:8.2f}{imports:>9}{row.passed:8.2f}{row.megabytes:6.0f}"
            f"{counts[0]:>8}{counts[1]:>8}{'' if row.within else '  over the bound'}"
        )
    figures = {"machine": machine(), "sizes": sizes, "rows": [asdict(row) for row in found]}
    if not options.quick and sizes == [1_000, 10_000, 1_000]:
        save_figures("many_runs", figures)
    print(json.dumps(figures))
    return 0 if all(row.within for row in found) else 1


if __name__ == "__main__":
    run_command(main)
