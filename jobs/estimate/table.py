"""`submit.py --estimate`: what the runs would take, on each number of GPUs, and where each figure comes from."""

import time
from collections.abc import Iterator, Mapping, Sequence

from jobs.estimate.past_runs import PastRuns
from jobs.estimate.queue_times import QueueTime, queue_times
from jobs.estimate.request import Request, Row, rows
from jobs.estimate.save import disk_line, save_lines
from jobs.estimate.speeds import CPU, describe
from jobs.estimate.wall_time import Basis
from jobs.estimate.words import about, amount
from jobs.estimate.work import Work
from vit.run.counts import counted

READ_SECONDS = 1.0  # for past runs
NAMES = {"step": "steps", "evaluate": "evaluation", "checkpoint": "checkpoints", "start": "start", "compile": "compile"}
MOST_SKIPPED = 3  # folders that are named


def show(request: Request) -> int:
    """Prints the estimate; returns the exit code.  Nothing is written or submitted.  Raises OSError, UserError."""
    works = request.works()
    basis = request.basis(request.past_runs(READ_SECONDS))
    print(work_line(works))
    if not any(work.steps_left for work in works):
        print("nothing is left to do")
        return 0
    found = rows(request, basis, works)
    if not found:
        print("no speed was measured on such a device: see configs/speeds.yaml")
        return 1
    queue = (
        queue_times([(row.resources, [run for run, _ in request.runs]) for row in found]) if request.on_slurm else []
    )
    print("\n" + "\n".join(columns(request, found, queue)) + "\n")
    for title, text in notes(request, basis, works, found, queue):
        print(f"{title:<9} {text}")
    return 0


def work_line(works: Sequence[Work]) -> str:
    """`300 epochs of 1,281,167 images: 250,228 steps of 1,536 images, 300 evaluations`."""
    first = works[0]
    if len(works) > 1:
        images = sum(work.images for work in works)
        return f"{counted(len(works), 'run')}: {counted(sum(w.steps_left for w in works), 'step')}, {images:,} images"
    cfg, left = first.cfg, ""
    if first.step:
        left = f", of which {first.steps_left:,} are left after step {first.step:,}"
    return (
        f"{counted(cfg.epochs, 'epoch')} of {first.samples:,} images: {first.schedule.total_steps:,} steps of "
        f"{cfg.global_batch:,} images{left}; {counted(first.evaluations, 'evaluation')} of {first.val_samples:,} images"
    )


def columns(request: Request, found: Sequence[Row], queue: Sequence[QueueTime]) -> list[str]:
    """The rows in columns; `>` marks what is submitted, if not all of it is."""
    on_cpu, several, all_ = found[0].device.name == CPU, len(request.runs) > 1, len(request.requested) > 1
    lines = [["", "ranks" if on_cpu else "GPUs", "images/s", "time", "rank-hours" if on_cpu else "GPU-hours"]]
    jobs = any(estimate.jobs > 1 for row in found for estimate in row.estimates)
    lines[0] += (["jobs"] if jobs else []) + (["could start"] if any(answer.start for answer in queue) else [])
    for i, row in enumerate(found):
        size = f"{row.resources.nodes} x {row.resources.gpus_text}" if request.on_slurm else str(row.resources.gpus)
        rates = [estimate.images_per_second for estimate in row.estimates]
        rate = amount(min(rates))
        if several and max(rates) > 1.02 * min(rates):
            rate += f" to {amount(max(rates))}"
        line = [">" if row.resources in request.requested and not all_ else "", size, rate]
        line += [about(row.seconds), amount(row.gpu_hours)]
        line += [str(max(estimate.jobs for estimate in row.estimates))] if jobs else []
        line += [when(queue[i])] if "could start" in lines[0] else []
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = {0, len(lines[0]) - 1} if "could start" in lines[0] else {0}
    return [
        "  ".join(
            f"{cell:<{w}}" if i in left else f"{cell:>{w}}"
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def when(answer: QueueTime) -> str:
    """`now`, `in 2:10:00, Sat 14:20`, or why it is not known."""
    if answer.start is None:
        return answer.why or "not known"
    wait = answer.start - time.time()
    return "now" if wait < 60 else f"in {about(wait)}, {time.strftime('%a %H:%M', time.localtime(answer.start))}"


def notes(
    request: Request, basis: Basis, works: Sequence[Work], found: Sequence[Row], queue: Sequence[QueueTime]
) -> Iterator[tuple[str, str]]:
    """What the figures come from, one title and text for each line."""
    submitted = [row for row in found if row.resources in request.requested] or found
    longest = max(submitted[-1].estimates, key=lambda estimate: estimate.wall)
    for text in dict.fromkeys(text for work in works for text in work.assumed):
        yield "data", text
    for text in dict.fromkeys(text for row in submitted for text in speed_lines(row, len(longest.scaled) > 1)):
        yield "speed", text
    for row in {row.device: row for row in submitted if row.device.note}.values():
        assumed = "" if row.device.name else f"; the figures are for {longest.scaled[-1].speed.device}"
        yield "device", row.device.note + assumed
    table = any(scaled.speed.is_table for scaled in longest.scaled)
    yield "time", f"{parts(longest.seconds)}; without interruptions{', and if decoding keeps up' if table else ''}"
    yield from past_notes(basis.past)
    if request.on_slurm:
        known = next((answer for answer in queue if answer.start), None)
        why = next((answer.why for answer in queue if answer.why), "")
        text = "`sbatch --test-only`: when Slurm would start such a job, by what is in the queue now"
        yield "queue", text if known else f"not known: {why or 'sbatch --test-only did not answer'}"
    yield "disk", disk_line(request)
    yield from (("save", text) for text in save_lines(request, basis))


def speed_lines(row: Row, several: bool) -> Iterator[str]:
    """The speed of each device, and where it comes from; with several image sizes, for each of them."""
    each = "rank" if row.device.name == CPU else row.resources.gpu_type or "GPU"
    for estimate in row.estimates:
        for scaled in estimate.scaled:
            size = f" at {scaled.image_size} pixels" if several else ""
            yield f"{amount(scaled.images_per_second)} images/s on each {each}{size}: {describe(scaled)}"


def parts(seconds: Mapping[str, float]) -> str:
    """`steps 98%, evaluation 1%, start 16 s`."""
    total = sum(seconds.values()) or 1.0
    shown = [(NAMES[name], value) for name, value in seconds.items() if value >= 0.5 or name == "step"]
    return ", ".join(f"{name} {about(value)} ({value / total:.0%})" for name, value in shown)


def past_notes(past: PastRuns) -> Iterator[tuple[str, str]]:
    """How many past runs were read, and which were not."""
    if past.unread:
        yield "past runs", f"{counted(past.unread, 'older run')} not read, to answer soon"
    for text in past.skipped[:MOST_SKIPPED]:
        yield "left out", text
    if (more := len(past.skipped) - MOST_SKIPPED) > 0:
        yield "left out", f"{more} more folders that cannot be read"
