"""Checkpoints that are cut short, or have one byte changed: each must be found, named and set aside, on four ranks."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.faults.runs import OFTEN, Runs
from tests.helpers.ranks import run_ranks
from vit.checkpoint.format import find_checkpoints, step_of
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.resume import resume
from vit.checkpoint.train_state import TrainState
from vit.config.schema import Config
from vit.distributed.world import join
from vit.run.folder import RunFolder

STEPS, RANKS = 12, 4


def damaged(data: bytes, how: str, chance: random.Random) -> bytes:
    """A file's bytes with one of them another, or fewer of them."""
    at = chance.randrange(len(data))
    return data[:at] if how == "cut" else data[:at] + bytes([data[at] ^ chance.randrange(1, 256)]) + data[at + 1 :]


def resumes(cfg: Config, source: Path, folder: Path, each: int, seed: int) -> dict[str, Any]:
    """What one rank of some sees: it takes over the run again and again, each time with other damage to its newest."""
    chance, problems, found = random.Random(seed), list[str](), Counter[str]()
    with join(cfg) as world:
        run, state = RunFolder(folder), TrainState.fresh(cfg, world.device)
        newest, older = find_checkpoints(RunFolder(source).checkpoints)[:2]
        tensors, manifest = load_checkpoint(older)
        for number in range(2 * each):
            how = ("cut", "flipped")[number % 2]
            file = sorted(newest.iterdir())[number // 2 % len(list(newest.iterdir()))]
            if world.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(source, folder)
                damage = damaged(file.read_bytes(), how, chance)
                (run.checkpoints / newest.name / file.name).write_bytes(damage)
            dist.barrier()
            for tensor in state.tensors().values():
                tensor.detach().fill_(77)  # nothing is right by chance
            step = resume(run, world, state, manifest["about"]["recipe"], [])
            same = all(torch.equal(tensors[name], tensor.cpu()) for name, tensor in state.tensors().items())
            problem = _wrong(run, step, step_of(older), same, newest.name, file.name)
            if problem:
                problems.append(f"{file.name} {how}, rank {world.rank}: {problem}")
            else:
                found[f"{'manifest' if file.suffix == '.json' else 'part'} {how}"] += 1
            dist.barrier()
    return {"found": dict(found), "problems": problems}


def _wrong(run: RunFolder, step: int | None, expected: int, same: bool, newest: str, file: str) -> str | None:
    """What is wrong with how it was resumed."""
    told = (run.last("damaged checkpoint") or {}).get("problem", "")
    if step != expected:
        return f"resumed from step {step}, not {expected}"
    if not same:
        return "what was resumed is not what the older checkpoint holds"
    if f"{newest}/{file}" not in told:
        return f"{newest}/{file} is not named: {told!r}"
    if (run.checkpoints / newest).exists() or not list(run.checkpoints.glob(f"{newest}.damaged-*")):
        return "it is not set aside"
    return None


def campaign(data: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Figures and problems: of 500 files that are cut and 500 that are changed; --quick: 5 each."""
    runs = Runs(data, folder / "runs", STEPS)
    run = runs.run("saved")
    runs.attempt(run, RANKS, OFTEN).finish()
    each = 5 if quick else 500
    told = run_ranks(RANKS, resumes, runs.cfg, run.path, folder / "damaged", each, 0, timeout=3000)
    print(json.dumps(told[0]["found"]), flush=True)
    problems = [problem for rank in told for problem in rank["problems"]]
    return {"cut": each, "flipped": each, "ranks": RANKS, "found": told[0]["found"], "problems": problems}
