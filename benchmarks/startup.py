"""Time from the start of a rank to its first finished step, over the sum of the parts of that start.

    python benchmarks/startup.py [--quick] [--only CASE ...] [--rounds N]

A rank is started by hand (`python -m vit.train`), by torchrun (counted from the start of the rank), and as a job does
it, as a fork of a server that has done the imports.  It trains a new run without and with torch.compile, or resumes
one.  It is killed after its first step, whose record in the learning curve tells the time.  All caches are warm: pages
of files, torch's compiled graphs on this machine, and those in the run folder.

In turn with each start, its parts are measured one after the other in a process of their own, started in the same way:
imports, config, process group, data sets and first batch, model, checkpoint, first use of the graphs and kernels, and a
later step.  `vs_parts` is the largest of the median ratios.  Processor time is given too: other load on the machine
disturbs it less.  A GPU is used if there is one; FFCV and a network are not needed.  The last line is one JSON object.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from benchmarks.measured.avoided import avoided
from benchmarks.measured.machine import gpu_name, machine, save_figures
from benchmarks.measured.startup_parts import ASKED_VARIABLE
from benchmarks.on_gpu.images import make_data
from jobs.node import forkserver, forkserver_process
from vit.run.command import run_command
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines

IMAGES = {"train": 256, "val": 64}
WAIT_SECONDS = 300  # for a first step, with a cold compile cache
WAYS = {"hand": "by hand", "torchrun": "torchrun", "fork": "fork"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
RANK |= {"MASTER_PORT": "29500"}  # not used by a single rank


@dataclass(frozen=True)
class Case:
    """A start that is measured."""

    name: str
    way: str  # one of WAYS
    options: tuple[str, ...]  # of vit.train
    quick: bool = False
    resumed: bool = False

    @property
    def run(self) -> str:
        """The name of its run folder."""
        return self.name.replace(" ", "-") + f"-{self.way}"


@dataclass(frozen=True)
class Start:
    """What one start took."""

    seconds: float  # from its request, or with torchrun from the start of the rank, to the end of the first step
    processor_seconds: float  # of the rank until then
    phases: dict[str, float]  # seconds that the rank's own clock counted


def cases(gpu: bool) -> list[Case]:
    """All starts that are measured on this machine."""
    config = "vit_s16_90ep" if gpu else "demo"
    options = ["--config", str(ROOT / "configs" / f"{config}.yaml"), "--model.num_classes", "10"]
    options += ["--global_batch", "64", "--micro_batch", "32", "--device", "cuda" if gpu else "cpu"]
    options += ["--log.every_steps", "1", "--epochs", "1000000", "--log.eval_every_epochs", "1000000"]
    compiled = ("--compile", "true")
    out = [
        Case(name, way, (*options, *extra), resumed=resumed, quick=(name, way) in {("new", "hand"), ("new", "fork")})
        for way in WAYS
        for name, extra, resumed in (
            ("new", ("--compile", "false"), False), ("compiled", compiled, False), ("resumed", compiled, True),
        )
    ]  # fmt: skip
    return [case for case in out if case.way != "torchrun" or case.name == "new"]


class Measurement:
    """Starts ranks, and their parts, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = [item for name in ("train", "val") for item in (f"--data.{name}", str(folder / f"{name}.beton"))]
        self.data = [*data, "--data.workers", "1"]
        os.environ |= {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore:resource_tracker",  # about the semaphores of the ranks that are killed here
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TRITON_CACHE_DIR": str(folder / "triton"),
        }

    def prepare(self, case: Case) -> None:
        """Fills the caches, and saves a step if the case resumes one."""
        self.start(case)
        if case.resumed:
            run = RunFolder(self.folder / case.run)
            save = ("--checkpoint.every_minutes", "0.0001")
            with self._rank("hand", "vit.train", self._arguments(case, *save), {}) as rank:
                self._wait(lambda: run.last("checkpoint"), rank)

    def start(self, case: Case) -> Start:
        """Starts a rank, and kills it after its first step."""
        run = RunFolder(self.folder / case.run)
        asked = time.time()

        def record() -> dict[str, Any] | None:
            return next((each for each in read_lines(run.metrics) if each["time"] > asked), None)

        with self._rank(case.way, "vit.train", self._arguments(case), {}) as started:
            first = self._wait(record, started)
            rank = next(each for each in (started, *started.children(recursive=True)) if _is_rank(each))
            processor_seconds = sum(rank.cpu_times()[:2])
        own = sum(first["seconds"].values())  # since the rank's process began
        seconds = own if case.way == "torchrun" else first["time"] - asked
        return Start(seconds, processor_seconds, first["seconds"])

    def parts(self, case: Case) -> dict[str, dict[str, float]]:
        """Seconds and processor seconds of each part of the start of a rank, measured in a process of its own."""
        way, asked = "fork" if case.way == "fork" else "hand", {ASKED_VARIABLE: str(time.time())}
        with self._rank(way, "benchmarks.measured.startup_parts", self._arguments(case), asked) as rank:
            rank.wait(WAIT_SECONDS)
        figures: dict[str, dict[str, float]] = json.loads(self._log.read_text().splitlines()[-1])
        return figures

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _arguments(self, case: Case, *more: str) -> list[str]:
        return [*case.options, *self.data, "--run-dir", str(self.folder / case.run), *more]

    @contextmanager
    def _rank(
        self, way: str, module: str, arguments: list[str], environment: Mapping[str, str]
    ) -> Iterator[psutil.Process]:
        """Starts a module in one of the ways; ends the process and its children at the end."""
        self._log.write_text("")
        if way == "fork":
            process = forkserver.start(module, arguments, environment | RANK, self._log).os_process
        else:
            command = TORCHRUN if way == "torchrun" else ()
            with self._log.open("a") as log:
                process = psutil.Popen(
                    [sys.executable, *command, "-m", module, *arguments],
                    stdout=log, stderr=log, env=os.environ | environment, cwd=self.folder,
                )  # fmt: skip
        try:
            yield process
        finally:
            with suppress(psutil.NoSuchProcess):
                for each in [process, *process.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
            process.wait()

    def _wait(self, found: Callable[[], Any], process: psutil.Process) -> Any:
        """Waits until `found` returns something, and returns it; ends this program if the process ends before."""
        result = found()
        while not result:
            if not forkserver_process.is_alive(process):
                sys.exit(f"a rank ended before its first step:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.004)
            result = found()
        return result


def _is_rank(process: psutil.Process) -> bool:
    command = " ".join(process.cmdline())
    return "vit.train" in command and "torch.distributed.run" not in command


def measure(measured: list[Case], folder: Path, rounds: int) -> dict[str, Any]:
    """Measures the cases in turn; returns their figures by name."""
    measurement, out = Measurement(folder), {}
    if any(case.way == "fork" for case in measured):
        forkserver.ensure_running()
    for case in measured:
        measurement.prepare(case)
    starts: dict[Case, list[Start]] = defaultdict(list)
    parts: dict[Case, list[dict[str, dict[str, float]]]] = defaultdict(list)
    for _ in range(rounds):
        for case in measured:
            starts[case].append(measurement.start(case))
            parts[case].append(measurement.parts(case))
    for case in measured:
        out[f"{case.name}, {WAYS[case.way]}"] = figures_of(starts[case], parts[case])
    return out


def figures_of(starts: list[Start], parts: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians of one case over its rounds, and the median ratios of neighboring measurements."""

    def median(values: Iterable[float]) -> float:
        return round(statistics.median(values), 4)

    sums = {kind: [sum(each[kind].values()) for each in parts] for kind in ("seconds", "processor_seconds")}
    return {
        "vs_parts": median(a.seconds / b for a, b in zip(starts, sums["seconds"], strict=True)),
        "vs_parts_processor": median(
            a.processor_seconds / b for a, b in zip(starts, sums["processor_seconds"], strict=True)
        ),
        "start_s": median(each.seconds for each in starts),
        "start_least_s": round(min(each.seconds for each in starts), 4),
        "start_processor_s": median(each.processor_seconds for each in starts),
        "sum_of_parts_s": median(sums["seconds"]),
        "sum_of_parts_processor_s": median(sums["processor_seconds"]),
        "parts_s": {name: median(each["seconds"][name] for each in parts) for name in parts[0]["seconds"]},
        "parts_processor_s": {
            name: median(each["processor_seconds"][name] for each in parts) for name in parts[0]["seconds"]
        },
        "phases_s": {name: median(each.phases.get(name, 0.0) for each in starts) for name in starts[0].phases},
    }


def table(figures: dict[str, Any]) -> str:
    """One column per case: its start, the sum of its parts, and the parts, in milliseconds."""
    cases = list(figures.values())
    rows = [
        ("ms", list(figures)),
        ("start to first step", [f"{1e3 * each['start_s']:,.0f}" for each in cases]),
        ("sum of the parts", [f"{1e3 * each['sum_of_parts_s']:,.0f}" for each in cases]),
        ("ratio", [f"{each['vs_parts']:.2f}" for each in cases]),
        ("ratio of processor time", [f"{each['vs_parts_processor']:.2f}" for each in cases]),
    ]
    for name in dict.fromkeys(name for each in cases for name in each["parts_s"]):
        parts = [each["parts_s"].get(name) for each in cases]
        rows.append((f"  {name}", ["" if part is None else f"{1e3 * part:,.0f}" for part in parts]))
    return "\n".join(f"{head:<26}" + "".join(f"{cell:>20}" for cell in cells) for head, cells in rows)


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less than 50 s: new runs only, two rounds")
    parser.add_argument("--only", nargs="+", metavar="CASE", help='cases such as "new-hand" (default: all)')
    parser.add_argument("--rounds", type=int, metavar="N", help="starts of each kind (default: 5; with --quick: 2)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="startup-"))
    try:
        make_data(folder, IMAGES)
        known = [case for case in cases(gpu_name() is not None) if case.quick or not options.quick]
        measured = [case for case in known if not options.only or case.run in options.only]
        by_case = measure(measured, folder, options.rounds or (2 if options.quick else 5))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(by_case))
    figures = {"vs_parts": max(each["vs_parts"] for each in by_case.values()), "cases": by_case, "machine": machine()}
    if not (options.quick or options.only):
        figures["avoided_processor_s"] = avoided(5, str(ROOT))
        save_figures("startup", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
