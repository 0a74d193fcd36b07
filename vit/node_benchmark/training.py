"""The run itself, for some steps: decoding alone, training steps, and a save."""

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vit.config.schema import Config
from vit.distributed.world import World
from vit.node_benchmark.timing import synchronize
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.training.trainer import Trainer

WARM_UP, STEPS = 5, 20  # the first step may compile
DECODED_BATCHES, DECODING_SECONDS = 12, 15.0  # enough of them; more if they take less than two seconds


class TimedRun:
    """A trainer in a folder of its own, which is removed by the caller."""

    def __init__(self, cfg: Config, folder: Path, world: World) -> None:
        """Raises what the trainer raises: UserError for settings and data sets that do not fit, OSError."""
        self.cfg, self.world = cfg, world
        folder.mkdir(parents=True, exist_ok=True)
        self.trainer = Trainer(cfg, RunFolder(folder), world, Clock(time.time()), [])

    def decode(self) -> dict[str, Any]:
        """Images per second that all ranks decode and crop together, without training."""
        batches = self.trainer.train_data.batches(0, self.trainer.milestones.total_steps)
        next(batches)
        dist.barrier()
        start, count = time.perf_counter(), 0
        for _ in batches:
            count += 1
            seconds = time.perf_counter() - start
            enough = torch.tensor(float(seconds > DECODING_SECONDS or (seconds > 2 and count >= DECODED_BATCHES)))
            dist.all_reduce(enough)
            if enough:
                break
        seconds = time.perf_counter() - start
        batches.close()  # type: ignore[attr-defined]
        return {"images_per_second": round(count * self.cfg.global_batch / seconds, 1) if count else None}

    def train(self) -> dict[str, Any]:
        """Images per second of all ranks in training steps, and the memory of this rank's device."""
        trainer, device = self.trainer, self.world.device
        total = min(WARM_UP + STEPS, trainer.milestones.total_steps)
        warm_up = min(WARM_UP, total - 1)
        if device.type == "cuda":  # what the other parts used is not training's
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        started = start = time.perf_counter()
        first = waited = 0.0
        for step, batch in zip(range(total), trainer.batches(), strict=False):
            if step == warm_up:
                synchronize(device)
                dist.barrier()
                start, waited = time.perf_counter(), trainer.clock.seconds.get("data", 0.0)
            trainer.train_step(step, batch)
            if step == 0:
                synchronize(device)
                first = time.perf_counter() - started
        trainer.runner.check_finite()
        synchronize(device)
        seconds = time.perf_counter() - start
        out: dict[str, Any] = {
            "steps": total - warm_up,
            "images_per_second": round((total - warm_up) * self.cfg.global_batch / seconds, 1),
            "first_step_seconds": round(first, 2),
            "data_wait": round((trainer.clock.seconds.get("data", 0.0) - waited) / seconds, 4),
        }
        if device.type == "cuda":
            out |= {"peak_memory": torch.cuda.max_memory_reserved(device)}
        return out

    def save(self) -> dict[str, Any]:
        """The length of a save as before a preemption: until everything is on the disk."""
        start = time.perf_counter()
        problem = self.trainer.saver.save_before_exit()
        seconds = time.perf_counter() - start
        files = self.trainer.run.checkpoints.rglob("*") if self.world.rank == 0 else ()
        size = sum(file.stat().st_size for file in files if file.is_file())
        return {"seconds": round(seconds, 3), "bytes": size} | ({"problem": problem} if problem else {})

    def close(self) -> None:
        """Ends the threads and processes of the trainer."""
        self.trainer.agreement.close()
        self.trainer.saver.close()
