"""Too few optimizer steps to learn from: a small data set in large batches.  Imports no torch."""

import math

from vit.config.batches import largest_micro_batch
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.run.counts import counted

FEW_PER_EPOCH = 10
SMALLEST_BATCH = 8  # gradients of fewer images are mostly noise
ENOUGH = 500  # steps in all, which are enough even if each epoch has few


def few_steps_of(cfg: Config, images: int, ranks: int) -> str:
    """The warning for a run on a data set of so many images; "" if it has enough steps."""
    used = min(images, cfg.data.limit or images)
    repeats = cfg.data.repeats if cfg.augment.mixup or cfg.augment.cutmix else 0
    steps = RunSchedule(cfg, used).total_steps if used else 0  # of small images, it may be more than its epochs have
    return few_steps(used, cfg.global_batch, cfg.micro_batch, cfg.epochs, ranks, repeats, steps)


def few_steps(
    images: int, batch: int, micro: int, epochs: int, ranks: int, mixed_repeats: int = 0, steps: int = 0
) -> str:
    """The warning, with a global batch that gives more steps; "" if there are enough.

    `mixed_repeats` are the repeats of an image that mixup or cutmix must keep apart; 0: no mixing.  `steps` are those
    of the run; 0: as many as its epochs have if each is one pass over the images.
    """
    steps = steps or math.ceil(epochs * images / batch)
    if not images or images >= FEW_PER_EPOCH * batch or steps >= ENOUGH:
        return ""
    text = (
        f"few steps: {counted(images, 'image')} in batches of {batch:,} (global_batch) are "
        f"{images / batch:.2g} steps per epoch, {counted(steps, 'step')} in {counted(epochs, 'epoch')}"
    )
    smaller = ranks
    while 2 * smaller * FEW_PER_EPOCH <= images or smaller < SMALLEST_BATCH:
        smaller *= 2
    share = largest_micro_batch(smaller, micro, ranks, mixed_repeats)
    if share is None or 2 * smaller > batch or smaller > images:
        return f"{text}; use more epochs"
    also = f" --micro_batch {share}" if share != micro else ""
    return f"{text}; --global_batch {smaller}{also} makes {images / smaller:.2g} steps per epoch, or use more epochs"
