"""What all trainers that step.py compares have in common: the model's size, the batches, and the clock.

A trainer is a function that trains on all batches of an iterator, in the loop of its own documentation.  The iterator
measures it: between two requests for a batch lies one step.  Between two rounds it waits for a command, so that
trainers in several processes take turns.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from vit.config.sections import ModelConfig

CLASSES, DISTINCT_BATCHES, WARM_UP = 1000, 4, 3
LR, WEIGHT_DECAY, BETAS, EPS, CLIP_NORM, EMA_DECAY = 1e-4, 0.05, (0.9, 0.999), 1e-8, 1.0, 0.9999
MODELS = {
    "vit_ti16": ModelConfig(width=192, heads=3, mlp_dim=768),
    "vit_s16": ModelConfig(width=384, heads=6, mlp_dim=1536),
    "vit_b16": ModelConfig(),
}


@dataclass(frozen=True)
class Setup:
    """What is trained, and how."""

    model_name: str  # of MODELS
    depth: int  # blocks
    batch: int  # images per step
    precision: str  # float32 or bf16: that of matrix products; weights are float32
    device: torch.device

    @property
    def model(self) -> ModelConfig:
        sizes = MODELS[self.model_name]
        return ModelConfig(width=sizes.width, heads=sizes.heads, mlp_dim=sizes.mlp_dim, depth=self.depth)

    def autocast(self) -> torch.autocast:
        """The context for forward and loss."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """Random normalized images (B, 3, S, S) and soft targets (B, C), on the device; measures who iterates over it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        random = torch.Generator().manual_seed(0)
        B, S = setup.batch, setup.model.image_size
        self._batches = []
        for _ in range(DISTINCT_BATCHES):
            images = torch.randn(B, 3, S, S, generator=random)
            labels = torch.randint(CLASSES, (2, B), generator=random)
            first, second = (0.9 * torch.nn.functional.one_hot(each, CLASSES) + 0.1 / CLASSES for each in labels)
            self._batches.append((images.to(setup.device), (0.7 * first + 0.3 * second).to(setup.device)))
        self._given = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        started = time.perf_counter()
        yield from self._next(WARM_UP)
        self._synchronize()
        answer = {"first_seconds": time.perf_counter() - started}
        while True:
            self._release_memory()
            print(json.dumps(answer), flush=True)
            command = sys.stdin.readline().split()
            if not command:
                return
            untimed, steps = map(int, command)
            yield from self._next(untimed)
            self._synchronize()
            if self.setup.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            cpu, wall = time.process_time(), time.perf_counter()
            yield from self._next(steps)
            launched = time.perf_counter() - wall
            self._synchronize()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            answer = {"wall": wall / steps, "cpu": cpu / steps, "host": launched / steps, "gb": self._peak_memory()}

    def _next(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(count):
            self._given += 1
            yield self._batches[self._given % DISTINCT_BATCHES]

    def _synchronize(self) -> None:
        if self.setup.device.type == "cuda":
            torch.cuda.synchronize()

    def _release_memory(self) -> None:
        """Leaves the GPU's memory to the other trainers until the next round."""
        if self.setup.device.type == "cuda":
            torch.cuda.empty_cache()

    def _peak_memory(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 1e9 if self.setup.device.type == "cuda" else None


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameters with weight decay (matrices) and without (all others), as each of these libraries has it."""
    tokens = ("cls_token", "class_token", "positions", "pos_embed", "encoder.pos_embedding")
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, p in model.named_parameters():
        groups[p.ndim >= 2 and not name.endswith(tokens)].append(p)
    return [{"params": groups[True], "weight_decay": WEIGHT_DECAY}, {"params": groups[False], "weight_decay": 0.0}]


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """torch's AdamW in its fastest form."""
    return torch.optim.AdamW(decay_groups(model), lr=LR, betas=BETAS, eps=EPS, fused=True)
