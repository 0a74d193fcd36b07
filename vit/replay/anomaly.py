"""`--anomaly`: what was the first thing of a step that was not finite, and which samples are the reason.

In the order of the computation: weights and optimizer state before the step, the images of each micro-batch, forward
and backward of each micro-batch, the sum of gradients over the micro-batches, its norm, the updated weights.
"""

import math

import torch
from torch import Tensor

from vit.replay.culprits import Culprit, failing_rows, tell_apart
from vit.replay.first_not_finite import FirstNotFinite
from vit.replay.passes import Passes, uncompiled
from vit.replay.replayer import ReplayedStep, Replayer
from vit.replay.sample_names import SampleNames, partner
from vit.run.counts import counted

MICRO_BATCHES = 3  # that are described, if more are not finite
NAMED = 10  # names in a line


def find_anomaly(step: ReplayedStep, replayer: Replayer, names: SampleNames) -> list[str]:
    """Lines that name the first thing of the step that is not finite.  Changes neither gradients nor weights."""
    before = [name for name, tensor in replayer.state.tensors().items() if not _finite(tensor)]
    if before:
        what = f"{_listed(before)} {'is' if len(before) == 1 else 'are'} not finite before step {step.step:,}"
        return [f"{what}; replay the step before: --step {step.step - 1}"]
    out = []
    with uncompiled(replayer):
        bad = [j for j in range(len(step.micro_batches)) if _is_bad(step, replayer, j)]
        for j in bad[:MICRO_BATCHES]:
            out += _describe_micro_batch(step, replayer, names, j)
        if len(bad) > MICRO_BATCHES:
            rest = ", ".join(map(str, bad[MICRO_BATCHES:]))
            out.append(f"also not finite: micro-batches {rest}")
    return out or _after_the_passes(step, replayer)


def _is_bad(step: ReplayedStep, replayer: Replayer, j: int) -> bool:
    return Passes(replayer, step, j).fails(*step.micro_batches[j])


def _describe_micro_batch(step: ReplayedStep, replayer: Replayer, names: SampleNames, j: int) -> list[str]:
    images, targets = step.micro_batches[j]
    passes = Passes(replayer, step, j)
    wrong = (~images.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if wrong:
        return [f"micro-batch {j}: the pixels of {_named(step, names, j, wrong)} are not finite after augmentation"]
    found = passes.first(images, targets)
    if found is None:
        return [f"micro-batch {j} is not finite, but no operation of it is: this device does not repeat its results"]
    lines = _describe_operation(found, j, len(step.micro_batches))
    rows = failing_rows(images, targets, passes.fails)
    if rows is None:
        lines.append("  samples     none: images of the mean color fail too, so the weights are the reason")
    else:
        unmixed = replayer.unmixed(step, j) if step.mixes[j] is not None else (images, targets)
        culprits = tell_apart(rows, step.mixes[j], unmixed, passes.fails)
        alone = len(rows) == 1 or _fails_alone(passes, step, j, rows[0])
        lines += _describe_culprits(culprits, step, names, j, found, alone)
    if step.cfg.precision != "float32" and not passes.fails(images, targets, precise=True):
        scale = replayer.state.scaler.get_scale()
        scaled = f" (its loss is multiplied by {scale:g})" if scale != 1 else ""
        lines.append(f"  precision   in float32 all of it is finite: an overflow of {step.cfg.precision}{scaled}")
    return lines


def _fails_alone(passes: Passes, step: ReplayedStep, j: int, row: int) -> bool:
    """Whether a row fails among images of the mean color; if not, the rows fail only together."""
    images, targets = step.micro_batches[j]
    kept = torch.zeros_like(images)
    kept[row] = images[row]
    return passes.fails(kept, targets)


def _describe_operation(found: FirstNotFinite, j: int, count: int) -> list[str]:
    kinds = [f"{n:,} {kind}" for n, kind in ((found.nans, "NaN"), (found.infinities, "infinite")) if n]
    inputs = "" if found.finite_inputs else ", which were not all finite"
    where = f" at {found.line}" if found.line else ""
    return [
        f"micro-batch {j} of {count} (from 0): the first result that is not finite is in {found.phase}",
        f"  module      {found.module}",
        f"  operation   {found.operation}{where}",
        f"  result      {found.dtype} {list(found.shape)}: {' and '.join(kinds)} of {found.values:,} values; "
        f"the largest input was {found.largest_input:.3g}{inputs}",
    ]


def _describe_culprits(
    culprits: list[Culprit], step: ReplayedStep, names: SampleNames, j: int, found: FirstNotFinite, alone: bool
) -> list[str]:
    """One line for each image that fails, for a few of them."""
    what = "activations" if found.phase == "forward" else "gradients"
    if not alone:
        rows = _named(step, names, j, [culprit.row for culprit in culprits])
        return [f"  samples     only together, none alone: {rows}"]
    lines = list[str]()
    for culprit in culprits[:NAMED]:
        sample = int(step.samples[j, culprit.row])
        text = f"{names.describe(sample)}, row {culprit.row}"
        mixed = partner(step, j, culprit.row)
        if culprit.partner is not None and mixed is not None:
            other = names.describe(mixed[0])
            reasons = {
                "own": f"alone it fails, {other} does not",
                "partner": f"alone it does not fail, but {other} does",
                "both": f"{other} fails alone, too",
                "neither": f"neither it nor {other} fails alone: only their mixture does",
            }
            assert culprit.apart is not None
            text += f", mixed with {mixed[1]:.0%} of {other}: {reasons[culprit.apart]}"
        lines.append(f"  {'samples' if not lines else '':<12}{text}")
    if len(culprits) > NAMED:
        lines.append(f"  {'':<12}and {counted(len(culprits) - NAMED, 'other')}")
    guilty = _guilty(culprits, step, j)
    place = f"the first whose {what} are not finite: {found.module}"
    if guilty:
        verb = "is" if len(guilty) == 1 else "are"
        lines.append(f"  => {_listed([names.describe(sample) for sample in guilty])} {verb} {place}")
    return lines


def _guilty(culprits: list[Culprit], step: ReplayedStep, j: int) -> list[int]:
    """The samples that fail alone; if none does, those that are mixed in the images that fail."""
    samples: dict[int, None] = {}
    undecided: dict[int, None] = {}
    for culprit in culprits:
        own = int(step.samples[j, culprit.row])
        other = int(step.samples[j, culprit.partner]) if culprit.partner is not None else own
        if culprit.apart in (None, "own", "both"):
            samples[own] = None
        if culprit.apart in ("partner", "both"):
            samples[other] = None
        if culprit.apart == "neither":
            undecided |= {own: None, other: None}
    return list(samples or undecided)


def _after_the_passes(step: ReplayedStep, replayer: Replayer) -> list[str]:
    """What is not finite although each micro-batch is."""
    compiled = "" if not replayer.cfg.compile else "; uncompiled, each micro-batch is finite: --no-compile avoids it"
    if not math.isfinite(step.loss):
        return [f"the loss is not finite{compiled}"]
    model = replayer.state.model
    sums = [name for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    if sums:
        return [f"each micro-batch is finite, but the sum of their gradients is not: {_listed(sums)}{compiled}"]
    if not math.isfinite(step.grad_norm):
        largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
        return [f"all gradients are finite (at most {largest:.3g}), but the norm of all of them overflows"]
    return []


def anomaly_of_update(step: ReplayedStep, replayer: Replayer) -> list[str]:
    """The weights that are not finite after the update; else a line that says that nothing was found."""
    after = [name for name, tensor in replayer.state.tensors().items() if not _finite(tensor)]
    if after:
        return [f"everything up to the update of step {step.step:,} is finite, but not its result: {_listed(after)}"]
    return [f"no anomaly: loss, gradients and updated weights of step {step.step:,} are finite"]


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _named(step: ReplayedStep, names: SampleNames, j: int, rows: list[int]) -> str:
    return _listed([names.describe(int(step.samples[j, row])) for row in rows])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
