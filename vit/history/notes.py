"""Notes on a run: what to change in its config or cluster file, where something was measured.  Imports no torch.

In the manner of Princeton's jobstats (https://github.com/PrincetonUniversity/jobstats): a run that uses well what it
was given has no notes.
"""

from collections.abc import Callable, Sequence
from statistics import fmean, median

from vit.history.attempts import Attempt
from vit.history.failure_notes import FAILURE_NOTES
from vit.history.learning_curve import number
from vit.history.learning_notes import LEARNING_NOTES
from vit.history.run_history import RunHistory
from vit.history.settings import setting
from vit.history.slow_ranks import slow_times
from vit.history.time_spent import attempt_seconds
from vit.history.utilization import peak_flops
from vit.run.counts import counted
from vit.run.progress import format_duration
from vit.run.rank_log import advice, describe

MIN_SECONDS = 300.0  # on the nodes: shares of less time say little
SAVE_SHARE, COMPILE_SHARE, DATA_SHARE, START_SHARE, EVALUATE_SHARE = 0.03, 0.05, 0.10, 0.10, 0.15  # worth a note
SLOW_SECONDS = 300.0  # for which a rank was slow, worth a note
BUSY_CORES = 0.6  # if the cores are less busy, it is the disk that is waited for
FULL = 0.9  # of a GPU's memory that may be used
IDLE_GPU = 0.5  # share of the time in which no kernel ran


def notes(history: RunHistory) -> list[str]:
    """One sentence each, the most important ones first; empty if there is nothing to change.

    Notes on shares of the time need at least MIN_SECONDS on the nodes.
    """
    long = history.spent.on_nodes >= MIN_SECONDS
    checks = [*LEARNING_NOTES, *FAILURE_NOTES, *(TIME_NOTES if long else ()), *(GPU_NOTES if long else ())]
    return [note for check in checks if (note := check(history))]


def data_wait(history: RunHistory) -> str | None:
    """On GPUs: waiting for images; whether cores or the disk are slow, and how many cores would do."""
    seconds = _loop_seconds(history)
    steps = seconds["step"] + seconds["sync"]
    share = history.spent.share("data")
    if share < DATA_SHARE or steps <= 0 or not _on_gpus(history):
        return None
    text = f"data wait {share:.0%}"
    fed = _throughput(history)
    needed = (steps + seconds["data"]) / steps  # times as many images per second
    usage, ranks = history.usage[-1] if history.usage else None, _ranks_per_node(history)
    workers = setting(history.settings, "data.workers")
    if usage is None or usage.cores is None or not ranks or fed is None:
        return f"{text}: the GPUs wait for images; ask for more cpus_per_gpu, or set data.decoder scaled"
    nodes = (history.attempts[-1].ranks or ranks) // ranks
    rates = f"feed {fed:,.0f} images/s, the GPUs take {fed * needed:,.0f}"
    if 0 < workers < usage.cores // ranks:
        return f"{text}: {workers} data.workers {rates}: set data.workers 0 to use all {usage.cores // ranks} cores"
    if usage.cpu is not None and usage.cpu < BUSY_CORES:
        busy = f"the cores are only {usage.cpu:.0%} busy, so reading the images is slow"
        return f"{text}: {busy}: data.stage $TMPDIR copies them to each node, data.cache memory keeps them there"
    cores = usage.cores * nodes
    ask = -(-round(100 * usage.cores * needed) // (100 * ranks))
    return f"{text}: {counted(cores, 'core')} {rates}: ask for {ask} cpus_per_gpu, or set data.decoder scaled"


def compiling(history: RunHistory) -> str | None:
    """Compiling again and again."""
    share = history.spent.share("compile")
    each = [(a, a.seconds.get("compile", 0.0)) for a in history.attempts if a.seconds.get("compile", 0.0) >= 1]
    if share < COMPILE_SHARE or len(each) < 2:
        return None
    text = f"{share:.0%} of the time compiling, in {len(each)} of {len(history.attempts)} attempts"
    mean = format_duration(fmean(seconds for _, seconds in each[1:]))
    devices = sorted({attempt.device for attempt, _ in each})
    if len(devices) > 1:
        return (
            f"{text}: each kind of GPU compiles anew ({', '.join(devices)}); request one kind with constraint or gres"
        )
    return f"{text} ({mean} after the first): jobs with a longer time restart less often, and compile false never does"


def checkpoints(history: RunHistory) -> str | None:
    """Saving too often, or to a slow disk."""
    share = history.spent.share("checkpoint")
    saved = [event for event in history.events if event["event"] == "checkpoint"]
    if share < SAVE_SHARE or len(saved) < 3:
        return None
    stall = history.spent.seconds["checkpoint"] / len(saved)
    interval = history.spent.on_nodes / len(saved)
    text = f"{share:.0%} of the time waiting for checkpoints: {stall:.1f} s each, every {format_duration(interval)}"
    if setting(history.settings, "checkpoint.every_minutes"):
        minutes = max(2, round(stall / 0.01 / 60))
        return f"{text}; checkpoint.every_minutes {minutes} would take 1%"
    return f"{text}; put the run folder (--runs-dir) on a faster disk"


def lost_steps(history: RunHistory) -> str | None:
    """Repeating many steps, because checkpoints are rare for so many failures."""
    share, lost = history.spent.share("lost"), [a for a in history.attempts if a.lost_steps]
    if share < SAVE_SHARE or not lost:
        return None
    steps, hours = sum(a.lost_steps for a in lost), history.spent.on_nodes / len(lost) / 3600
    text = f"{share:.0%} of the time lost: {counted(steps, 'step')} repeated after {counted(len(lost), 'interruption')}"
    saves = [s for e in history.events if e["event"] == "checkpoint" and (s := number(e, "stall")) is not None]
    cost = fmean(saves) if saves else 1.0
    minutes = max(0.0, 2 * cost * hours * 3600) ** 0.5 / 60  # Young 1974: the interval that loses least
    every = setting(history.settings, "checkpoint.every_minutes")
    if every and minutes < every:
        return f"{text}; set checkpoint.every_minutes {max(1, round(minutes))}"
    if not every and hours < setting(history.settings, "checkpoint.expected_failure_hours") / 2:
        return f"{text}; set checkpoint.expected_failure_hours {hours:.2g}, which saves more often"
    return text


def starting(history: RunHistory) -> str | None:
    """Starting often, or for long."""
    share, starts = history.spent.share("start"), len(history.attempts)
    if share < START_SHARE or not starts:
        return None
    each = format_duration(history.spent.seconds["start"] / starts)
    text = f"{share:.0%} of the time starting: {each}{f' for each of {starts} attempts' if starts > 1 else ''}"
    staged = sum(a.seconds.get("stage", 0.0) for a in history.attempts)
    if staged > history.spent.seconds["start"] / 2:
        return f"{text}, most of it copying data to the nodes; leave data.stage empty, or request a longer time"
    limited = sum("time limit" in a.why for a in history.attempts)
    return f"{text}; request a longer time: {limited} ended at the time limit" if limited > starts / 2 else text


def evaluating(history: RunHistory) -> str | None:
    """Evaluating often."""
    share, every = history.spent.share("evaluate"), setting(history.settings, "log.eval_every_epochs")
    if share < EVALUATE_SHARE or len(history.evaluations) < 3:
        return None
    rarer = -(-share // 0.05)
    return f"{share:.0%} of the time evaluating; log.eval_every_epochs {every * rarer:g} would take about 5%"


def queueing(history: RunHistory) -> str | None:
    """Waiting longer than training."""
    queue, starts = history.spent.seconds["queue"], sum(a.queued >= 1 for a in history.attempts)
    if queue < 3600 or queue < history.spent.total / 2:
        return None
    text = f"{format_duration(queue)} in the queue, for {counted(starts, 'start')}"
    return f"{text}: a job with a shorter time or fewer GPUs often starts sooner; the run continues over many jobs"


def slow_node(history: RunHistory) -> str | None:
    """An attempt that took much longer per step than the others, on another node.

    Not if images grow over the run: its steps then get slower by themselves.
    """
    pace = {id(a): seconds for a in history.attempts if (seconds := _seconds_per_step(a))}
    if len(pace) < 3 or history.settings.get("train_sizes"):
        return None
    usual = median(pace.values())
    slow = [a for a in history.attempts if pace.get(id(a), 0.0) > 1.25 * usual and a.node]
    fast = {a.node for a in history.attempts if id(a) in pace and a not in slow}
    slow = [a for a in slow if a.node not in fast]
    if not slow:
        return None
    nodes = sorted({a.node for a in slow})
    worse = fmean(pace[id(a)] for a in slow) / usual - 1
    return f"steps took {worse:.0%} longer on {', '.join(nodes)} than elsewhere: exclude {','.join(nodes)}"


def slow_ranks(history: RunHistory) -> str | None:
    """Ranks that were slow for long: those that lost most, and the longest of their times."""
    seconds: dict[tuple[int, str], float] = {}
    newest = {}
    until = max((t for event in history.events if (t := number(event, "time")) is not None), default=0.0)
    until = max(until, max((a.began + a.duration for a in history.attempts), default=0.0))
    for each in slow_times(history.events):
        place = each.rank, each.node
        seconds[place] = seconds.get(place, 0.0) + max(0.0, (each.ended or until) - each.began)
        newest[place] = each.event
    long = sorted((place for place in seconds if seconds[place] >= SLOW_SECONDS), key=lambda place: -seconds[place])
    if not long:
        return None
    event, others = newest[long[0]], len(long) - 1
    more = f" (and {counted(others, 'other rank')})" if others else ""
    return f"for {format_duration(seconds[long[0]])}{more}, {describe(event)}: {advice(event)}"


def gpu_memory(history: RunHistory) -> str | None:
    """Room for a larger micro-batch, unless some image sizes have their own (the third value in `train_sizes`)."""
    sizes = history.settings.get("train_sizes")
    if isinstance(sizes, list) and any(isinstance(row, list) and len(row) > 2 for row in sizes):
        return None
    used = max((u for u in history.usage if u.gpu_memory), key=lambda u: u.gpu_memory or 0, default=None)
    ranks = history.attempts[-1].ranks if history.attempts else None
    if used is None or not used.gpu_memory or not used.gpu_memory_total or not ranks:
        return None
    batch, micro = setting(history.settings, "global_batch"), setting(history.settings, "micro_batch")
    most = micro * FULL * used.gpu_memory_total / used.gpu_memory  # memory grows at most in proportion
    fitting = [m for m in range(micro + 1, int(most) + 1) if batch % m == 0 and (batch // m) % ranks == 0]
    if not fitting or fitting[-1] < 1.5 * micro:
        return None
    peak, total = used.gpu_memory / 2**30, used.gpu_memory_total / 2**30
    return (
        f"memory peak {peak:.0f} of {total:.0f} GB: micro_batch {fitting[-1]} fits (for a new run: it is in the recipe)"
    )


def idle_gpu(history: RunHistory) -> str | None:
    """GPUs that do little although they need not wait."""
    known = [(u.gpu, u.seconds) for u in history.usage if u.gpu is not None and u.seconds > 60]
    total = sum(seconds for _, seconds in known)
    busy = sum(gpu * seconds for gpu, seconds in known) / total if total else 1.0
    steps = history.spent.share("step")
    if busy > IDLE_GPU or steps < 0.7:  # else the time went elsewhere, which has notes of its own
        return None
    how = "compile true" if not setting(history.settings, "compile") else "a larger micro_batch or fewer GPUs"
    return f"the GPUs are busy only {busy:.0%} of the time, although they need not wait for images: try {how}"


def slow_precision(history: RunHistory) -> str | None:
    """float32 on GPUs that have tensor cores."""
    device = history.attempts[-1].device if history.attempts else ""
    half, single = peak_flops(device, "bf16"), peak_flops(device, "float32")
    if setting(history.settings, "precision") != "float32" or half is None or single is None or half < 4 * single:
        return None
    return (
        f"precision float32 uses at most 1/{half / single:.0f} of the peak of {device}: bf16 (for a new run) is faster"
    )


TIME_NOTES: tuple[Callable[[RunHistory], str | None], ...] = (
    data_wait, lost_steps, compiling, checkpoints, starting, evaluating, queueing, slow_node, slow_ranks
)  # fmt: skip
GPU_NOTES: tuple[Callable[[RunHistory], str | None], ...] = (gpu_memory, idle_gpu, slow_precision)


def _on_gpus(history: RunHistory) -> bool:
    return bool(history.attempts) and history.attempts[-1].device not in ("", "cpu")


def _loop_seconds(history: RunHistory) -> dict[str, float]:
    return {name: sum(a.seconds.get(name, 0.0) for a in history.attempts) for name in ("data", "step", "sync")}


def _throughput(history: RunHistory) -> float | None:
    """Images per second of the newer half of the run."""
    rates = [rate for r in history.training if (rate := number(r, "images_per_second"))]
    return median(rates[len(rates) // 2 :]) if rates else None


def _ranks_per_node(history: RunHistory) -> int | None:
    ranks, newest = history.attempts[-1].ranks, history.usage[-1].began if history.usage else 0.0
    nodes: Sequence[str] = sorted({usage.node for usage in history.usage if usage.began > newest - 30})
    return ranks // len(nodes) if ranks and nodes and ranks >= len(nodes) else None


def _seconds_per_step(attempt: Attempt) -> float | None:
    """None for attempts that are too short to tell."""
    if attempt.first_step is None or attempt.last_step is None or attempt.last_step - attempt.first_step < 20:
        return None
    seconds = attempt_seconds(attempt)["step"] + sum(attempt.lost.get(name, 0.0) for name in ("step", "sync"))
    return seconds / (attempt.last_step - attempt.first_step) if seconds >= 30 else None
