"""The head of a report: the name of a run, its state, and its most important numbers."""

from jobs.page.elements import Html, element
from jobs.page.interruptions import describe_interruptions, interruptions
from jobs.page.learning_curves import last
from jobs.page.run_data import RunData
from jobs.page.scales import date, number, percent
from vit.run.counts import counted
from vit.run.progress import format_duration


def run_header(run: RunData, title: str = "") -> Html:
    """Name, state, result, and how long it took."""
    status = run.status
    detail = f" ({status.detail})" if status.detail else ""
    facts = [
        fact
        for fact in (
            *(_accuracy(run), _loss(run), _steps(run), _time_left(run), _duration(run), _goodput(run), _attempts(run)),
            _speed(run),
        )
        if fact
    ]
    return element(
        "header",
        element(
            "div",
            element("h1", title or run.name),
            element("span", f"{status.state}{detail}", class_=f"state {status.state.replace(' ', '-')}")
            if run.events or run.settings or run.curves
            else None,
            class_="title",
        ),
        element("p", _when(run), class_="when") if _when(run) else None,
        element("p", status.why, class_="problem") if status.why else None,
        element("dl", *facts, class_="figures") if facts else None,
        element("ul", *(element("li", note) for note in run.notes), class_="notes") if run.notes else None,
        *(element("p", problem, class_="problem") for problem in run.problems),
        element("p", "No step is recorded yet.", class_="note") if not run.curves and not run.evaluations else None,
    )


def _fact(name: str, value: str, detail: str = "") -> Html:
    return element(
        "div", element("dt", name), element("dd", element("b", value), element("span", detail) if detail else None)
    )


def _accuracy(run: RunData) -> Html | None:
    ema, top1 = last(run.curves.get("val_top1_average")), last(run.curves.get("val_top1"))
    value = top1 if ema is None else ema
    if value is None:
        return None
    best = run.best
    detail = "EMA" if ema is not None else ""
    if best is not None and best[1] > value:
        detail += f"{', ' if detail else ''}best {percent(best[1], 2)}"
    return _fact("top-1", percent(value, 2), detail)


def _loss(run: RunData) -> Html | None:
    value, training = last(run.curves.get("val_loss")), last(run.curves.get("loss"))
    if value is not None:
        return _fact("validation loss", number(value), f"training {number(training)}" if training is not None else "")
    return _fact("training loss", number(training)) if training is not None else None


def _steps(run: RunData) -> Html | None:
    if run.step is None:
        return None
    done = f"{run.step:,}" + (f" of {run.steps:,}" if run.steps and run.steps != run.step else "")
    epochs = f"{run.epoch:.4g}" if run.epoch is not None else ""
    epochs += f" of {run.epochs:g} epochs" if run.epochs and run.epochs != run.epoch else " epochs" if epochs else ""
    return _fact("steps", done, epochs)


def _duration(run: RunData) -> Html | None:
    spent = run.time
    if spent.total <= 0:
        return None
    queue = spent.seconds["queue"]
    detail = f"{format_duration(queue)} in the queue" if queue >= 1 else ""
    return _fact("on the nodes", format_duration(spent.on_nodes), detail)


def _goodput(run: RunData) -> Html | None:
    if run.time.goodput is None:
        return None
    lost = sum(attempt.lost_steps for attempt in run.attempts)
    return _fact(
        "goodput", percent(run.time.goodput), f"{counted(lost, 'step')} repeated" if lost else "no step repeated"
    )


def _time_left(run: RunData) -> Html | None:
    """Of a run that runs, as expected from its speed."""
    status = run.status
    if status.state != "running" or status.seconds_left is None:
        return None
    when = date(status.ends, "%a %H:%M") if status.ends is not None else ""
    return _fact("time left", format_duration(status.seconds_left), f"ends {when}" if when else "")


def _speed(run: RunData) -> Html | None:
    """Throughput, and how well it uses the GPUs, as far as that is known."""
    status = run.status
    if status.images_per_second is None:
        return None
    parts = [f"MFU {percent(status.mfu, 0)}"] if status.mfu is not None else []
    parts += [f"GPU busy {percent(status.gpu, 0)}"] if status.gpu is not None else []
    if status.gpu_memory and status.gpu_memory_total:
        parts.append(f"{status.gpu_memory / 1e9:.0f} of {status.gpu_memory_total / 1e9:.0f} GB")
    return _fact("images/s", f"{status.images_per_second:,.0f}", ", ".join(parts))


def _attempts(run: RunData) -> Html | None:
    if not run.attempts:
        return None
    marks = describe_interruptions(interruptions(run))
    return _fact("attempts", str(len(run.attempts)), marks or "no interruption")


def _when(run: RunData) -> str:
    """When it began, and where."""
    parts: list[str] = []
    if run.began is not None:
        parts += filter(None, [date(run.began, "%Y-%m-%d %H:%M")])
    newest = next((a for a in reversed(run.attempts) if a.ranks), None)
    if newest is not None and newest.ranks:
        parts.append(counted(newest.ranks, "rank") + (f" on {newest.device}" if newest.device else ""))
    return " · ".join(parts)
