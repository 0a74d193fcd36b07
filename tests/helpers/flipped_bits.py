"""Runs in which one bit of one rank's state is flipped, as defective hardware would."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from jobs.login.run_files import PACKAGES
from tests.helpers.interrupted_runs import FaultyTrainer
from tests.helpers.paths import ROOT
from vit.config.schema import Config, to_yaml
from vit.distributed.world import join_process_group
from vit.integrity.finding import WrongArithmeticError
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.training.step import AugmentedBatch


class Flip(NamedTuple):
    """A bit of one rank that is flipped after a step."""

    step: int  # steps done
    rank: int
    tensor: str  # its name in a checkpoint
    bit: int = 12  # of its first element: one of a float32 that survives rounding, and leaves it finite


def flip_bit(tensor: Tensor, bit: int) -> None:
    """Flips one bit of a tensor's first element in place."""
    with torch.no_grad():
        tensor.detach().reshape(-1)[:1].view(torch.int32).bitwise_xor_(1 << bit)


class FlippingTrainer(FaultyTrainer):
    """Flips bits after its steps."""

    flips: tuple[Flip, ...] = ()

    def train_step(self, step: int, batch: AugmentedBatch) -> None:
        super().train_step(step, batch)
        for flip in self.flips:
            if (flip.step, flip.rank) == (self.state.step, self.world.rank):
                flip_bit(self.state.compared_tensors()[flip.tensor], flip.bit)


def run_flipped(cfg: Config, run: Path, *flips: Flip) -> tuple[str, str]:
    """Runs one attempt on this rank; returns its outcome, or the message of WrongArithmeticError, and the step."""
    with join_process_group(cfg) as world:
        trainer = FlippingTrainer(cfg, RunFolder(run), world, Clock(time.time()), [])
        trainer.flips = flips
        try:
            outcome = trainer.train().value
        except WrongArithmeticError as error:
            outcome = str(error)
            trainer.saver.finish()
        trainer.agreement.close()
        trainer.saver.close()
        return outcome, f"step {trainer.state.step}"


def compare_every(cfg: Config, steps: int, log_every_steps: int = 1) -> Config:
    """Compares the ranks each n-th step, and looks at what was compared at each log step."""
    checks = replace(cfg.checks, checksum_every_steps=steps)
    return replace(cfg, checks=checks, log=replace(cfg.log, every_steps=log_every_steps))


# Code for `StepRunner.update` in the copy of the source that a job runs.  The file `faults` in the run folder has lines
# `step who what`: a rank or node flips a bit of the tensor `what` after this step, once, or, with `SIGKILL`, is killed
# in it after a finding; `always` before the line: each time.
PATCHED_FILE = "vit/training/step.py"
PATCHED_LINE = "        state.step = step + 1\n"
PATCH = """
        import os
        from vit.integrity.places import node_name
        run = self.comparison.run
        for i, line in enumerate((run.path / "faults").read_text().splitlines()):
            *always, at, who, what = line.split()
            done = run.path / f"fault-{i}"
            here = who in (str(self.world.rank), node_name())
            if state.step != int(at) or not here or (done.exists() and not always):
                continue
            if what != "SIGKILL":
                done.touch()
                state.compared_tensors()[what].detach().reshape(-1)[:1].view(torch.int32).bitwise_xor_(1 << 12)
            elif "wrong arithmetic" in run.ledger.read_text():
                done.touch()
                os.kill(os.getpid(), 9)
"""


def faulty_source(folder: Path) -> Path:
    """A copy of the packages in which a run's file `faults` is read."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / PATCHED_FILE).read_text()
    assert text.count(PATCHED_LINE) == 1
    (folder / PATCHED_FILE).write_text(text.replace(PATCHED_LINE, PATCHED_LINE + PATCH))
    return folder


JOB = (
    "import sys; from jobs.node.train_job import TrainJob; TrainJob(run=sys.argv[1], nodes=1, gpus=int(sys.argv[2]))()"
)


def supervise_with_faults(
    source: Path, run: Path, cfg: Config, ranks: int, *faults: str
) -> "subprocess.CompletedProcess[str]":
    """Runs a job on this machine, without Slurm, until its supervisor ends."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(cfg))
    (run / "faults").write_text("\n".join(faults))
    submitit = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": str(os.getpid())}
    environment = os.environ | submitit | {"PYTHONPATH": str(source)}
    return subprocess.run(
        [sys.executable, "-c", JOB, str(run), str(ranks)], env=environment, cwd=run, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
