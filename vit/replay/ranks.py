"""`--ranks 4,2,1`: the step on these numbers of ranks, in processes of their own, and whether the bits are the same."""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from vit.config.user_error import UserError
from vit.data.decode import DamagedDataError
from vit.distributed.world import join_process_group
from vit.integrity.checksums import tensor_checksums
from vit.replay.recorded import RecordedRun
from vit.replay.replayer import Replayer
from vit.run.counts import counted
from vit.run.parent import end_with_parent

TIMEOUT_SECONDS = 3600.0  # of the step on one number of ranks; it may compile
NAMED = 4  # tensors that differ, in a line


@dataclass(frozen=True)
class Task:
    """What each rank is told."""

    run: Path
    config: Path | None
    data: Path | None
    compiled: bool
    device: Literal["auto", "cuda", "cpu"]
    step: int
    state: Path  # file with the state before the step


@dataclass(frozen=True)
class Bits:
    """Checksums of what a step has computed, by name."""

    losses: list[float]  # of all micro-batches
    gradients: dict[str, int]
    state: dict[str, int]  # weights, optimizer state and EMA after the update

    def differing(self, other: "Bits") -> list[str]:
        """The names of what differs."""
        out = ["losses"] if str(self.losses) != str(other.losses) else []
        out += [f"gradient of {name}" for name in self.gradients if self.gradients[name] != other.gradients.get(name)]
        return out + [name for name in self.state if self.state[name] != other.state.get(name)]


def parse_ranks(text: str) -> list[int]:
    """`4,2,1` -> [4, 2, 1].  Raises UserError."""
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"--ranks {text!r} must be numbers separated by commas, e.g. 4,2,1")
    return [int(word) for word in words]


def save_state(replayer: Replayer, folder: Path) -> Path:
    """Writes the state before the step for the ranks."""
    step, tensors, metadata = replayer.saved_state()
    path = folder / "state.pt"
    torch.save({"step": step, "tensors": tensors, "metadata": metadata}, path)
    return path


def step_bits(replayer: Replayer) -> Bits:
    """Runs the next step with its update, also if the run skips it, and returns what it has computed."""
    step = replayer.forward_backward()
    return bits_of_update(replayer, step.losses)


def bits_of_update(replayer: Replayer, losses: list[float]) -> Bits:
    """Updates the weights with the gradients of the step, and returns what was computed."""
    model, device = replayer.state.model, replayer.world.device
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    sums = _checksums(gradients, device)  # before the update, which may scale them
    replayer.update()
    return Bits(losses, sums, _checksums(replayer.state.tensors(), device))


def _checksums(tensors: dict[str, Tensor], device: torch.device) -> dict[str, int]:
    return dict(zip(tensors, tensor_checksums(tensors.values(), device).tolist(), strict=True))


def compare_ranks(task: Task, numbers: Sequence[int], here: Bits) -> list[str]:
    """Runs the step on each number of ranks, and compares it with the one of this process.  Returns a table.

    Raises UserError if this machine or the run does not allow so many ranks.
    """
    lines = [f"{'ranks':<8}{'loss':<22}{'gradients':<20}{'after the update':<20}"]
    lines.append(f"{'here':<8}{_row(here)}")
    for number in numbers:
        found = run_on(task, number)
        differing = here.differing(found)
        more = f" and {len(differing) - NAMED:,} more" if len(differing) > NAMED else ""
        verdict = f"differs: {', '.join(differing[:NAMED])}{more}" if differing else "the same bits"
        lines.append(f"{number:<8}{_row(found)}{verdict}")
    return lines


def _row(bits: Bits) -> str:
    loss = sum(bits.losses) / len(bits.losses)
    return f"{loss:<22.9g}{_digest(bits.gradients):<20}{_digest(bits.state):<20}"


def _digest(sums: dict[str, int]) -> str:
    """One number for many checksums, as 16 hexadecimal digits."""
    total = 0
    for value in sums.values():
        total = (total * 0x9E3779B97F4A7C15 + value) % 2**64
    return f"{total:016x}"


def run_on(task: Task, ranks: int) -> Bits:
    """Runs the step on this number of ranks of this machine.  Raises UserError, or RuntimeError if a rank is lost."""
    # A fork of this process would inherit the state of autograd's threads and of the GPU.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vit.replay.ranks", "torch._dynamo"])
    # The store is in this process, so that no other one can take its port.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes, pipes = [], dict[Any, int]()
    results: list[Any] = [None] * ranks
    try:
        for rank in range(ranks):
            ours, theirs = Pipe(duplex=False)
            process = context.Process(target=_rank_main, args=(task, rank, ranks, store.port, os.getpid(), theirs))
            process.start()
            theirs.close()
            processes.append(process)
            pipes[ours] = rank
        while pipes:
            ready = wait(list(pipes), TIMEOUT_SECONDS)
            if not ready:
                minutes = TIMEOUT_SECONDS / 60
                raise UserError(f"{counted(ranks, 'rank')} did not finish the step in {minutes:.0f} minutes")
            for pipe in ready:
                rank = pipes.pop(pipe)
                results[rank] = _received(pipe, rank)
    finally:
        for process in processes:
            process.kill()
            process.join()
    first: Bits = results[0]
    return replace(first, losses=[loss for bits in results for loss in bits.losses])


def _received(pipe: Any, rank: int) -> Any:
    """What a rank has sent; its UserError is raised here."""
    try:
        answer = pipe.recv()
    except EOFError:
        raise UserError(f"rank {rank} ended without a result; its error is above") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _rank_main(task: Task, rank: int, ranks: int, port: int, parent: int, pipe: Connection) -> None:
    """One rank, with torchrun's environment variables."""
    end_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends the ranks
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_USE_AGENT_STORE="True")
    try:
        answer: Bits | Exception = _run_step(task)
    except (UserError, OSError, DamagedDataError) as error:
        answer = UserError(f"--ranks {ranks}: {error}")
    pipe.send(answer)
    sys.stdout.flush()
    os._exit(0)


def _run_step(task: Task) -> Bits:
    """The step on this rank, from the state before it."""
    run = RecordedRun(task.run, task.config)
    cfg = replace(run.config(task.step, task.data), device=task.device)
    with join_process_group(cfg) as world:
        replayer = Replayer(run, world, task.data, task.compiled, lambda _: None)
        saved = torch.load(task.state, map_location="cpu", weights_only=True)
        replayer.restore(saved["step"], saved["tensors"], saved["metadata"])
        return step_bits(replayer)


def temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for the state before the step; not in the run folder, which is only read."""
    return tempfile.TemporaryDirectory(prefix="vit-replay-")
