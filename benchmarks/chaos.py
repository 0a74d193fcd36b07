"""Faults on purpose, thousands of them, on real runs: does each go on, from where, with what lost, to the same bits?

python benchmarks/chaos.py [--quick] [--only kills damage errors crashes] [--folder DIR]

    kills     SIGKILL at random instants: of a rank, all ranks, the launcher, everything, a writer of checkpoints
    damage    files of a checkpoint that are cut short, or have one byte changed
    errors    ENOSPC, EIO and EDQUOT from each call that writes, in turn, and a real file system that is full
    crashes   a power cut between any two file operations, in all states that the disk may be left in

The runs are small, and real: the trainer's own command, four micro-batches of Fashion-MNIST on 4, 2 and 1 ranks of one
thread. Each is finished after its faults, and held, bit by bit, against a run that was left alone: weights, moments,
averages, learning curve, sample ids.  Each part is a process of its own; with --folder, those that are done there are
not done again.  The full campaign takes half an hour on two cores; its figures go to benchmarks/results/chaos.json.
The exit code is 1 if anything was lost.  The last line is one JSON object with all figures.
"""

import argparse
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

from benchmarks.faults import layer

RESULTS = ROOT / "benchmarks" / "results" / "chaos.json"
PARTS = ("kills", "damage", "errors", "crashes")
UNDER_THE_LAYER = ("errors", "crashes")
LANES, KILLS = 3, 1020


def work(part: str, folder: Path, quick: bool, kills: int = 0, seed: int = 0) -> None:
    """What the process of a part does: its figures go to a file beside its folder."""
    from benchmarks.faults import crashes, damage, errors
    from benchmarks.faults import kills as killing

    data = folder.parent / "data"
    if part == "kills":
        figures = killing.campaign(data, folder, kills, seed)
    else:
        campaign = {"damage": damage.campaign, "errors": errors.campaign, "crashes": crashes.campaign}[part]
        figures = campaign(data, folder, quick)
    folder.with_suffix(".json").write_text(json.dumps(figures))


class Part:
    """A part of the campaign, or a lane of one, in a process of its own: a fork, but for those under the layer."""

    def __init__(self, part: str, folder: Path, quick: bool, kills: int = 0, lane: int = 0) -> None:
        self.name, self.folder = part, folder / (f"{part}-{lane}" if part == "kills" else part)
        self.skipped = layer.missing() if part in UNDER_THE_LAYER else None
        self.process: subprocess.Popen[bytes] | BaseProcess | None = None
        if self.skipped or self.folder.with_suffix(".json").exists():
            return
        self.folder.mkdir(exist_ok=True)
        if part not in UNDER_THE_LAYER:
            asked = (part, self.folder, quick, kills, 100 + lane)
            self.process = multiprocessing.get_context("fork").Process(target=self._work, args=asked)
            self.process.start()
            return
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment |= layer.environment(self.folder / "runs", self.folder / "layer")
        command = [sys.executable, __file__, "--work", part, "--folder", str(self.folder), *["--quick"] * quick]
        with self.folder.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def _code(self) -> int | None:
        """Waits for its end; the exit code."""
        if isinstance(self.process, BaseProcess):
            self.process.join()
            return self.process.exitcode
        return self.process.wait() if self.process is not None else 0

    def _work(self, *asked: Any) -> None:
        """In the fork."""
        log = os.open(self.folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work(*asked)

    def figures(self) -> dict[str, Any]:
        """Waits for the part's end.  A part that fails is a problem."""
        if self.skipped:
            return {"skipped": self.skipped, "problems": []}
        if self._code() != 0:
            words = self.folder.with_suffix(".log").read_text(errors="replace").splitlines()[-8:]
            return {"problems": [f"the {self.name} did not end: {' | '.join(words)}"]}
        out: dict[str, Any] = json.loads(self.folder.with_suffix(".json").read_text())
        return out


def together(lanes: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several lanes as those of one."""
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
    """Runs the kills beside the other parts, one after the other or all at once if they are quick; figures of each."""
    from benchmarks.faults.runs import make_data

    (folder / "data").mkdir(exist_ok=True)
    make_data(folder / "data")
    found: dict[str, Any] = {}
    lanes = 1 if quick else LANES
    going = [Part("kills", folder, quick, kills // lanes, lane) for lane in range(lanes) if "kills" in parts]
    others = [name for name in parts if name != "kills"]
    at_once = {name: Part(name, folder, quick) for name in others if quick}
    for name in others:
        found[name] = (at_once.get(name) or Part(name, folder, quick)).figures()
    if going:
        found["kills"] = together([part.figures() for part in going])
    return found


def table(found: dict[str, Any]) -> list[str]:
    """A row for each part: faults, what they cost, and what should not be."""
    rows = []
    for name, figures in found.items():
        wrong = len(figures["problems"])
        if "skipped" in figures:
            rows.append(f"{name:<10}left out: {figures['skipped']}")
            continue
        if name == "kills" and "kills" in figures:
            inside, lost = figures["inside_a_save"], figures["steps_lost"] / max(1, figures["kills"])
            rows.append(f"{'SIGKILL':<46}{figures['kills']:>8,}{wrong:>8}   {inside:,} inside a save, {lost:.1f} steps")
        elif name == "damage" and "cut" in figures:
            for how, what in (("cut", "a file of a checkpoint cut short"), ("flipped", "one byte of it changed")):
                named = sum(count for kind, count in figures["found"].items() if kind.endswith(how))
                rows.append(f"{what:<46}{figures[how]:>8,}{figures[how] - named:>8}   all found, the one before used")
        elif name == "errors" and "one_rank" in figures:
            for part, what in (("one_rank", "a call that writes fails"), ("two_ranks", "the same, on two ranks")):
                if figures[part]:
                    calls = f"{figures[part]['calls']} calls in turn"
                    rows.append(f"{what:<46}{figures[part]['runs']:>8,}{wrong:>8}   {calls}")
            if "runs" in figures["full"]:
                rows.append(f"{'a real disk that is full':<46}{figures['full']['runs']:>8,}{wrong:>8}")
        elif name == "crashes" and "states" in figures:
            told = f"after each of {figures['operations']} operations"
            rows.append(f"{'a power cut: states of the disk':<46}{figures['states']:>8,}{wrong:>8}   {told}")
        rows += [f"  {problem}" for problem in figures["problems"][:20]]
    return rows


def main() -> None:
    """Prints a table, and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="some of each, a minute on two cores")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts of the campaign")
    parser.add_argument("--kills", type=int, help=f"how many (default: {KILLS:,}, quick: 6)")
    parser.add_argument("--folder", type=Path, help="keep everything there (default: a temporary folder)")
    parser.add_argument("--work", choices=UNDER_THE_LAYER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    kills = options.kills or (6 if options.quick else KILLS)
    if options.work:
        work(options.work, options.folder, options.quick)
        return
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vit-chaos-") as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        found = campaign(folder, options.only, options.quick, kills)
    problems = sum(len(figures["problems"]) for figures in found.values())
    print(f"{'fault':<46}{'times':>8}{'wrong':>8}")
    print("\n".join(table(found)))
    print(f"{problems or 'nothing'} lost, damaged or silent, in {time.monotonic() - begun:.0f} s")
    for part in found.values():
        part.pop("each", None)
    figures = {**found, "problems": problems, "cores": os.cpu_count()}
    if not options.quick and set(options.only) == set(PARTS):
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))
    sys.exit(problems > 0)


if __name__ == "__main__":
    main()
