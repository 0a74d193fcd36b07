"""What is printed of a replayed step: its values, those that the run recorded, its micro-batches, its worst samples."""

import math
from typing import Any

import numpy as np

from vit.config.batches import has_canonical_order
from vit.distributed.world import device_name
from vit.replay.recorded import RecordedRun
from vit.replay.replayer import ReplayedStep, Replayer
from vit.replay.sample_names import SampleNames, partner
from vit.run.counts import counted

WORST = 8  # samples in the table
SHOWN = 12  # indices of a micro-batch in a line; --json has all of them
NAMES = {"loss": "loss", "grad_norm": "gradient norm", "lr": "learning rate"}  # keys of the learning curve


def comparison(step: ReplayedStep, run: RecordedRun) -> dict[str, tuple[float, float | None]]:
    """Loss, gradient norm and learning rate: here, and as recorded; None if the run did not record them."""
    recorded = run.curve.get(step.step, {})
    here = {"loss": step.loss, "grad_norm": step.grad_norm, "lr": step.lr}
    return {name: (value, recorded.get(name)) for name, value in here.items()}


def print_step(step: ReplayedStep, replayer: Replayer, names: SampleNames) -> None:
    """Prints everything that is known of a step without further options."""
    run, total = replayer.run, replayer.total_steps
    print(f"{run.folder.path}, step {step.step:,} of {total:,}, epoch {step.epoch:.2f} of {step.cfg.epochs}")
    if step.skipped or (why := run.why_skipped(step.step)):
        why = run.why_skipped(step.step) or "it was not finite"
        verb = "skipped" if step.skipped else "once skipped, under other settings,"
        print(f"the run {verb} this step: {why}; here it is executed")
    values = comparison(step, run)
    print(f"\n{'':<16}{'here':<24}{'in the run':<24}")
    for name, (here, recorded) in values.items():
        text = "not recorded" if recorded is None else f"{recorded:.9g}"
        print(f"{NAMES[name]:<16}{f'{here:.9g}':<24}{text:<24}{_verdict(here, recorded)}")
    for line in _remarks(step, replayer, values):
        print(line)
    _print_micro_batches(step)
    _print_worst(step, names)


def _verdict(here: float, recorded: float | None) -> str:
    if recorded is None:
        return ""
    if here == recorded or (math.isnan(here) and math.isnan(recorded)):
        return "the same bits"
    return f"differs by {abs(here - recorded) / max(abs(recorded), 1e-300):.1e}"


def _remarks(step: ReplayedStep, replayer: Replayer, values: dict[str, tuple[float, float | None]]) -> list[str]:
    """Why values are missing or differ, as far as that is known."""
    run, world, out = replayer.run, replayer.world, list[str]()
    attempt = run.attempt(step.step)
    recorded = [pair for pair in values.values() if pair[1] is not None]
    if not recorded and not step.skipped:
        every = replayer.recorded_cfg.log.every_steps
        reason = f"it logs every {every:,} steps" if step.step % every else "it has not reached this step"
        out.append(f"the run recorded nothing of this step: {reason}")
    if run.why_skipped(step.step) and math.isfinite(step.loss) and math.isfinite(step.grad_norm):
        out.append("the step is finite here: another device or version, or hardware that computed wrong values there")
    if attempt is None or all(here == there for here, there in recorded):
        return out
    ranks, device = int(attempt["ranks"]), str(attempt.get("device_name", attempt.get("device", "")))
    here = device_name(world.device)
    if device != here:
        out.append(f"the run computed it on {device}, not on {here}: other devices round differently")
    if not replayer.compiled and replayer.recorded_cfg.compile:
        out.append("the run is compiled (--no-compile was given here), which rounds differently")
    if not has_canonical_order(step.cfg.micro_batches, ranks):
        out.append(f"{counted(ranks, 'rank')} add the micro-batches in another order than one: add --ranks {ranks}")
    if not out:
        out.append("same settings and kind of device: another version of torch, or of this project, or a fault")
    return out


def _print_micro_batches(step: ReplayedStep) -> None:
    print(f"\n{'micro-batch':<13}{'loss':<13}samples")
    for j, (loss, samples) in enumerate(zip(step.losses, step.samples.tolist(), strict=True)):
        more = f" … ({len(samples) - SHOWN:,} more: --json)" if len(samples) > SHOWN else ""
        print(f"{j:<13}{loss:<13.6g}{' '.join(map(str, samples[:SHOWN]))}{more}")


def worst_first(step: ReplayedStep) -> list[tuple[int, int]]:
    """(micro-batch, row) of all samples; those that are not finite come first, then by their loss."""
    flat = np.where(np.isfinite(step.sample_losses), step.sample_losses, math.inf).ravel()
    m = step.sample_losses.shape[1]
    return [divmod(int(i), m) for i in np.argsort(-flat, kind="stable")]


def _print_worst(step: ReplayedStep, names: SampleNames) -> None:
    print(f"\n{'worst samples':<15}{'loss':<11}{'class':<26}{'predicted':<34}micro-batch")
    for j, row in worst_first(step)[:WORST]:
        sample = int(step.samples[j, row])
        name, probability = prediction(step, names, j, row)
        mixed = partner(step, j, row)
        other = f", with {mixed[1]:.0%} of sample {mixed[0]:,} ({names.class_of(mixed[0])})" if mixed else ""
        predicted = f"{name[:24]} {probability:.1%}"
        line = f"{sample:<15,}{step.sample_losses[j, row]:<11.5g}{names.class_of(sample)[:24]:<26}{predicted:<34}{j}"
        print(line + other)


def prediction(step: ReplayedStep, names: SampleNames, micro_batch: int, row: int) -> tuple[str, float]:
    """The class that the model predicted for an image, as it saw it, and its probability."""
    probabilities = step.logits[micro_batch, row].softmax(dim=0)
    best = int(probabilities.argmax())
    return names.classes[best], float(probabilities[best])


def as_json(step: ReplayedStep, replayer: Replayer, names: SampleNames) -> dict[str, Any]:
    """Everything about a step, for `--json`; what is not finite is a string."""
    rows = []
    for j, row in worst_first(step):
        sample, mixed = int(step.samples[j, row]), partner(step, j, row)
        name, probability = prediction(step, names, j, row)
        entry = {"sample": sample, "class": names.class_of(sample), "micro_batch": j, "row": row}
        entry |= {"loss": _number(step.sample_losses[j, row]), "predicted": name, "probability": _number(probability)}
        rows.append(entry | ({"mixed_with": mixed[0], "share": mixed[1]} if mixed else {}))
    values = comparison(step, replayer.run)
    return {
        "step": step.step,
        "steps": replayer.total_steps,
        "skipped": step.skipped,
        **{name: _number(here) for name, (here, _) in values.items()},
        "recorded": {name: there for name, (_, there) in values.items() if there is not None},
        "same": all(here == there for here, there in values.values() if there is not None),
        "micro_batches": [
            {"loss": _number(loss), "samples": samples}
            for loss, samples in zip(step.losses, step.samples.tolist(), strict=True)
        ],
        "samples": rows,
    }


def _number(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))
