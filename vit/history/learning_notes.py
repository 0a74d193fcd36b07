"""Notes on a learning curve that went wrong.  Imports no torch."""

from collections.abc import Callable, Sequence
from statistics import fmean

from vit.history.few_steps import few_steps
from vit.history.learning_curve import best, number, top1
from vit.history.run_history import RunHistory
from vit.history.settings import setting

WINDOWS = 40  # into which the losses are divided: their means do not depend on single batches
RISE = 0.3  # of what the loss had fallen by: then it diverges
GUESSING_EPOCHS = 3.0  # after the warmup: then something must have been learned


def diverged(history: RunHistory) -> str | None:
    """The training loss rose again and stays high."""
    records = history.training
    losses = [number(record, "loss") or 0.0 for record in records]
    size = len(losses) // WINDOWS
    if size < 2:
        return None
    means = [fmean(losses[i * size : (i + 1) * size]) for i in range(WINDOWS - 1)] + [fmean(losses[-size:])]
    lowest = min(range(WINDOWS), key=means.__getitem__)
    fallen, risen = means[0] - means[lowest], means[-1] - means[lowest]
    if fallen < 0.05 * abs(means[0]) or risen < RISE * fallen:
        return None
    where = number(records[min(len(records) - 1, lowest * size + size // 2)], "epoch") or 0.0
    clip = "" if setting(history.settings, "optim.clip_norm") else ", optim.clip_norm 1"
    return (
        f"the training loss rose from {means[lowest]:.2f} at epoch {where:.1f} to {means[-1]:.2f}: it diverges; "
        f"try a lower optim.lr{clip}, or more optim.warmup_epochs"
    )


def guessing(history: RunHistory) -> str | None:
    """Nothing was learned although the warmup is over."""
    classes, highest = setting(history.settings, "model.num_classes"), best(history.evaluations)
    reached = number(history.evaluations[-1], "epoch") if history.evaluations else None
    if highest is None or reached is None or classes < 2:
        return None
    accuracy = top1(highest) or 0.0
    if accuracy > 1.5 / classes or reached < setting(history.settings, "optim.warmup_epochs") + GUESSING_EPOCHS:
        return None
    return (
        f"top-1 is {accuracy:.2%} after {reached:.0f} epochs, no better than guessing among {classes:,} classes: "
        "check optim.lr and the labels of the data set"
    )


def overfitting(history: RunHistory) -> str | None:
    """The validation loss rises while the training loss falls."""
    scored = [record for record in history.evaluations if number(record, "val_loss") is not None]
    losses = [number(record, "val_loss") or 0.0 for record in scored]
    if len(losses) < 5:
        return None
    lowest = min(range(len(losses)), key=losses.__getitem__)
    highest, last = best(scored), top1(scored[-1])
    if highest is None or last is None or losses[-1] < 1.1 * losses[lowest]:
        return None
    then, now = _loss_near(history, scored[lowest]["step"]), _loss_near(history, scored[-1]["step"])
    if then is None or now is None or now >= then or (top1(highest) or 0.0) - last < 0.005:
        return None
    return (
        f"validation top-1 fell from {top1(highest):.2%} at epoch {number(highest, 'epoch') or 0:.0f} to {last:.2%} "
        "while the training loss fell too: overfitting; train for fewer epochs, or use more augmentation and drop_path"
    )


def too_few_steps(history: RunHistory) -> str | None:
    """A small data set in large batches: its size follows from the steps of an epoch."""
    if "global_batch" not in history.settings:  # a run without a config in its folder
        return None
    names = ("global_batch", "micro_batch", "epochs", "augment.mixup", "augment.cutmix", "data.repeats")
    batch, micro, epochs, mixup, cutmix, repeats = (setting(history.settings, name) for name in names)
    places = ((number(record, "epoch") or 0.0, number(record, "step")) for record in reversed(history.curve))
    # The last batch of a run may reach beyond its last epoch, which the record does not show.
    epoch, step = next((place for place in places if place[0] < epochs), (0.0, None))
    if not epoch or not step:
        return None
    mixed, ranks = repeats if mixup or cutmix else 0, history.attempts[-1].ranks if history.attempts else None
    return few_steps(round(step * batch / epoch), batch, micro, epochs, ranks or 1, mixed) or None


def _loss_near(history: RunHistory, step: int) -> float | None:
    """The mean training loss of the ten records up to a step."""
    before: Sequence[float] = [number(r, "loss") or 0.0 for r in history.training if r["step"] <= step][-10:]
    return fmean(before) if before else None


LEARNING_NOTES: tuple[Callable[[RunHistory], str | None], ...] = (diverged, guessing, overfitting, too_few_steps)
