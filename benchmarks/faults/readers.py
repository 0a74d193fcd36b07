"""The readers of a run folder that need no torch, on a disk that cannot be read, in any Python.

python -m benchmarks.faults.readers FOLDER          with the fault-injection layer loaded; prints one JSON object

What pathlib and os do with an error differs between versions of Python: `Path.glob`, `Path.exists` and `Path.is_file`
hide more of them in each.  A reader must give the right result, or raise an error that names the file.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from errno import ENOENT
from pathlib import Path
from typing import Any

from benchmarks.faults.read_cases import ABSENT, REFUSED, UNHARMED, Ended, Forks, Tally, read_tree
from benchmarks.faults.read_layer import Extent, Fault, ReadLayer, environment, faults
from jobs.watch.run_status import is_run, status
from vit.checkpoint.format import commit, find_checkpoints, prune, read_manifest, read_tensors, write_part
from vit.data.dataset_manifest import FORMAT, read_dataset_manifest
from vit.run.folder import RunFolder
from vit.run.jsonl import append, read_lines

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.11", "3.12", "3.13")  # of Python
Reader = Callable[[], object]
AGES = {"seconds_since_sign", "checkpoint_age", "waiting"}  # differ each time that a status is read


def write_run(folder: Path) -> RunFolder:
    """Writes a run folder with two checkpoints, and the manifest of a data set beside it."""
    run = RunFolder(folder / "run")
    run.path.mkdir(parents=True)
    run.config.write_text("epochs: 1\n")
    for step in (1, 2):
        data = bytes([step]) * 4096
        layout = {"model.a": {"dtype": "uint8", "shape": [4096], "part": 0, "offset": 0, "bytes": 4096}}
        append(run.metrics, {"step": step, "steps": 2, "loss": 1.0 / step})
        digests = write_part(run.checkpoints, step, 0, memoryview(data), [len(data)])
        commit(run.checkpoints, step, layout, [digests], {}, [run.metrics])
        run.record("checkpoint", step=step)
    run.record("finished", step=2)
    image = dict.fromkeys(("max_resolution", "min_height", "max_height", "min_width", "max_width"), 8)
    content: dict[str, Any] = {"format": FORMAT, "file": "train.beton", "bytes": 4, "sha256": "0", "samples": 1}
    content |= {"classes": ["a"], "histogram": [1], "source": "", "seed": None, "versions": {}}
    content |= {"image": image | {"mode": "raw", "quality": None}, "page_size": 4, "pages": ["0"]}
    (folder / "train.beton").write_bytes(b"0000")
    (folder / "train.beton.json").write_text(json.dumps(content))
    return run


def readers(run: RunFolder) -> dict[str, Reader]:
    """The readers by name; the result of each is printed."""
    newest = run.checkpoints / "step-00000002"
    out: dict[str, Reader] = {
        "find_checkpoints": lambda: [path.name for path in find_checkpoints(run.checkpoints)],
        "read_manifest": lambda: read_manifest(newest),
        "read_tensors": lambda: [
            (name, zlib.crc32(data)) for name, data in read_tensors(newest, read_manifest(newest))
        ],
        "prune": lambda: prune(run.checkpoints, keep=2),
        "ledger": run.events,
        "finished": run.finished,
        "learning curve": lambda: read_lines(run.metrics),
        "data set's manifest": lambda: read_dataset_manifest(run.path.with_name("train.beton")).samples,
        "is_run": lambda: is_run(run.path),
        "status": lambda: {k: v for k, v in asdict(status(run, {})).items() if k not in AGES},
    }
    try:
        from vit.config.parser import load_config
    except ModuleNotFoundError as error:  # this Python has only its standard library
        print(f"config.yaml is not read: {error}", file=sys.stderr)
    else:
        out["config"] = lambda: load_config(run.config).epochs
    return out


def check(reader: str, fault: Fault, ended: Ended, expected: str, unchanged: bool) -> tuple[str, list[str]]:
    """The outcome of a case, and the problems."""
    problems = [] if unchanged else ["the run folder was changed"]
    may_be_damage = fault.error == ENOENT
    if ended.code:
        last = ended.message.splitlines()[-1:] or ["no message"]
        if not ended.names_a_file():
            problems.append(f"the message names no file: {last[0]}")
        if "DamagedCheckpointError" in last[0] and not may_be_damage:
            problems.append(f"an error of the disk was taken for damage: {last[0]}")
        return REFUSED, problems
    if ended.output == expected:
        return UNHARMED, problems
    if not may_be_damage and not (reader in ("status", "prune") and ended.names_a_file()):
        problems.append(f"a wrong result: {ended.output[:200]}")
    return ABSENT, problems


def wrong_readers(run: RunFolder) -> dict[str, Reader]:
    """Readers that hide errors, which the campaign must notice."""

    def hides_errors() -> list[str]:
        try:
            return sorted(os.listdir(run.checkpoints))
        except OSError:
            return []

    return {"hides errors": hides_errors, "Path.glob": lambda: sorted(p.name for p in run.checkpoints.glob("step-*"))}


class Readers:
    """Readers on disks that cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.original, self.root = folder / "original", folder / "runs"
        write_run(self.original)
        shutil.copytree(self.original, self.root, dirs_exist_ok=True)
        self.run, self.forks = RunFolder(self.root / "run"), Forks(ReadLayer(), folder / "output")
        self.before = read_tree(self.root)

    def break_reads(self, name: str, reader: Reader, tally: Tally, count: int = 0) -> None:
        """Lets each read of a reader fail, or a random choice of `count` faults."""
        recorded = self.forks.run(reader, record=True)
        if recorded.code:
            raise RuntimeError(f"{name} failed without a fault:\n{recorded.output}")
        found = list(faults(recorded.calls))
        for fault in random.Random(0).sample(found, count) if 0 < count < len(found) else found:
            ended = self.forks.run(reader, fault)
            unchanged = read_tree(self.root) == self.before
            # A file that is gone may be damage, which may be quarantined.
            allowed = unchanged or (fault.error == ENOENT and fault.extent != Extent.ONCE and name == "prune")
            if ended.calls:
                tally.add(name, fault, self.run.path, *check(name, fault, ended, recorded.output, allowed))
            if not unchanged:
                shutil.rmtree(self.root)
                shutil.copytree(self.original, self.root)


def campaign(folder: Path, count: int = 0) -> dict[str, Any]:
    """Breaks the reads of each reader (`count`: a random choice of them); returns figures and problems."""
    tested, tally = Readers(folder), Tally("readers, Python {}.{}".format(*sys.version_info))
    noticed = {}
    for name, reader in wrong_readers(tested.run).items():
        tested.break_reads(name, reader, found := Tally())
        noticed[name] = len(found.problems)
    for name, reader in readers(tested.run).items():
        tested.break_reads(name, reader, tally, count)
    out = tally.figures() | {"python": sys.version.split()[0], "noticed": noticed}
    out["problems"] += [f"the wrong reader {name!r} was not noticed" for name in noticed if not noticed[name]]
    return out


def interpreters() -> dict[str, str]:
    """The Pythons of VERSIONS that are installed here: this one, and those on the PATH or of pyenv."""
    out = {"{}.{}".format(*sys.version_info): sys.executable}
    for version in VERSIONS:
        pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        for candidate in (shutil.which(f"python{version}"), *map(str, pyenv)):
            code = "import sys; print('%d.%d' % sys.version_info[:2])"
            if candidate and version not in out:
                done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
                if done.stdout.strip() == version:
                    out[version] = candidate
    return out


def run_in(python: str, folder: Path, count: int = 0) -> dict[str, Any]:
    """Runs the campaign in another Python; returns its figures."""
    (folder / "runs").mkdir(parents=True)
    env = {**os.environ, **environment(folder / "runs", folder / "layer"), "PYTHONPATH": str(ROOT)}
    command = [python, "-m", "benchmarks.faults.readers", str(folder), str(count)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        return {"cases": 0, "table": [], "problems": [f"{python} failed: {done.stderr[-500:]}"]}
    out: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return out


def main(arguments: Sequence[str]) -> None:
    """Prints the figures as one JSON object."""
    print(json.dumps(campaign(Path(arguments[0]), int(arguments[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])
