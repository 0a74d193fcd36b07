"""Run folders as jobs leave them, for `status.py`: written as text, nothing is trained."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit.config import schema
from vit.config.schema import Config
from vit.run.folder import RunFolder

BEGAN = 1.76e9  # Unix time
SECONDS_PER_STEP = 0.4
GPU = "NVIDIA A100-SXM4-80GB"
Line = dict[str, Any]


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """Writes a file of JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(
    folder: Path,
    attempts: int = 3,
    steps: int = 1000,
    of: int = 2000,
    every: int = 50,  # steps between records
    saves: int = 250,  # between checkpoints, and evaluations
    cfg: Config | None = None,
    old: bool = False,
    **last: Any,
) -> RunFolder:
    """A run on four GPUs that was preempted after equal numbers of steps; its newest attempt seems to run.

    It wrote its newest record three seconds ago, or if it is `old`, in 2025.  `last` replaces values of its newest
    evaluation.
    """
    run = RunFolder(folder)
    run.logs.mkdir(parents=True)
    run.config.write_text(
        schema.to_yaml(cfg or Config(epochs=10, global_batch=1024, micro_batch=128, precision="bf16"))
    )
    events, records = [event("submitted", -60, job="7")], list[Line]()
    for i in range(attempts):
        first = steps // attempts // every * every * i
        after = steps // attempts // every * every * (i + 1) if i < attempts - 1 else steps
        began = clock(first) + 100 * i
        events += [event("supervising", began, life=f"7.{i}", node=f"n{i % 2 + 1}")]
        events += [event("started", began + 10, step=first, ranks=4, device_name=GPU, seconds={"start": 8.0})]
        for step in range(first + every, after + 1, every):
            spent = phases(step - first)
            records.append(
                position(step, of) | training(step, of) | {"time": BEGAN + clock(step) + 100 * i + 10, "seconds": spent}
            )
            if step % saves == 0:
                events.append(event("checkpoint", clock(step) + 100 * i + 11, step=step, seconds=4.0, stall=0.1))
                scores = {"val_top1": step / of / 2, "val_top5": 0.9, "val_loss": 1.0}
                records.append(
                    position(step, of) | scores | {"time": BEGAN + clock(step) + 100 * i + 12, "seconds": spent}
                )
        if i < attempts - 1:
            events += [
                event("told to stop", clock(after) + 100 * i + 12, life=f"7.{i}", signal="SIGTERM", seconds_left=9000)
            ]
            events += [event("stopped", clock(after) + 100 * i + 13, step=after, seconds=phases(after - first))]
    evaluations = [record for record in records if "val_top1" in record]
    if evaluations:
        evaluations[-1].update(last)
    best: Line | None = None
    for record in evaluations:
        best = record if best is None or record["val_top1"] > best["val_top1"] else best
        record.update(best_top1=best["val_top1"], best_epoch=best["epoch"])
    later = 0.0 if old else time.time() - 3 - (records or events)[-1]["time"]
    write_lines(run.ledger, [line | {"time": line["time"] + later} for line in events])
    write_lines(run.metrics, [line | {"time": line["time"] + later} for line in records])
    (run.logs / "rank-0.log").write_text("".join(f"epoch {i}\n" for i in range(20)))
    return run


def clock(step: int) -> float:
    """Seconds until a step, without interruptions."""
    return step * SECONDS_PER_STEP


def event(name: str, after: float, /, **values: Any) -> Line:
    """An event of the ledger, so many seconds after the beginning."""
    return {"event": name, "time": BEGAN + after, **values}


def phases(steps: int) -> dict[str, float]:
    """The seconds of an attempt after so many steps."""
    each = {"step": 0.8, "data": 0.1, "evaluate": 0.05, "checkpoint": 0.05}
    return {"start": 8.0} | {name: round(share * clock(steps), 3) for name, share in each.items()}


def position(step: int, of: int) -> Line:
    """Where a record is in the run."""
    return {"step": step, "steps": of, "epoch": 10 * step / of, "epochs": 10}


def training(step: int, of: int) -> Line:
    """The values of a training step."""
    left = SECONDS_PER_STEP * (of - step)
    return {
        "loss": 2 + 5 / step,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "images_per_second": 2560.0,
        "seconds_left": left,
    }
