"""Records a run that is preempted and resumed, on a real Slurm cluster on this machine, as a picture of a terminal.

python benchmarks/preemption.py --out benchmarks/results/preemption.svg

Needs root and Slurm's packages (tests/README.md); takes about two minutes.  Every line in the picture is what the
commands printed.  `jobs/report.py` draws the learning curve of the same run with a mark where it was resumed.
"""

import argparse
import html
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers.slurm_cluster import Cluster, missing
from tests.helpers.waiting import wait_for
from vit.config.paths import user_path
from vit.run.command import run_command
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines

COLUMNS = 104
LINE, CHARACTER, MARGIN = 18, 7.8, 14  # pixels
CLUSTER_FILE = "partition: low\ntime: 1:00:00\ncpus_per_gpu: 1\n"


class Terminal:
    """Runs commands in a folder and keeps what a terminal would show."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.lines = folder, list[str]()
        here = {"COLUMNS": str(COLUMNS), "PYTHONPATH": str(ROOT)}
        self.environment = os.environ | cluster.environment | here

    def type(self, command: str, keep: Callable[[str], bool] = lambda _: True) -> None:
        """Runs a command and shows it with those of its lines that are to be kept."""
        words = command.replace("python ", f"{sys.executable} ", 1)
        done = subprocess.run(
            words, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}")
        self.lines += [f"$ {command}", *(line for line in done.stdout.splitlines() if keep(line)), ""]

    def svg(self) -> str:
        """The picture."""
        width, height = COLUMNS * CHARACTER + 2 * MARGIN, len(self.lines) * LINE + 2 * MARGIN
        rows = []
        for i, line in enumerate(self.lines):
            color = "#7ee787" if line.startswith("$ ") else "#e6edf3"
            y = MARGIN + (i + 0.75) * LINE
            rows.append(
                f'<text x="{MARGIN}" y="{y:.0f}" fill="{color}" xml:space="preserve">{html.escape(line)}</text>'
            )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
            f'viewBox="0 0 {width:.0f} {height}" font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, '
            'DejaVu Sans Mono, monospace" font-size="13">\n'
            f'<rect width="100%" height="100%" rx="8" fill="#0d1117"/>\n' + "\n".join(rows) + "\n</svg>\n"
        )


def last_step(run: RunFolder) -> int:
    """The last step of the learning curve."""
    return max((int(record["step"]) for record in read_lines(run.metrics)), default=0)


def record(terminal: Terminal, cluster: Cluster) -> None:
    """A run is submitted, preempted by a job of a higher partition, requeued by Slurm, and finishes."""
    wait = partial(wait_for, seconds=300)
    run = RunFolder(terminal.folder / "runs" / "demo")
    submit = "python jobs/submit.py --config configs/demo.yaml --nodes 1 --gpus 2 --cluster-config cluster.yaml"
    terminal.type(submit, keep=lambda line: "watch" not in line and "stop" not in line)
    wait(lambda: last_step(run) >= 800, "step 800")
    terminal.type("python jobs/status.py")
    terminal.type("sbatch --partition high --nodes 2 --exclusive --time 1 --wrap 'sleep 10'  # somebody else's job")
    wait(lambda: run.last("stopped"), "the save")
    wait(lambda: cluster.call("squeue", "-h", "-p", "low", "-o", "%T") == "PENDING", "the requeue")
    terminal.type("python jobs/status.py")
    stopped = run.last("stopped")
    wait(lambda: run.last("started", "stopped") != stopped, "the resume")
    wait(lambda: last_step(run) >= 1600, "step 1600")
    terminal.type("python jobs/status.py")
    wait(run.finished, "the end of the run")
    wait(lambda: not cluster.call("squeue", "-h"), "an empty queue")
    terminal.type("grep -E 'started|stopped|finished' runs/demo/ledger.jsonl | cut -c 1-68")
    terminal.type("python jobs/status.py")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=user_path, required=True, help="SVG file to write")
    parser.add_argument("--curve", type=user_path, help="PNG file for the learning curve of the same run")
    options = parser.parse_args()
    if why := missing():
        print(f"preemption.py: {why}", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="preemption-"))
    cluster = Cluster()
    try:
        for name in ("jobs", "configs", "vit", "data_prep"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "cluster.yaml").write_text(CLUSTER_FILE)
        for split in ("train", "val"):
            out = f"data/fashion-mnist/{split}.beton"
            write = [sys.executable, "-m", "data_prep.write_beton", "fashion-mnist", "--split", split, "--out", out]
            subprocess.run(
                [*write, "--mode", "raw"], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True
            )
        terminal = Terminal(folder, cluster)
        record(terminal, cluster)
        options.out.write_text(terminal.svg())
        if options.curve:
            report = [sys.executable, str(ROOT / "jobs/report.py"), "runs/demo", "--out", str(options.curve.absolute())]
            subprocess.run(report, cwd=folder, check=True)
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    run_command(main)
