"""Run folders for reports: learning curves, attempts and settings without training anything."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vit.config import schema
from vit.config.schema import Config
from vit.config.sections import ModelConfig
from vit.run.jsonl import Record
from vit.run.rank_log import path_of as rank_times_path
from vit.run.step_times import path_of

STEPS, EPOCHS, STEP_SECONDS, FIRST = 1000, 10, 0.5, 1.7e9
CAUSE = "ended with SIGKILL"
# What a submission of this run could have stored: 64 images a step on two GPUs.
ESTIMATED: Record = {
    "event": "estimated", "time": FIRST - 101, "step": 0, "steps": STEPS, "images": 64 * STEPS, "nodes": 1, "gpus": 2,
    "images_per_second": 200.0, "seconds": {"step": 320.0, "evaluate": 20.0, "start": 10.0}, "device": "A100",
    "source": "as in run <b>before</b>, the same computation",
}  # fmt: skip


def write_run(folder: Path, records: Sequence[Record] | None = None, events: Sequence[Record] | None = None) -> Path:
    """A run that was preempted at step 400 and lost a rank at step 700, of whose steps 100 were repeated."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    write_lines(folder / "metrics.jsonl", curve() if records is None else records)
    write_lines(folder / "ledger.jsonl", ledger() if events is None else events)
    (folder / "config.yaml").write_text(schema.to_yaml(Config(epochs=EPOCHS, model=ModelConfig(depth=6))))
    command = "jobs/submit.py --config configs/none.yaml --model.depth 6 --nodes 1"
    (folder / "environment.txt").write_text(f"command: {command}\ncommit: 1a2b3c\npython: 3.12.1\nnumpy==2.1.0\n")
    histogram = {"time": FIRST, "longest": 0.9, "steps": {"-35": 900, "-20": 100}}
    for rank in (0, 1):
        write_lines(path_of(folder / "logs", rank), [histogram])
    write_lines(rank_times_path(folder / "logs"), [rank_times()])
    return folder


def rank_times() -> Record:
    """Hundred steps of two ranks: one waits for its images, the other one for that."""
    late = [100, 40.0, 20.0, 0.0, 25.0, 1.0, 2.0]
    return {"time": FIRST, "nodes": ["n1", "n2"], "ranks": [[100, 5.0, 0.0, 0.0, 25.0, 21.0, 2.0], late]}


def write_lines(path: Path, records: Sequence[Record]) -> None:
    """Writes JSON Lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def curve(loss: Callable[[int], float] | None = None, every: int = 10) -> list[Record]:
    """Records of steps and evaluations."""
    out: list[Record] = []
    for step in range(every, STEPS + 1, every):
        place = {"step": step, "steps": STEPS, "epoch": step * EPOCHS / STEPS, "epochs": EPOCHS}
        place |= {"time": time_of(step), "seconds": {"start": 5.0, "step": 0.4 * step}}
        value = 2.3 * math.exp(-step / 300) + 0.1 * math.sin(step) if loss is None else loss(step)
        values = {"loss": value, "lr": 1e-3 * step / STEPS, "grad_norm": 1 + math.cos(step), "images_per_second": 800.0}
        out.append(place | values)
        if step % (STEPS // EPOCHS) == 0:
            top1 = 0.9 * (1 - math.exp(-step / 300))
            out.append(place | {"val_top1": top1, "val_top1_average": top1 + 0.02, "val_loss": value + 0.1})
    return out


def time_of(step: int) -> float:
    """The Unix time at which a step ended for good."""
    return FIRST + step * STEP_SECONDS + (60 if step > 400 else 0) + (55 if step > 600 else 0)


def ledger(cause: str = CAUSE) -> list[dict[str, Any]]:
    """The events of the run that `curve` belongs to."""
    job = {"life": "7.0", "node": "n1"}
    started = {"event": "started", "ranks": 2, "device": "cuda", "device_name": "NVIDIA A100"}
    start, spent = {"start": 5.0, "other": 0.0}, {"start": 5.0, "other": 0.0, "step": 160.0}
    failed = {"event": "restarting in place", "life": "7.1", "node": "n1", "rank": 1, "reason": cause, "step": 700}
    second = {"step": 700, "time": time_of(600) + 50, "seconds": start | {"step": 120.0}}
    signaled = {"event": "told to stop", "life": "7.0", "signal": "SIGUSR2", "seconds_left": 9000}
    slow = {"event": "slow rank", "rank": 1, "node": "n2", "what": "data", "ratio": 1.7, "seconds": 0.2, "others": 0.0}
    stopped = {"event": "stopped", "step": 400, "signal": "SIGUSR2", "seconds": spent}
    return [
        {"event": "submitted", "time": FIRST - 100, "job": "7"},
        {"event": "supervising", "time": FIRST - 6, **job},
        started | {"time": FIRST, "step": 0, "seconds": start},
        slow | {"time": time_of(300)},
        signaled | {"time": time_of(400) - 1},
        stopped | {"time": time_of(400)},
        {"event": "supervising", "time": time_of(400) + 50, **job, "life": "7.1"},
        started | {"time": time_of(400) + 59, "step": 400, "seconds": start},
        failed | {"time": time_of(600) + 50},
        started
        | {"time": time_of(600) + 55, "step": 600, "seconds": start, "previous": second, "lost": {"step": 40.0}},
        {"event": "finished", "time": time_of(1000), "step": 1000, "val_top1": 0.8, "seconds": spent},
    ]
