"""Truncated checkpoint files and changed bytes: each must be detected, reported and quarantined, on four ranks."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.faults.runs import SAVE_OFTEN, Runs
from tests.helpers.ranks import run_ranks
from vit.checkpoint.format import find_checkpoints, step_of
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.resume import resume
from vit.checkpoint.saved_classes import DataSetClasses
from vit.checkpoint.train_state import TrainState
from vit.config.schema import Config
from vit.distributed.world import join_process_group
from vit.run.folder import RunFolder

STEPS, RANKS = 12, 4


def damaged(data: bytes, how: str, rng: random.Random) -> bytes:
    """The bytes of a file, truncated or with one byte changed at a random position."""
    at = rng.randrange(len(data))
    return data[:at] if how == "cut" else data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]


def resume_repeatedly(cfg: Config, source: Path, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Runs on each rank: resumes the run again and again, each time with different damage to its newest checkpoint."""
    rng, problems, found = random.Random(seed), list[str](), Counter[str]()
    with join_process_group(cfg) as world:
        run, state = RunFolder(folder), TrainState.fresh(cfg, world.device)
        newest, older = find_checkpoints(RunFolder(source).checkpoints)[:2]
        tensors, manifest = load_checkpoint(older)
        classes = DataSetClasses(cfg.data.train, manifest["about"]["classes"])
        for number in range(2 * count):
            how = ("cut", "flipped")[number % 2]
            file = sorted(newest.iterdir())[number // 2 % len(list(newest.iterdir()))]
            if world.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(source, folder)
                content = damaged(file.read_bytes(), how, rng)
                (run.checkpoints / newest.name / file.name).write_bytes(content)
            dist.barrier()
            for tensor in state.tensors().values():
                tensor.detach().fill_(77)  # no old value may pass for a resumed one
            step = resume(run, world, state, manifest["about"]["recipe"], classes, [])
            same = all(torch.equal(tensors[name], tensor.cpu()) for name, tensor in state.tensors().items())
            problem = _problem(run, step, step_of(older), same, newest.name, file.name)
            if problem:
                problems.append(f"{file.name} {how}, rank {world.rank}: {problem}")
            else:
                found[f"{'manifest' if file.suffix == '.json' else 'part'} {how}"] += 1
            dist.barrier()
    return {"found": dict(found), "problems": problems}


def _problem(run: RunFolder, step: int | None, expected: int, same: bool, newest: str, file: str) -> str | None:
    """What went wrong when the run was resumed; None if nothing."""
    reported = (run.last("damaged checkpoint") or {}).get("problem", "")
    if step != expected:
        return f"resumed from step {step}, not {expected}"
    if not same:
        return "the resumed state differs from the older checkpoint"
    if f"{newest}/{file}" not in reported:
        return f"{newest}/{file} is not reported: {reported!r}"
    if (run.checkpoints / newest).exists() or not list(run.checkpoints.glob(f"{newest}.damaged-*")):
        return "the damaged checkpoint is not quarantined"
    return None


def campaign(data: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Truncates 500 files and changes a byte in 500 (--quick: 5 each); returns figures and problems."""
    runs = Runs(data, folder / "runs", STEPS)
    run = runs.run("saved")
    runs.attempt(run, RANKS, SAVE_OFTEN).finish()
    count = 5 if quick else 500
    results = run_ranks(RANKS, resume_repeatedly, runs.cfg, run.path, folder / "damaged", count, 0, timeout=3000)
    print(json.dumps(results[0]["found"]), flush=True)
    problems = [problem for result in results for problem in result["problems"]]
    return {"cut": count, "flipped": count, "ranks": RANKS, "found": results[0]["found"], "problems": problems}
