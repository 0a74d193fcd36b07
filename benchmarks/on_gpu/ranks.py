"""Bits on 1, 2 and 4 ranks, and the whole trainer at its full size.

python -m benchmarks.on_gpu.ranks [NAME]

With one GPU the ranks share it and exchange over gloo; with more, NCCL connects one rank on each.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.on_gpu.checks import Checks, main, work_folder
from benchmarks.on_gpu.images import data_settings
from benchmarks.on_gpu.jobs import run, started
from vit.checkpoint.format import find_checkpoints
from vit.checkpoint.load import load_checkpoint
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines

checks = Checks()
SMALL = ["--model.width", "192", "--model.heads", "3", "--model.depth", "4", "--model.mlp_dim", "768"]
OPTIONS = ["--config", "configs/vit_b16_deit.yaml", "--compile", "false", *SMALL, "--micro_batch", "32"]
OPTIONS += ["--global_batch", "256", "--optim.warmup_epochs", "0.5", "--epochs", "6", "--optim.ema_decay", "0.99"]


def program(ranks: int) -> str:
    return "vit.train" if torch.cuda.device_count() >= ranks else "benchmarks.on_gpu.shared_gpu"


def command(folder: Path, ranks: int, *options: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m", program(ranks)]
    return [*launcher, *OPTIONS, *data_settings(work_folder()), "--run-dir", str(folder), *options]


def differences(first: Path, second: Path) -> list[str]:
    """Names of the tensors that differ between the newest checkpoints of two runs."""
    a, b = (load_checkpoint(find_checkpoints(run / "checkpoints")[0])[0] for run in (first, second))
    return [name for name in a if not torch.equal(a[name], b[name])]


@checks.add
def one_two_and_four_ranks_end_with_the_same_bits() -> str:
    folder, seconds = work_folder() / "ranks", []
    shutil.rmtree(folder, ignore_errors=True)
    for ranks in (1, 2, 4):
        began = time.monotonic()
        run(*command(folder / str(ranks), ranks), seconds=150)
        seconds.append(round(time.monotonic() - began, 1))
    for ranks in (2, 4):
        differ = differences(folder / "1", folder / str(ranks))
        assert not differ, f"{len(differ)} tensors differ between 1 and {ranks} ranks, the first is {differ[0]}"
    return f"{seconds} s"


@checks.add
def a_run_killed_on_two_ranks_and_finished_on_four_ends_with_the_same_bits() -> str:
    folder, undisturbed = work_folder() / "ranks" / "killed", work_folder() / "ranks" / "1"
    shutil.rmtree(folder, ignore_errors=True)
    if not undisturbed.exists():  # the check before this one was not run
        run(*command(undisturbed, 1), seconds=150)
    often = ["--checkpoint.every_minutes", "0.02"]
    with started(*command(folder, 2, *often)) as process:
        deadline = time.monotonic() + 90
        while len(list((folder / "checkpoints").glob("step-*[0-9]"))) < 2:
            assert time.monotonic() < deadline and process.poll() is None, "no two checkpoints were written"
            time.sleep(0.05)
        psutil.Process(process.pid).children()[0].kill()
        process.communicate(timeout=60)
    saved = int(find_checkpoints(folder / "checkpoints")[0].name.removeprefix("step-"))
    assert RunFolder(folder).last("finished") is None, "it finished before it was killed"
    run(*command(folder, 4), seconds=120)
    differ = differences(undisturbed, folder)
    assert not differ, f"{len(differ)} tensors differ, the first is {differ[0]}"
    return f"resumed at step {saved}"


@checks.add
def a_rank_that_finds_damaged_data_names_the_page_at_once() -> tuple[str, dict[str, float]]:
    folder = work_folder() / "ranks" / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = folder / "train.beton"
    content = bytearray((work_folder() / "train.beton").read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    shutil.copy(work_folder() / "train.beton.json", folder / "train.beton.json")
    began = time.monotonic()
    options = ["--data.train", str(data), "--data.verify", "first-epoch"]
    output = run(*command(folder / "run", 2, *options), seconds=150, check=False)
    seconds = round(time.monotonic() - began, 1)
    failures = [each["error"] for each in RunFolder(folder / "run").events() if each["event"] == "failed"]
    assert any("page" in each for each in failures), (failures, output[-1500:])
    assert seconds < 60, f"it took {seconds} s: {failures}"
    return f"{seconds} s: {failures[0][:150]}", {"seconds": seconds}


@checks.add
def the_whole_trainer_at_full_size() -> tuple[str, dict[str, Any]]:
    folder = work_folder() / "ranks" / "whole"
    shutil.rmtree(folder, ignore_errors=True)
    options = ["--config", "configs/vit_b16.yaml", "--global_batch", "384", "--epochs", "16"]
    options += ["--optim.warmup_epochs", "1", "--log.every_steps", "10", "--checkpoint.every_minutes", "0.1"]
    options += ["--log.eval_every_epochs", "8", *data_settings(work_folder()), "--run-dir", str(folder)]
    run("-m", "vit.train", *options, seconds=170)
    whole = RunFolder(folder)
    speeds = [round(each["images_per_second"]) for each in read_lines(whole.metrics) if "images_per_second" in each]
    finished = whole.last("finished")
    assert finished is not None
    figures = {"images_per_second": speeds, "seconds": finished["seconds"], "cores": os.cpu_count()}
    return json.dumps(figures), figures


if __name__ == "__main__":
    main(checks)
