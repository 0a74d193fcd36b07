"""Which batch sizes go with a number of ranks, in the words of messages.  Imports no torch."""

from vit.config.values import listed


def wrong_ranks(batch: int, micro: int, ranks: int, mixed_repeats: int = 0) -> str:
    """The message for a number of ranks that does not divide the micro-batches of a global batch.

    It names the numbers that do, and the largest micro-batch, or else another global batch, for these `ranks`.
    `mixed_repeats` are the repeats of an image that mixup or cutmix must keep apart; 0: no mixing.
    """
    count = batch // micro
    allowed = [str(n) for n in range(1, count + 1) if count % n == 0]
    return (
        f"{_ranks(ranks)} do not divide the {count} micro-batch{'es' if count > 1 else ''} of a batch "
        f"(global_batch {batch} / micro_batch {micro}); use {listed(allowed)} rank{'s' if count > 1 else ''}, or "
        f"{_settings_for(batch, micro, ranks, mixed_repeats)}"
    )


def largest_micro_batch(batch: int, micro: int, ranks: int, mixed_repeats: int = 0) -> int | None:
    """The largest micro-batch, not larger than `micro`, with which `ranks` divide the micro-batches; None if none."""
    fitting = (m for m in range(micro, 0, -1) if batch % m == 0 and batch // m % ranks == 0)
    return next((m for m in fitting if _mixes(batch, m, mixed_repeats)), None)


def has_canonical_order(micro_batches: int, ranks: int) -> bool:
    """Whether this number of ranks adds micro-batches in the same order as a single rank: vit/distributed/gradients.py.

    Runs that do, end with the same bits; other numbers of ranks have bits of their own.
    """
    per_rank = micro_batches // ranks
    return ranks == 1 or per_rank & (per_rank - 1) == 0


def _mixes(batch: int, micro: int, repeats: int) -> bool:
    """Whether a micro-batch is large enough for mixup: see `Config.check_mixing`."""
    return not repeats or micro >= 2 * -(-repeats // (batch // micro))


def _settings_for(batch: int, micro: int, ranks: int, mixed_repeats: int) -> str:
    """The settings for these ranks.  They change the result too: gradients are summed and random draws are made by
    micro-batch."""
    if smaller := largest_micro_batch(batch, micro, ranks, mixed_repeats):
        return f"--micro_batch {smaller} for {_ranks(ranks)} (another recipe: it changes the bits of the run)"
    changed = micro
    while ranks * changed > 1.5 * batch and changed > 1:
        changed //= 2
    nearest = max(1, round(batch / (ranks * changed))) * ranks * changed
    if not _mixes(nearest, changed, mixed_repeats):
        return f"a larger global_batch for {_ranks(ranks)}"
    also = f" --micro_batch {changed}" if changed != micro else ""
    return f"--global_batch {nearest}{also} for {_ranks(ranks)} (they cannot share {batch} images equally)"


def _ranks(count: int) -> str:
    return f"{count} rank{'s' if count != 1 else ''}"
