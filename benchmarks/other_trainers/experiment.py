"""Starts a trainer on small data with a fault, and reads what it left."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.other_trainers.trainers import HERE, Trainer
from tests.helpers.ports import free_ports

LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Ended:
    """How a start of a trainer ended."""

    codes: list[int]  # exit codes of the ranks; negative: a signal; 999: still running after the limit
    last_line: str  # of what it wrote
    output: str
    opened: list[list[str]]  # training images, by rank

    @property
    def images(self) -> list[str]:
        """Of all ranks."""
        return [name for rank in self.opened for name in rank]


class Experiment:
    """One trainer, in a folder of its own."""

    def __init__(self, trainer: Trainer, data: Path, folder: Path) -> None:
        self.trainer, self.data, self.folder, self.starts = trainer, data, folder, 0
        self.requeues = folder / "requeues"
        programs = folder / "bin"
        programs.mkdir(parents=True)
        (programs / "scontrol").write_text(f'#!/bin/sh\necho "scontrol $@" >> {self.requeues}\nkill -KILL $PPID\n')
        (programs / "scontrol").chmod(0o755)

    def start(
        self,
        run: str,
        lr: str = "0.01",
        resume: bool = False,
        signal: str = "",
        at: int = -1,
        first_rank: int = 0,
        prefix: Sequence[str] = (),
    ) -> Ended:
        """Starts all ranks and waits for them; those from `first_rank` get the signal when they open image number `at`.

        The prefix of the command is that of a launcher.
        """
        self.starts += 1
        (port,) = free_ports(1)
        processes, outs, images = list[subprocess.Popen[bytes]](), list[Path](), list[Path]()
        for rank in range(self.trainer.ranks):
            variables = self.trainer.variables(rank, port)
            paths = [str(HERE), variables.get("PYTHONPATH", "")]
            images.append(self.folder / f"images-{self.starts}-{rank}")
            variables |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "IMAGES_OPENED": str(images[-1])}
            variables |= {"PATH": f"{self.folder / 'bin'}{os.pathsep}{variables['PATH']}", "OMP_NUM_THREADS": "1"}
            variables |= {"SIGNAL": signal, "SIGNAL_AT": str(at)} if signal and rank >= first_rank else {}
            command = [*prefix, *self.trainer.command(self.data, self.folder / run, lr, resume)]
            outs.append(self.folder / f"output-{self.starts}-{rank}")
            with outs[-1].open("wb") as out:
                cwd = self.trainer.script.parent
                processes.append(
                    subprocess.Popen(command, env=variables, cwd=cwd, stdout=out, stderr=subprocess.STDOUT)
                )
        codes = [_wait(process) for process in processes]
        text = outs[0].read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        opened = [path.read_text().split() if path.exists() else [] for path in images]
        return Ended(codes, lines[-1] if lines else "", text, opened)

    def weights(self, run: str) -> dict[str, torch.Tensor]:
        """The weights of the newest checkpoint."""
        saved = torch.load(self.folder / run / self.trainer.saved, weights_only=False, map_location="cpu")
        return dict(saved[self.trainer.weights])

    def same(self, run: str, other: str) -> bool:
        """Whether two runs ended with the same bits."""
        a, b = self.weights(run), self.weights(other)
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    def files(self, run: str) -> set[str]:
        """What is in the folder of a run."""
        folder = self.folder / run
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return 999
