"""Fault-injection campaign: after thousands of faults, do training runs resume and end with the same bits?

python benchmarks/chaos.py [--quick] [--only kills damage errors reads crashes] [--folder DIR]

    kills     SIGKILL at random times: of a rank, all ranks, the launcher, everything, a checkpoint writer
    damage    checkpoint files that are truncated, or have one byte changed
    errors    ENOSPC, EIO and EDQUOT from each writing call in turn, and a real file system that is full
    reads     EIO, ESTALE, EACCES and ENOENT from each call that reads a file, in every command that reads a run folder
    crashes   a power cut between any two file operations, in all states in which it may leave the disk

The runs are small, but real: `vit.train` with four micro-batches of Fashion-MNIST on 4, 2 and 1 ranks of one thread.
Each is finished after its faults and compared with a run without faults, bit by bit: weights, moments, EMA, metrics,
sample ids.  Each part of the campaign is a process of its own; with --folder, parts that are already done there are not
repeated.  The full campaign takes an hour on two cores; its figures go to benchmarks/results/chaos.json.  The exit
code is 1 if there were any problems.  The last line is one JSON object with all figures.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.faults import layer, read_cases, read_layer

RESULTS = ROOT / "benchmarks" / "results" / "chaos.json"
PARTS = ("kills", "damage", "errors", "reads", "crashes")
NEED_LAYER = ("errors", "reads", "crashes")  # parts that need a fault-injection layer
LANES, KILLS = 3, 1020  # processes that share the kills


def work(part: str, folder: Path, quick: bool, kills: int = 0, seed: int = 0) -> None:
    """Runs a part in this process; writes its figures to a file next to `folder`."""
    data, module = folder.parent / "data", importlib.import_module(f"benchmarks.faults.{part}")
    figures = module.campaign(data, folder, *((kills, seed) if part == "kills" else (quick,)))
    folder.with_suffix(".json").write_text(json.dumps(figures))


class Part:
    """A part of the campaign, or one lane of the kills, in a process of its own.

    Parts without the fault-injection layer are forks, which start faster.
    """

    def __init__(self, part: str, folder: Path, quick: bool, kills: int = 0, lane: int = 0) -> None:
        self.name, self.folder = part, folder / (f"{part}-{lane}" if part == "kills" else part)
        self.skipped = layer.missing() if part in NEED_LAYER else None
        self.process: subprocess.Popen[bytes] | BaseProcess | None = None
        if self.skipped or self.folder.with_suffix(".json").exists():
            return
        self.folder.mkdir(exist_ok=True)
        if part not in NEED_LAYER:
            arguments = (part, self.folder, quick, kills, 100 + lane)
            self.process = multiprocessing.get_context("fork").Process(target=self._work, args=arguments)
            self.process.start()
            return
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        build = read_layer.environment if part == "reads" else layer.environment
        environment |= build(self.folder / "runs", self.folder / "layer")
        command = [sys.executable, __file__, "--work", part, "--folder", str(self.folder), *["--quick"] * quick]
        with self.folder.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def _code(self) -> int | None:
        """Waits for the end of the process and returns its exit code."""
        if isinstance(self.process, BaseProcess):
            self.process.join()
            return self.process.exitcode
        return self.process.wait() if self.process is not None else 0

    def _work(self, *arguments: Any) -> None:
        """Runs in the fork, with its output in the log."""
        log = os.open(self.folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work(*arguments)

    def figures(self) -> dict[str, Any]:
        """Waits for the end of the part and returns its figures.  The failure of a part is a problem too."""
        if self.skipped:
            return {"skipped": self.skipped, "problems": []}
        if self._code() != 0:
            log = self.folder.with_suffix(".log").read_text(errors="replace").splitlines()[-8:]
            return {"problems": [f"{self.name} failed: {' | '.join(log)}"]}
        out: dict[str, Any] = json.loads(self.folder.with_suffix(".json").read_text())
        return out


def merge(lanes: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds up the figures of several lanes."""
    out: dict[str, Any] = {}
    for lane in lanes:
        for name, value in lane.items():
            before = out.get(name)
            if before is None:
                out[name] = value
            elif name.startswith("most"):
                out[name] = max(before, value)
            else:
                out[name] = dict(Counter(before) + Counter(value)) if isinstance(value, dict) else before + value
    return out


def campaign(folder: Path, parts: list[str], quick: bool, kills: int) -> dict[str, Any]:
    """Runs the kills in parallel to the other parts, which run one after the other unless `quick`; returns figures."""
    from benchmarks.faults.runs import make_data

    (folder / "data").mkdir(exist_ok=True)
    make_data(folder / "data")
    found: dict[str, Any] = {}
    lanes = 1 if quick else LANES
    kill_lanes = [Part("kills", folder, quick, kills // lanes, lane) for lane in range(lanes) if "kills" in parts]
    others = [name for name in parts if name != "kills"]
    started = {name: Part(name, folder, quick) for name in others if quick}
    for name in others:
        found[name] = (started.get(name) or Part(name, folder, quick)).figures()
    if kill_lanes:
        found["kills"] = merge([part.figures() for part in kill_lanes])
    return found


def table(found: dict[str, Any]) -> list[str]:
    """Rows of the table for each part: kind of fault, number of faults, number of problems, and details."""
    rows = []
    for name, figures in found.items():
        wrong = len(figures["problems"])
        if "skipped" in figures:
            rows.append(f"{name:<10}skipped: {figures['skipped']}")
            continue
        if name == "kills" and "kills" in figures:
            inside, lost = figures["inside_a_save"], figures["steps_lost"] / max(1, figures["kills"])
            rows.append(
                f"{'SIGKILL':<46}{figures['kills']:>8,}{wrong:>9}   {inside:,} during a save, {lost:.1f} steps lost"
            )
        elif name == "damage" and "cut" in figures:
            for how, what in (("cut", "a checkpoint file truncated"), ("flipped", "a byte of it changed")):
                detected = sum(count for kind, count in figures["found"].items() if kind.endswith(how))
                rows.append(f"{what:<46}{figures[how]:>8,}{figures[how] - detected:>9}   detected, older one used")
        elif name == "errors" and "one_rank" in figures:
            for part, what in (("one_rank", "a writing call fails"), ("two_ranks", "the same on two ranks")):
                if figures[part]:
                    calls = f"{figures[part]['calls']} calls in turn"
                    rows.append(f"{what:<46}{figures[part]['runs']:>8,}{wrong:>9}   {calls}")
            if "runs" in figures["full"]:
                rows.append(f"{'a real file system that is full':<46}{figures['full']['runs']:>8,}{wrong:>9}")
        elif name == "reads" and "cases" in figures:
            details = "each names the file" if not wrong else "see below"
            rows.append(f"{'a reading call fails':<46}{figures['cases']:>8,}{wrong:>9}   {details}")
        elif name == "crashes" and "states" in figures:
            when = f"after each of {figures['operations']} operations"
            rows.append(f"{'states of the disk after a power cut':<46}{figures['states']:>8,}{wrong:>9}   {when}")
        rows += [f"  {problem}" for problem in figures["problems"][:20]]
    return rows


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few faults of each kind, a minute on two cores")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--kills", type=int, help=f"number of kills (default: {KILLS:,}; with --quick: 6)")
    parser.add_argument("--folder", type=Path, help="keep all files there (default: a temporary folder)")
    parser.add_argument("--work", choices=NEED_LAYER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    kills = options.kills or (6 if options.quick else KILLS)
    if options.work:
        work(options.work, options.folder, options.quick)
        return
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vit-chaos-") as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        found = campaign(folder, options.only, options.quick, kills)
    problems = sum(len(figures["problems"]) for figures in found.values())
    print(f"{'fault':<46}{'faults':>8}{'problems':>9}")
    print("\n".join(table(found)))
    if "table" in found.get("reads", {}):
        print("", *read_cases.readme_table(found["reads"]["table"]), "", sep="\n")
    print(f"{problems or 'no'} problems, in {time.monotonic() - start:.0f} s")
    for part in found.values():
        part.pop("each", None)
    figures = {**found, "problems": problems, "cores": os.cpu_count()}
    if not options.quick and set(options.only) == set(PARTS):
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))
    sys.exit(problems > 0)


if __name__ == "__main__":
    main()
