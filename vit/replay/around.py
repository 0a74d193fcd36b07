"""`--around N`: the losses of all samples of the steps around step N, as a picture, and the samples in its spikes."""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit.config.paths import printable
from vit.config.schema import Config
from vit.distributed.world import World
from vit.replay.around_figure import draw_window
from vit.replay.pictures import SMALLEST_SHARE, save_picture
from vit.replay.progress import WayProgress, describe_start, teller
from vit.replay.recorded import RecordedRun
from vit.replay.replayer import ReplayedStep, Replayer
from vit.replay.sample_names import SampleNames, partner
from vit.replay.spikes import (
    FEWEST,
    LIMIT,
    Repeated,
    Spike,
    StepLosses,
    curve_spikes,
    in_several,
    median_and_limit,
    reference,
    repeated_samples,
    spike_of,
    window_spikes,
)
from vit.run.counts import counted

NAMED = 8  # samples of a spike, and of a table
SHOWN = 6  # steps in a line


@dataclass(frozen=True)
class Window:
    """What was found in the steps around a step."""

    around: int
    steps: list[StepLosses]
    median: float
    limit: float | None  # above which a loss is a spike; None: too few losses
    spikes: list[Spike]


def picture_of_window(options: argparse.Namespace) -> Path:
    """The file of the picture."""
    given: Path | None = options.out
    return given or Path("runs") / f"{options.run.absolute().name}-around-{options.around}.png"


def replay_around(options: argparse.Namespace, run: RecordedRun, world: World) -> int:
    """Replays the steps, draws the picture, and prints the samples that stand out; returns the exit code."""
    quiet: bool = options.json
    tell = teller(quiet)
    replayer = Replayer(run, world, options.data, not options.no_compile, tell)
    first = max(1, options.around - options.steps)
    checkpoint = replayer.start(first, asked=options.around)
    last = min(options.around + options.steps, replayer.total_steps)
    tell(describe_start(run, checkpoint, first))
    with WayProgress(replayer.state.step, last + 1, quiet) as progress:
        seconds = replayer.advance(first, progress.show)
        steps = _replay_steps(replayer, last, lambda step, more: progress.show(step, seconds + more))
    window = look(options.around, steps, _recorded_losses(run))
    name = run.folder.path.absolute().name
    names = SampleNames(replayer.train_data.beton)
    out = picture_of_window(options)
    title = f"{name}: the loss of each sample of {_steps_text(steps)}"
    save_picture(draw_window(window.steps, window.spikes, window.limit, window.around, title), out)
    spikes, repeated, unknown = _whole_run(replayer)
    if quiet:
        print(json.dumps(_as_json(window, spikes, repeated, names) | {"picture": printable(out)}))
        return 0
    lines = _window_lines(window, last, names)
    print("\n".join([*lines, "", *_run_lines(replayer, spikes, repeated, unknown, names)]))
    print(f"\nthe loss of each sample: {printable(out)}")
    return 0


def _steps_text(steps: Sequence[StepLosses]) -> str:
    first, last = steps[0].step, steps[-1].step
    return f"step {first:,}" if first == last else f"the steps {first:,} to {last:,}"


def look(around: int, steps: list[StepLosses], curve: dict[int, float]) -> Window:
    """Finds the spikes of the replayed steps."""
    usual = reference(steps, curve)
    found = median_and_limit(usual)
    if found is None:
        finite = [loss for loss in usual if math.isfinite(loss)]
        level = float(np.median(finite)) if finite else 0.0
        return Window(around, steps, level, None, [spike_of(each, level) for each in steps if not each.is_finite])
    return Window(around, steps, *found, window_spikes(steps, *found))


def _recorded_losses(run: RecordedRun) -> dict[int, float]:
    return {step: float(record["loss"]) for step, record in run.curve.items() if record["loss"] is not None}


def _replay_steps(replayer: Replayer, last: int, progress: Callable[[int, float], None]) -> list[StepLosses]:
    """Runs the steps up to `last`; those after one that is not finite only if the run skipped it."""
    out, started = list[StepLosses](), time.monotonic()
    curve = _recorded_losses(replayer.run)
    while replayer.state.step < last:
        replayer.advance(replayer.state.step + 1)  # to the settings of the step
        step = replayer.forward_backward()
        out.append(_losses_of(step, curve.get(step.step)))
        if step.skipped:
            replayer.skip()
            continue
        overflow_allowed = replayer.state.scaler.is_enabled()
        if not (math.isfinite(step.loss) and (math.isfinite(step.grad_norm) or overflow_allowed)):
            break
        replayer.update()
        progress(replayer.state.step, time.monotonic() - started)
    return out


def _losses_of(step: ReplayedStep, recorded: float | None) -> StepLosses:
    """Without images and logits, which need much memory."""
    V, m = step.samples.shape
    mixed = [partner(step, j, row) for j in range(V) for row in range(m)]
    shown = [each if each is not None and each[1] >= SMALLEST_SHARE else (-1, 0.0) for each in mixed]
    partners, shares = zip(*shown, strict=True)
    samples, losses = step.samples.ravel().copy(), step.sample_losses.ravel().copy()
    return StepLosses(
        step.step, step.skipped, step.loss, recorded, samples, np.array(partners), np.array(shares), losses
    )


def _order_settings(cfg: Config) -> tuple[Any, ...]:
    """What decides which samples a step uses."""
    data = cfg.data
    return cfg.seed, cfg.global_batch, data.limit, data.shuffle_window, data.repeats


def _whole_run(replayer: Replayer) -> tuple[list[int], list[Repeated], int]:
    """The spikes of the learning curve and the steps that were not finite, and the samples in several of them.

    Also the number of those with other settings, whose samples are not looked at.
    """
    run, data = replayer.run, replayer.train_data
    skipped = {int(event["step"]) for event in run.events if event["event"] == "skipped"}
    found = sorted({*curve_spikes(_recorded_losses(run)), *skipped})
    here = _order_settings(replayer.recorded_cfg)
    known = [step for step in found if step <= replayer.total_steps and _order_settings(run.config(step)) == here]
    members = {}
    for step in known:
        cfg = replayer.schedule.config(step - 1)
        views, samples = data.views(step - 1, range(cfg.micro_batches))
        members[step] = samples, views // cfg.data.repeats
    return known, repeated_samples(members, data.samples), len(found) - len(known)


def _window_lines(window: Window, last: int, names: SampleNames) -> list[str]:
    """Steps, spikes, the samples that make them, and those that are in several."""
    spikes = {spike.of.step: spike for spike in window.spikes}
    lines = [f"{'step':<12}{'loss':<12}{'in the run':<14}{'highest sample':<16}"]
    for each in window.steps:
        recorded = "" if each.recorded is None else f"{each.recorded:.6g}"
        mark = "spike" if each.step in spikes else ""
        mark += (", " if mark else "") + "skipped by the run" if each.skipped else ""
        highest = f"{float(np.max(each.losses)):.5g}"
        lines.append(f"{each.step:<12,}{each.loss:<12.6g}{recorded:<14}{highest:<16}{mark}".rstrip())
    lines += [""]
    end = window.steps[-1]
    if end.step < last:
        lines += [f"step {end.step:,} is not finite here, although the run did not skip it: the window ends with it"]
    if window.limit is None:
        lines += [f"too few losses to tell spikes ({FEWEST} are needed): give a larger --steps"]
    else:
        lines += [f"spikes: losses above {window.limit:.4g}, which is the median {window.median:.4g} + {LIMIT:g} MAD"]
    if window.around not in spikes:
        center = next((each for each in window.steps if each.step == window.around), None)
        lines += [f"step {window.around:,} is not a spike: its loss is {center.loss:.4g}"] if center else []
    for spike in window.spikes:
        lines += ["", *_spike_lines(spike, names)]
    if len(window.spikes) > 1:
        lines += ["", *_several_lines(window, names)]
    return lines


def _spike_lines(spike: Spike, names: SampleNames) -> list[str]:
    of, n = spike.of, len(spike.of.losses)
    if not of.is_finite:
        count = int((~np.isfinite(of.losses)).sum())
        head = f"step {of.step:,}: {counted(count, 'loss', 'losses')} of {n:,} samples not finite; "
        lines = [head + f"--step {of.step} --anomaly finds the reason"]
    else:
        rise = f"step {of.step:,}: the loss is {of.loss - spike.level:.4g} above {spike.level:.4g}"
        made = f"{min(spike.covered, 1):.0%} of that in {len(spike.high):,} of {n:,} samples"
        spread = "; most samples rose, so weights or learning rate are the reason" if spike.covered < 0.5 else ""
        lines = [f"{rise}, {made}{spread}"]
    for row in spike.high[:NAMED]:
        sample, other = int(of.samples[row]), int(of.partners[row])
        text = names.describe(sample)
        text += f", mixed with {of.shares[row]:.0%} of {names.describe(other)}" if other >= 0 else ""
        share = spike.share(row)
        part = "" if math.isnan(share) else f"{min(share, 1):.0%}"
        lines.append(f"  {of.losses[row]:<10.5g}{part:<7}{text}")
    more = len(spike.high) - NAMED
    return [*lines, f"  and {more:,} more"] if more > 0 else lines


def _several_lines(window: Window, names: SampleNames) -> list[str]:
    several = in_several(window.spikes)
    if not several:
        return ["no sample has a high loss in several of these spikes"]
    lines = ["with a high loss in several of these spikes:"]
    for sample, steps in list(several.items())[:NAMED]:
        used = sum(sample in each.samples or sample in each.partners for each in window.steps)
        lines.append(f"  {names.describe(sample)}: {_listed(steps)}, {len(steps)} of the {used} steps that used it")
    return lines + ([f"  and {len(several) - NAMED:,} more"] if len(several) > NAMED else [])


def _run_lines(
    replayer: Replayer, spikes: list[int], repeated: list[Repeated], unknown: int, names: SampleNames
) -> list[str]:
    """What is known of all spikes of the run."""
    every = replayer.recorded_cfg.log.every_steps
    seen = "" if every == 1 else f" (it records every {every:,} steps; the spikes of other steps are not known)"
    lines = [f"the whole run{seen}: {counted(len(spikes), 'spike')} in its learning curve"]
    if spikes:
        lines[0] += f", at {_listed(spikes)}"
    if unknown:
        lines.append(f"{counted(unknown, 'more spike')} under other settings, whose samples are not compared")
    if len(spikes) > 1 and not repeated:
        lines.append("no sample was in more of them than chance explains")
    for each in repeated[:NAMED]:
        often = f"in {len(each.steps)} of {len(spikes)}, at {_listed(each.steps)}"
        chance = f"by chance {each.expected:.1g} samples would be in so many"
        lines.append(f"  {names.describe(each.sample)}: {often}; {chance}")
    return lines + ([f"  and {len(repeated) - NAMED:,} more"] if len(repeated) > NAMED else [])


def _listed(steps: Sequence[int]) -> str:
    more = f" and {len(steps) - SHOWN:,} more" if len(steps) > SHOWN else ""
    return f"step{'s' * (len(steps) > 1)} {', '.join(f'{step:,}' for step in steps[:SHOWN])}{more}"


def _as_json(window: Window, spikes: list[int], repeated: list[Repeated], names: SampleNames) -> dict[str, Any]:
    """Everything for `--json`; what is not finite is a string."""

    def number(value: float) -> float | str:
        return float(value) if math.isfinite(value) else str(float(value))

    def rows(each: StepLosses) -> list[dict[str, Any]]:
        out = []
        for sample, other, share, loss in zip(each.samples, each.partners, each.shares, each.losses, strict=True):
            row = {"sample": int(sample), "class": names.class_of(int(sample)), "loss": number(loss)}
            out.append(row | ({"mixed_with": int(other), "share": float(share)} if other >= 0 else {}))
        return out

    return {
        "median": window.median,
        "limit": window.limit,
        "steps": [
            {"step": e.step, "loss": number(e.loss), "recorded": e.recorded, "skipped": e.skipped, "samples": rows(e)}
            for e in window.steps
        ],
        "spikes": [
            {"step": spike.of.step, "samples": [int(spike.of.samples[row]) for row in spike.high]}
            for spike in window.spikes
        ],
        "in_several": {str(sample): steps for sample, steps in in_several(window.spikes).items()},
        "run": {
            "spikes": spikes,
            "samples": [{"sample": e.sample, "steps": e.steps, "expected": e.expected} for e in repeated],
        },
    }
