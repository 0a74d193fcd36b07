"""Checks everything that matters on a GPU, in half an hour: that it is right, how fast it is, and what faults do.

python benchmarks/gpu.py [PART ...] [--quick] [--no-profiles] [--folder DIR] [--out FILE]

Needs at least one NVIDIA GPU, but neither network nor FFCV: it makes its own images.  With more GPUs, ranks exchange
over NCCL; with one, they share it and exchange over gloo.  Prints a line for each check, and one JSON object with all
figures on the last line.  Exit code 1 if a check of truth, ranks or faults is not "ok".
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

import torch

from benchmarks.on_gpu.checks import FOLDER_VARIABLE, NO_PROFILES_VARIABLE, QUICK_VARIABLE
from benchmarks.on_gpu.images import make_data
from vit.run.command import run_command

PARTS = ("truth", "speed", "trainer", "ranks", "faults")
QUICK_PARTS = ("truth", "speed")


def machine() -> dict[str, Any]:
    """The card and the versions, for the results."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()[0]
    except (OSError, IndexError):
        driver = "unknown"
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpus": torch.cuda.device_count(),
        "gpu_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "driver": driver,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def run_part(part: str, folder: Path) -> list[dict[str, Any]]:
    """Runs one part in a process of its own and shows its lines; returns its checks."""
    environment = os.environ | {FOLDER_VARIABLE: str(folder), "PYTHONUNBUFFERED": "1"}
    log = folder / f"{part}.log"
    command = [sys.executable, "-m", f"benchmarks.on_gpu.{part}"]
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            if not line.startswith("["):
                print(line, end="", flush=True)
            last = line
        process.wait()
    if last.startswith("["):
        checks: list[dict[str, Any]] = json.loads(last)
        return checks
    print(f"{part} ended with exit code {process.returncode}: {log}", flush=True)
    return [{"name": part, "state": "ERROR", "seconds": 0.0, "text": log.read_text()[-500:], "figures": {}}]


def start_figures(out: Path | None, quick: bool) -> dict[str, Any]:
    """The figures so far: those of `out`, if it has other parts of the same machine, else none.

    Raises OSError if `out` cannot be written, which would otherwise be noticed after half an hour, and ValueError if
    it is another file.
    """
    figures: dict[str, Any] = {"machine": machine(), "quick": quick, "parts": {}}
    if out is None:
        return figures
    with out.open("a+") as file:
        file.seek(0)
        text = file.read()
    known: dict[str, Any] = json.loads(text) if text else {}
    if text and not (isinstance(known, dict) and isinstance(known.get("parts"), dict)):
        raise ValueError("it is no file of figures")
    same = known.get("machine") == figures["machine"] and known.get("quick", False) == quick
    return known if same else figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="take less than 50 seconds: pixels, copies, bits, one recipe"
    )
    parser.add_argument(
        "--no-profiles", action="store_true", help="where NVIDIA's CUPTI, which profiles, does not work"
    )
    parser.add_argument("--folder", type=Path, help="folder for data, runs, logs and profiles (default: a new one)")
    parser.add_argument("--out", type=Path, help="file for the figures, in JSON; keeps those of other parts")
    options = parser.parse_args()
    known = QUICK_PARTS if options.quick else PARTS
    unknown = set(options.parts) - set(known)
    if unknown:
        of = "parts of --quick" if options.quick else "known"
        parser.error(f"unknown part {', '.join(sorted(unknown))}; {of} are {', '.join(known)}")
    if options.quick:
        os.environ[QUICK_VARIABLE] = "1"
    if options.no_profiles:
        os.environ[NO_PROFILES_VARIABLE] = "1"
    if not torch.cuda.is_available():
        print("no GPU is visible to torch (nvidia-smi lists those of this machine)", file=sys.stderr)
        return 2
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="gpu-checks-"))).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = start_figures(options.out, options.quick)
    except (OSError, ValueError) as error:
        parser.error(f"{error}" if isinstance(error, OSError) else f"{options.out}: {error}")
    print(f"{figures['machine']}\nlogs, runs and profiles: {folder}", flush=True)
    make_data(folder)
    wrong = 0
    for part in options.parts or known:
        started = time.monotonic()
        print(f"\n{part}", flush=True)
        checks = run_part(part, folder)
        figures["parts"][part] = checks
        wrong += sum(check["state"] != "ok" for check in checks) if part not in ("speed", "trainer") else 0
        print(f"{part}: {time.monotonic() - started:.0f} s", flush=True)
        if options.out:
            options.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"\n{wrong} checks failed" if wrong else "\nall checks passed", flush=True)
    print(json.dumps(figures))
    return int(wrong > 0)


if __name__ == "__main__":
    run_command(main)
