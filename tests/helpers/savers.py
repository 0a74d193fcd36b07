"""A Saver with a small state, for functions that run on ranks; and what it left in the run folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit.checkpoint.format import find_checkpoints, step_of
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.saver import Saver
from vit.config.schema import Config
from vit.config.sections import CheckpointConfig
from vit.distributed.world import join_process_group
from vit.run.folder import Event, RunFolder

SAVE_OFTEN = CheckpointConfig(every_minutes=1e-6)


@dataclass
class SmallState:
    """Stands in for TrainState: tensors whose values depend on the step, updated in place as a model's are."""

    count: int  # elements of each tensor
    step: int = 0
    wait_for_copy: Callable[[], None] = lambda: None  # the saver's

    def __post_init__(self) -> None:
        names = ("model.a", "model.b", "optimizer.c", "optimizer.d")
        self._tensors = {name: torch.empty(self.count) for name in names}
        self.train(0)

    def train(self, step: int) -> None:
        """Updates the tensors to those of a step."""
        self.wait_for_copy()
        self.step = step
        for i, tensor in enumerate(self._tensors.values()):
            tensor.fill_(step + i / 4)

    def tensors(self) -> dict[str, Tensor]:
        return self._tensors


@contextmanager
def saver_on_rank(
    run: Path, count: int = 1000, cfg: CheckpointConfig = SAVE_OFTEN, **options: Any
) -> Iterator[tuple[Any, Saver]]:
    """Joins the process group; yields this rank's state and its saver."""
    with join_process_group(Config(device="cpu")) as world:
        run.mkdir(parents=True, exist_ok=True)
        state: Any = SmallState(count)
        saver = Saver(RunFolder(run), world, cfg, state, lambda: {"of": state.step}, set, **options)
        state.wait_for_copy = saver.wait_for_copy
        yield state, saver
        saver.close()


def save_step(state: Any, saver: Saver, step: int) -> int | None:
    """Updates the state to a step, saves it and waits; returns the newest saved step."""
    state.train(step)
    saver.save()
    saved_step = saver.finish()
    saver.wait_until_pruned()
    return saved_step


def saved_steps(run: Path) -> list[int]:
    """The steps of the checkpoints, newest first; asserts that each has the tensors of its step."""
    paths = find_checkpoints(RunFolder(run).checkpoints)
    for path in paths:
        tensors, manifest = load_checkpoint(path)
        assert manifest["step"] == step_of(path)
        for i, tensor in enumerate(tensors.values()):
            assert (tensor == step_of(path) + i / 4).all(), path
    return [step_of(path) for path in paths]


def events(run: Path, name: str) -> list[Event]:
    """The ledger's events of that name."""
    return [event for event in RunFolder(run).events() if event["event"] == name]
