"""A whole training step beside a bare compiled loop, timm, torchvision, Hugging Face accelerate and Lightning.

python benchmarks/step.py [--quick] [--out FILE]

A step is forward, soft-target loss, backward, clipping to a norm, fused AdamW and an EMA of the weights, on batches
that are ready: no loading, no augmentation.  All train a compiled Vision Transformer of the same size, each in the loop
of its own documentation (peers/loops.py), in a process of its own.  They take turns, in an order that changes.  On a
CPU: ViT-Ti/16 with 16 images in float32 on one thread, measured in processor time, which other load on the machine
disturbs less than wall time.  On a GPU: ViT-B/16 and ViT-S/16 in bf16, measured in wall time.  Each ratio is the median
of the ratios of all rounds.  The last line is one JSON object.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.peers.rounds import MODELS, WARM_UP, Setup
from vit.history.utilization import training_flops_per_image, utilization
from vit.run.command import run_command
from vit.run.processor import processor

PACKAGES = ("timm", "torchvision", "accelerate", "lightning")
TITLES = {
    "ours": "ours, exact: bits",
    "bare": "bare loop around torch.compile",
    "timm": "timm's ViT and loop",
    "torchvision": "torchvision's ViT and loop",
    "accelerate": "accelerate, our model",
    "lightning": "Lightning, our model",
}


class Trainer:
    """The process of one loop."""

    def __init__(self, name: str, setup: Setup) -> None:
        self.name, self.rounds = name, list[dict[str, Any]]()
        options = (name, setup.model_name, setup.depth, setup.batch, setup.precision, setup.device)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        if setup.device.type == "cpu":
            environment |= {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.process", *map(str, options)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if setup.device.type == "cpu" else None,
            text=True,
        )
        self.first_seconds = 0.0

    def read(self) -> dict[str, Any]:
        """Its next JSON object; other lines are skipped."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        error = (self._process.stderr.read() if self._process.stderr else "").strip().splitlines()[-1:]
        raise SystemExit(f"{self.name} ended with exit code {self._process.wait()}: {' '.join(error)}")

    def run(self, untimed: int, steps: int) -> None:
        """Trains one round, and keeps its figures."""
        assert self._process.stdin is not None
        print(untimed, steps, file=self._process.stdin, flush=True)
        self.rounds.append(self.read())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(setup: Setup, rounds: int, untimed: int, steps: int) -> list[Trainer]:
    """Trains with all installed trainers, which take turns."""
    names = [name for name in TITLES if name not in PACKAGES or find_spec(name)]
    trainers: list[Trainer] = []
    at_once = setup.device.type == "cpu" or setup.batch <= 64  # else the GPU's memory is too small for all
    try:
        for name in names:
            trainers.append(Trainer(name, setup))
            if not at_once:
                trainers[-1].first_seconds = trainers[-1].read()["first_seconds"]
        for trainer in trainers if at_once else ():
            trainer.first_seconds = trainer.read()["first_seconds"]
        for number in range(rounds):
            turn = number % len(trainers)
            for trainer in (trainers[turn:] + trainers[:turn])[:: 1 if number % 2 else -1]:
                trainer.run(untimed, steps)
    finally:
        for trainer in trainers:
            trainer.close()
    return trainers


def figures_of(setup: Setup, trainers: list[Trainer]) -> dict[str, Any]:
    """Prints the table of one model, and returns its figures."""
    clock, images = ("cpu" if setup.device.type == "cpu" else "wall"), setup.batch
    by_name = {trainer.name: trainer for trainer in trainers}
    mine = [each[clock] for each in by_name["ours"].rounds]
    print(f"{setup.model_name}, {setup.depth} blocks, {images} images, {setup.precision}, {device_name(setup)}")
    print(f"{'ms per step':<32}{'least':>10}{'median':>10}{'wall time':>20}{'ours / it':>12}{'first steps, s':>16}")
    rows: dict[str, Any] = {}
    for name, title in TITLES.items():
        if name not in by_name:
            print(f"{title:<32}   not installed (pip install '.[bench]')")
            continue
        trainer = by_name[name]
        theirs, wall = ([each[key] for each in trainer.rounds] for key in (clock, "wall"))
        ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        row = {
            "ms": {"least": round(1e3 * min(theirs), 2), "median": round(1e3 * statistics.median(theirs), 2)},
            "wall_ms": {"least": round(1e3 * min(wall), 2), "median": round(1e3 * statistics.median(wall), 2)},
            "ratio_of_ours": {
                "median": round(ratio, 4),
                "of_the_least": round(min(mine) / min(theirs), 4),
                "of_the_medians": round(statistics.median(mine) / statistics.median(theirs), 4),
            },
            "first_steps_seconds": round(trainer.first_seconds, 1),
            "images_per_s": round(images / statistics.median(wall), 1),
        }
        if clock == "wall":
            row["host_ms"] = round(1e3 * min(each["host"] for each in trainer.rounds), 2)
            row["peak_memory_gb"] = round(max(each["gb"] for each in trainer.rounds), 2)
        rows[name] = row
        ms, walls = row["ms"], f"{row['wall_ms']['least']:,.1f} / {row['wall_ms']['median']:,.1f}"
        cells = f"{ms['least']:>10,.1f}{ms['median']:>10,.1f}{walls:>20}{ratio:>12.3f}{trainer.first_seconds:>16.1f}"
        print(f"{title:<32}{cells}")
    return {"model": setup.model_name, "depth": setup.depth, "images": images, "rows": rows} | _ratios(setup, rows)


def _ratios(setup: Setup, rows: dict[str, Any]) -> dict[str, Any]:
    """Our time over the bare loop's, our images/s over all others'; on a GPU also what the last line promises."""
    out: dict[str, Any] = {"vs_bare": rows["bare"]["ratio_of_ours"]["median"]}
    for name in PACKAGES:
        out[f"vs_{name}"] = round(1 / rows[name]["ratio_of_ours"]["median"], 4) if name in rows else None
    if setup.device.type == "cuda":
        speed = rows["ours"]["images_per_s"]
        mfu = utilization(setup.model, setup.precision, device_name(setup), 1, speed)
        out |= {"images_per_s": speed, "mfu": mfu and round(mfu, 4)}
        out["peak_memory_gb"] = rows["ours"]["peak_memory_gb"]
    return out


def device_name(setup: Setup) -> str:
    """The GPU's name, or the CPU's."""
    if setup.device.type == "cuda":
        return torch.cuda.get_device_name()
    return processor() or "CPU"


def setups(quick: bool) -> list[Setup]:
    """What is trained on this machine."""
    if not torch.cuda.is_available():
        size = (1, 8) if quick else (12, 16)
        return [Setup("vit_ti16", *size, "float32", torch.device("cpu"))]
    gpu = torch.device("cuda", 0)
    if quick:
        return [Setup("vit_s16", 1, 64, "bf16", gpu)]
    return [Setup("vit_b16", 12, 384, "bf16", gpu), Setup("vit_s16", 12, 512, "bf16", gpu)]


def main() -> None:
    """Prints a table for each model, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="take less than 50 seconds, with 1 block instead of 12")
    parser.add_argument("--rounds", type=int, help="turns of each trainer")
    parser.add_argument("--out", type=Path, help="write the JSON object to this file too")
    options = parser.parse_args()
    started, runs = time.monotonic(), []
    for setup in setups(options.quick):
        on_cpu = setup.device.type == "cpu"
        rounds = options.rounds or (6 if options.quick else 12)
        untimed, steps = (1, 2) if on_cpu else (3, 20)
        runs.append(figures_of(setup, measure(setup, rounds, untimed, steps)))
    headline = {key: value for key, value in runs[0].items() if key.startswith("vs_")}
    headline |= {key: runs[0][key] for key in ("images_per_s", "mfu", "peak_memory_gb") if key in runs[0]}
    packages = ("torch", *(name for name in PACKAGES if find_spec(name)))
    flops = {name: round(training_flops_per_image(model) / 1e9, 2) for name, model in MODELS.items()}
    figures = headline | {
        "runs": runs,
        "gflops_per_image": flops,
        "rounds": rounds,
        "steps_of_a_round": steps,
        "steps_before_the_clock": WARM_UP,
        "versions": {name: version(name) for name in packages},
        "device": device_name(setup),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "seconds": round(time.monotonic() - started),
    }
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
