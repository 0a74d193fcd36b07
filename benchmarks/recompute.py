"""What it costs to recompute a micro-batch now and then, in training steps of one rank.

    python benchmarks/recompute.py [--quick]

Every other step of a run recomputes one of its micro-batches: it decodes and augments the samples again, runs forward
and backward, and compares checksums.  `ratio` is the time that this adds, over that of a step without it: the median
over steps, each compared with its neighbors.  On a CPU, which others may use too, it is processor time.  The share of a
run's time is the ratio over the interval, `checks.recompute_every_steps`.  The JPEGs are those of loader.py.  The last
line is one JSON object.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from loader import make_images

from benchmarks.measured.machine import gpu_name, machine, save_figures
from vit.config.sections import ChecksConfig
from vit.run.command import run_command

COMMON = ("--data.verify", "never", "--epochs", "1000000", "--model.num_classes", "2", "--data.repeats", "1")
CHECKS = ("--checks.checksum_every_steps", "0", "--checks.recompute_every_steps", "2")
CPU = ("vit_ti16_deit", 8, ("--precision", "float32", "--compile", "false"))
GPU = ("vit_b16", 384, ())


def measure(folder: Path, micro_batches: int, quick: bool) -> dict[str, Any]:
    """The figures of steps of so many micro-batches, measured in a process of its own."""
    recipe, images, settings = GPU if gpu_name() is not None else CPU
    beton, m = str(folder / "images.beton"), 4 if quick else images
    command = [sys.executable, "-m", "benchmarks.measured.recompute_steps", "--steps", "6" if quick else "20"]
    command += ["--config", str(ROOT / f"configs/{recipe}.yaml"), "--data.train", beton, "--data.val", beton]
    command += ["--global_batch", str(m * micro_batches), "--micro_batch", str(m), *COMMON, *CHECKS, *settings]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"{recipe} failed")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less than 50 s: fewer images and steps")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    every, rows = ChecksConfig().recompute_every_steps, []
    clock = "seconds" if gpu_name() is not None else "processor_seconds"
    share_title = f"share, every {every:,} steps"
    print(f"{'micro-batches per rank':<24}{'step, s':>10}{'added, s':>10}{'ratio':>8}{share_title:>26}")
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), 64 if options.quick else 256, [])
        for micro_batches in (1, 2) if options.quick else (1, 2, 4):
            row = measure(Path(folder), micro_batches, options.quick)
            figures = row[clock]
            share = figures["ratio"] / every
            times = f"{figures['step']:>10.3f}{figures['recomputing']:>10.3f}{figures['ratio']:>8.2f}"
            print(f"{micro_batches:<24}{times}{share:>26.4%}", flush=True)
            rows.append(row | {"share": round(share, 7)})
    figures = {"share": max(row["share"] for row in rows), "every_steps": every, "rows": rows, "machine": machine()}
    if not options.quick:
        save_figures("recompute", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
